//! A file of libcni's cache: any bytes give a pod's attachment with what adoption goes by, nothing, or an error.
#![no_main]

use bulkhead::endpoint::cache::parse;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match parse(bytes) {
        Ok(Some(remembered)) => {
            assert!(!remembered.pod.namespace.is_empty() && !remembered.pod.name.is_empty());
            let families: Vec<_> = remembered.addresses.iter().map(|address| address.is_ipv4()).collect();
            assert!(matches!(families[..], [_] | [true, false]), "{:?}", remembered.addresses);
            assert!(remembered.netns.is_none_or(|path| !path.as_os_str().is_empty()));
        }
        Ok(None) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
