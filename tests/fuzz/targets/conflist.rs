//! A file of the CNI configuration directory: our entry goes in and comes out, and no byte of anybody else's changes.
#![no_main]

use std::path::Path;

use bulkhead::chain::{Entry, FailurePolicy, List, Single};
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let entry = Entry::new(FailurePolicy::Closed, Path::new("/run/bulkhead/agent.sock"));
    if let Ok(single) = Single::parse(text) {
        let made = single.to_list(&entry);
        let list = List::parse(&made).expect("a list made from a configuration is one");
        assert!(list.holds_ours() || single.kind == "bulkhead-cni");
        assert_eq!(list.first(), single.text());
    }
    let Ok(list) = List::parse(text) else { return };
    let Ok(with) = list.with(&entry) else {
        assert_eq!(list.others().next(), None);
        return;
    };
    let chained = with.as_deref().unwrap_or(text);
    let ours = List::parse(chained).expect("a list stays one");
    assert!(ours.holds_ours());
    assert_eq!(ours.with(&entry), Ok(None), "once is enough");
    assert!(ours.others().eq(list.others()), "the others are all there, in order");
    assert_ne!(List::parse(ours.first()).is_ok_and(|first| first.holds_ours()), true);
    let without = ours.without().expect("ours was in it");
    if !list.holds_ours() {
        assert_eq!(without, text, "as it was, byte for byte");
    }
    assert!(!List::parse(&without).expect("still a list").holds_ours());
    // A number may be larger than anything that we could hold.
    let (Ok(new), Ok(old)) = (serde_json::from_str(chained), serde_json::from_str(text)) else { return };
    let strip = |mut list: Value| {
        list["plugins"].as_array_mut().expect("plugins").retain(|plugin| plugin["type"] != "bulkhead-cni");
        list
    };
    assert_eq!(strip(new), strip(old));
});
