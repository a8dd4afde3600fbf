//! The plugin's standard input: any bytes give a configuration within its documented bounds, or an error
//! that a runtime can read.
#![no_main]

use bulkhead_cni::config::NetConf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match NetConf::parse(bytes) {
        Ok(conf) => {
            assert!(conf.socket.is_absolute());
            assert!((1..=120).contains(&conf.timeout.as_secs()));
            assert!(!conf.name.is_empty());
        }
        // 1 version, 2 unsupported, 4 environment, 5 I/O, 6 decoding, 7 configuration: the specification's.
        Err(error) => {
            assert!((1..=7).contains(&error.code()), "{error:?}");
            assert!(!error.with_causes().is_empty());
        }
    }
});
