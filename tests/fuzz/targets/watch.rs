//! Lines of an API server's watches: any bytes give a change or a complaint of one line. Whatever the objects, what the
//! compiler has made of them change by change is what it makes of all of them at once.
//!
//! Input: lines; the first byte of each says which kind is watched.
#![no_main]

use bulkhead::{
    cluster::{Index, object::Kind},
    policy::{Compiler, Settings, compile, scope},
    source::{Change, kubernetes::read_event},
};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let settings = Settings::default();
    let mut index = Index::new(Some("n1".to_owned()));
    let mut compiler = Compiler::new(settings.clone());
    for line in input.split(|byte| *byte == b'\n').take(32) {
        let Some((kind, line)) = line.split_first() else { continue };
        let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
        match read_event(kind, line) {
            Err(complaint) => assert!(!complaint.contains('\n') && !complaint.is_empty(), "{complaint:?}"),
            Ok(None) => {}
            Ok(Some(change)) => {
                assert_eq!(change.kind(), kind);
                match change {
                    Change::Upsert(object) => index.apply(object),
                    Change::Delete(reference) => index.delete(&reference),
                };
            }
        }
        let touched = index.take_touched();
        compiler.advance(&index, &touched, &Default::default());
        compiler.settle(&index);
    }
    assert_eq!(*compiler.compiled(), compile(&index, &settings, &scope(&index, &settings)));
});
