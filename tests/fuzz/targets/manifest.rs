//! A manifest file: any bytes give objects and problems, the same ones every time, and every problem names
//! a line that the file has.
#![no_main]

use std::path::Path;

use bulkhead::source::{Place, manifest::parse_bytes};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let lines = bytes.split(|byte| *byte == b'\n').count();
    for name in ["fuzz.yaml", "fuzz.json"] {
        let loaded = parse_bytes(Path::new(name), bytes);
        for problem in &loaded.problems {
            let Place::File { line, .. } = problem.place else { panic!("not in the file: {problem}") };
            assert!(line <= lines, "line {line} of {lines}: {problem}");
            assert!(!problem.to_string().contains('\n'));
        }
        for located in &loaded.objects {
            assert!((1..=lines).contains(&located.origin.line), "{}", located.origin);
        }
        assert_eq!(parse_bytes(Path::new(name), bytes), loaded);
    }
});
