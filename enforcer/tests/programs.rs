//! The real object in the real kernel.
#![expect(clippy::unwrap_used, reason = "tests")]

use aya::{EbpfLoader, programs::SchedClassifier};

#[test]
fn the_programs_pass_the_verifier() {
    let mut ebpf = EbpfLoader::new()
        .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bulkhead-programs")))
        .unwrap();
    for name in ["from_pod", "to_pod"] {
        let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
    }
}
