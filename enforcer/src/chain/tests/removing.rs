//! Everything back as it was.

use std::fs;

use super::{FLANNEL, OURS, SINGLE, keeping::Node};
use crate::chain::{Place, Removed, remove, remove_plugin};

fn take_away(node: &Node) -> (bool, Vec<String>) {
    let mut removed = Removed::default();
    let place = Place::find(&node.directories());
    let clean = remove(&place, &mut removed);
    if clean {
        remove_plugin(&place, &mut removed);
    }
    (clean, removed.failed)
}

#[test]
fn a_directory_is_byte_for_byte_what_it_was_however_often_it_is_asked_for() {
    for (case, files) in [
        ("a list", vec![("10-flannel.conflist", FLANNEL)]),
        ("a single configuration", vec![("10-flannel.conf", SINGLE)]),
        (
            "with others",
            vec![("10-flannel.conflist", FLANNEL), ("20-broken.conflist", "{"), ("99-loopback.conf", SINGLE)],
        ),
        ("nothing", vec![]),
    ] {
        let node = Node::new();
        for (name, text) in &files {
            node.write(name, text);
        }
        for _ in 0..2 {
            node.chain().tend();
            assert_eq!(take_away(&node), (true, vec![]), "{case}");
            let found: Vec<_> =
                node.names().into_iter().map(|name| (name.clone(), node.text(&name))).collect();
            let want: Vec<_> =
                files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
            assert_eq!(found, want, "{case}");
            assert_eq!(fs::read_dir(node.bin()).expect("listed").count(), 0, "{case}");
        }
        assert_eq!(take_away(&node), (true, vec![]), "{case}: again");
    }
}

#[test]
fn what_others_added_meanwhile_stays() {
    let istio = r#"{"type": "istio-cni"}"#;
    let node = Node::new();
    node.write("10-flannel.conflist", FLANNEL);
    node.chain().tend();
    node.write(
        "10-flannel.conflist",
        &node.text("10-flannel.conflist").replace(OURS, &format!("{OURS},\n    {istio}")),
    );
    take_away(&node);
    let ending = "    }\n  ]\n}\n";
    assert_eq!(
        node.text("10-flannel.conflist"),
        FLANNEL.replace(ending, &format!("    }},\n    {istio}\n  ]\n}}\n"))
    );

    let node = Node::new();
    node.write("10-flannel.conf", SINGLE);
    node.chain().tend();
    node.write(
        "10-flannel.conflist",
        &node.text("10-flannel.conflist").replace(OURS, &format!("{OURS},\n    {istio}")),
    );
    assert_eq!(take_away(&node), (true, vec![]));
    assert_eq!(node.names(), ["10-flannel.conflist"]);
    let text = node.text("10-flannel.conflist");
    assert!(text.contains(istio) && text.contains(SINGLE) && !text.contains("bulkhead"), "{text}");
}

#[test]
fn a_single_configuration_that_was_written_again_is_the_one_that_stays() {
    let node = Node::new();
    node.write("10-flannel.conf", SINGLE);
    node.chain().tend();
    let newer = SINGLE.replace("true", "false");
    node.write("10-flannel.conf", &newer);
    assert_eq!(take_away(&node), (true, vec![]));
    assert_eq!((node.names(), node.text("10-flannel.conf")), (vec!["10-flannel.conf".to_owned()], newer));
}

#[test]
fn a_configuration_that_cannot_be_read_and_names_the_plugin_is_reported_and_keeps_it() {
    let node = Node::new();
    node.write("10-flannel.conflist", FLANNEL);
    node.chain().tend();
    node.write(
        "00-multus.conf",
        &format!(r#"{{"type":"multus","name":"m","delegates":[{{"plugins":[{OURS}]}}]}}"#),
    );
    let (clean, failed) = take_away(&node);
    assert!(!clean && failed.len() == 1 && failed[0].contains("00-multus.conf"), "{failed:?}");
    assert!(node.bin().join("bulkhead-cni").exists(), "without it that configuration starts no pod");
    assert_eq!(node.text("10-flannel.conflist"), FLANNEL);
}
