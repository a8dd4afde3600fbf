//! One text: the entry goes in and comes out, and nothing else moves.

use serde_json::{Value, json};

use super::{FLANNEL, OURS, SINGLE, entry};
use crate::chain::list::{Invalid, List, Single};

fn with(text: &str) -> Result<Option<String>, Invalid> {
    List::parse(text).and_then(|list| list.with(&entry()))
}

fn chained(text: &str) -> String {
    with(text).expect("a list").expect("to be changed")
}

fn without(text: &str) -> Option<String> {
    List::parse(text).expect("a list").without()
}

#[test]
fn the_entry_goes_last_in_the_style_of_the_list_and_comes_out_byte_for_byte() {
    let ending = "    {\n      \"type\": \"portmap\",\n      \"capabilities\": {\n        \"portMappings\": true\n      }\n    }";
    for (case, text, want) in [
        ("flannel's own", FLANNEL.to_owned(), FLANNEL.replace(ending, &format!("{ending},\n    {OURS}"))),
        (
            "k3s's, in one line",
            r#"{"name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#.to_owned(),
            format!(r#"{{"name":"cbr0","plugins":[{{"type":"flannel"}},{{"type":"portmap"}},{OURS}]}}"#),
        ),
        (
            "with blanks, an odd order, and keys that nobody knows",
            r#"{ "plugins" : [ {"type":"flannel","x":"]}"} ] , "y":[1], "name":"cbr0" }"#.to_owned(),
            format!(
                r#"{{ "plugins" : [ {{"type":"flannel","x":"]}}"}}, {OURS} ] , "y":[1], "name":"cbr0" }}"#
            ),
        ),
        (
            "with tabs and without an end of line",
            "{\"name\":\"ü\",\n\t\"plugins\":[\n\t\t{\"type\":\"flannel\"}\n\t]}".to_owned(),
            format!("{{\"name\":\"ü\",\n\t\"plugins\":[\n\t\t{{\"type\":\"flannel\"}},\n\t\t{OURS}\n\t]}}"),
        ),
    ] {
        let edited = chained(&text);
        assert_eq!(edited, want, "{case}");
        assert_eq!(with(&edited), Ok(None), "{case}: once is enough");
        assert_eq!(without(&edited), Some(text), "{case}: as it was");
    }
}

#[test]
fn an_entry_behind_the_interface_plugin_stays_where_it_is_and_one_in_front_moves() {
    let list = |plugins: &[&str]| format!(r#"{{"name":"n","plugins":[{}]}}"#, plugins.join(","));
    let (flannel, istio) = (r#"{"type":"flannel"}"#, r#"{"type":"istio-cni"}"#);
    let other_socket = r#"{"type":"bulkhead-cni","socket":"/run/b.sock","timeoutSeconds":7}"#;
    let corrected =
        r#"{"failurePolicy":"closed","socket":"/run/a.sock","timeoutSeconds":7,"type":"bulkhead-cni"}"#;
    for (case, plugins, want) in [
        ("others may come behind it", vec![flannel, OURS, istio], None),
        ("in front there is no interface", vec![OURS, flannel], Some(vec![flannel, OURS])),
        ("twice is once too often", vec![flannel, OURS, istio, OURS], Some(vec![flannel, istio, OURS])),
        // Found by the fuzz target `conflist`.
        ("twice in front of the others", vec![OURS, OURS, flannel], Some(vec![flannel, OURS])),
        ("on both sides", vec![OURS, OURS, flannel, OURS, istio, OURS], Some(vec![flannel, istio, OURS])),
        (
            "settings count, other keys stay",
            vec![flannel, other_socket, istio],
            Some(vec![flannel, corrected, istio]),
        ),
        ("behind the others", vec![flannel, istio], Some(vec![flannel, istio, OURS])),
    ] {
        assert_eq!(with(&list(&plugins)).expect("a list"), want.map(|want| list(&want)), "{case}");
    }
    assert_eq!(without(&list(&[OURS, flannel, OURS, istio])), Some(list(&[flannel, istio])));
    assert_eq!(without(&list(&[flannel, istio])), None);
}

#[test]
fn what_a_runtime_could_not_use_is_refused() {
    for (text, want) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        (&FLANNEL[..40], "EOF while parsing a string at line 3 column 20"),
        ("[]", "it is no JSON object"),
        (r#"{"name":"n"}"#, "it lists no plugin"),
        (r#"{"name":"n","plugins":[]}"#, "it lists no plugin"),
        (r#"{"plugins":[{"type":"flannel"}]}"#, "it names no network"),
        (r#"{"name":"","plugins":[{"type":"flannel"}]}"#, "it names no network"),
        (r#"{"name":"n","plugins":[{"type":"flannel"},{}]}"#, "plugin 1 has no type"),
        (r#"{"name":"n","plugins":[["flannel"]]}"#, "plugin 0 has no type"),
        (
            r#"{"name":"n","plugins":[{"type":"flannel"}],"plugins":[{"type":"bridge"}]}"#,
            "duplicate field `plugins` at line 1 column 52",
        ),
        (
            r#"{"name":"n","plugins":[{"type":"bulkhead-cni"}]}"#,
            "it lists nothing but bulkhead-cni, which runs behind the plugin that makes the interface",
        ),
    ] {
        assert_eq!(with(text).expect_err(text).to_string(), want, "{text}");
    }
}

#[test]
fn a_single_configuration_becomes_the_list_that_a_runtime_makes_of_it() {
    let list = Single::parse(SINGLE).expect("valid").to_list(&entry());
    let parsed: Value = serde_json::from_str(&list).expect("JSON");
    let (own, ours): (Value, Value) =
        (serde_json::from_str(SINGLE).expect("JSON"), serde_json::from_str(OURS).expect("JSON"));
    assert_eq!(parsed, json!({"name": "cbr0", "cniVersion": "0.3.1", "plugins": [own, ours]}));
    assert_eq!(with(&list), Ok(None));
    assert_eq!(List::parse(&list).expect("a list").first(), SINGLE);
    for (text, want) in [
        (r#"{"type":"flannel"}"#, "it names no network"),
        (FLANNEL, "plugin 0 has no type"),
        (r#"{"type":7,"name":"n"}"#, "invalid type: integer `7`, expected a string at line 1 column 9"),
    ] {
        assert_eq!(Single::parse(text).expect_err(text).to_string(), want);
    }
}
