//! One directory: what is written, and what is said.

use super::{FLANNEL, OURS, SINGLE, entry};
use crate::chain::{
    directory::{Directory, File},
    list::{List, Single},
    plan::{Step, plan},
    status::Status,
};

fn directory(files: &[(&str, &str)], originals: &[(&str, &str)]) -> Directory {
    let files_of = |files: &[(&str, &str)]| {
        files.iter().map(|(name, text)| File { name: (*name).into(), text: Ok((*text).into()) }).collect()
    };
    Directory { files: files_of(files), originals: files_of(originals) }
}

fn decide(directory: &Directory) -> (Option<Step>, Status) {
    let mut status = Status { directory: "/d".into(), ..Status::default() };
    (plan(directory, &entry(), &mut status), status)
}

fn chained(text: &str) -> String {
    List::parse(text).and_then(|list| list.with(&entry())).expect("a list").unwrap_or_else(|| text.to_owned())
}

fn edit(file: &str, old: &str) -> Step {
    Step::Edit { file: file.into(), old: old.into(), new: chained(old) }
}

fn status(chained: &[&str], unchained: &[&str], unused: &[&str], problems: &[&str]) -> Status {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Status {
        directory: "/d".into(),
        chained: owned(chained),
        unchained: owned(unchained),
        unused: owned(unused),
        problems: owned(problems),
        ..Status::default()
    }
}

#[test]
fn the_first_configuration_that_a_runtime_can_use_gets_the_entry_and_the_others_are_named() {
    let bridge = r#"{"name":"b","plugins":[{"type":"bridge"}]}"#;
    let cilium = r#"{"name":"cilium","plugins":[{"type":"cilium-cni"}]}"#;
    let multus = r#"{"name":"m","type":"multus","delegates":[]}"#;
    let done = chained(FLANNEL);
    let half = &FLANNEL[..40];
    let wired = "/d/05-cilium.conflist: Cilium wires and judges its pods itself: it is left alone";
    let meta = "/d/00-multus.conf: multus hands on to another network's configuration and may hold a copy of it: the \
                entry goes into that network's own file, and whoever made the copy has to make it anew";
    let broken = "/d/05-new.conflist: EOF while parsing a string at line 3 column 20: it is left as it is; until then \
                  containerd starts no pod on this node";
    for (case, files, step, said) in [
        ("nothing there yet", vec![], None, status(&[], &[], &[], &[])),
        (
            "flannel's list",
            vec![("10-flannel.conflist", FLANNEL)],
            Some(edit("10-flannel.conflist", FLANNEL)),
            status(&[], &["10-flannel.conflist"], &[], &[]),
        ),
        (
            "it has the entry",
            vec![("10-flannel.conflist", done.as_str())],
            None,
            status(&["10-flannel.conflist"], &[], &[], &[]),
        ),
        (
            "a second one is not used",
            vec![("10-flannel.conflist", FLANNEL), ("20-bridge.conflist", bridge)],
            Some(edit("10-flannel.conflist", FLANNEL)),
            status(&[], &["10-flannel.conflist"], &["20-bridge.conflist"], &[]),
        ),
        (
            "a new first one takes over, and the entry in the second does no harm",
            vec![("05-bridge.conflist", bridge), ("10-flannel.conflist", done.as_str())],
            Some(edit("05-bridge.conflist", bridge)),
            status(&["10-flannel.conflist"], &["05-bridge.conflist"], &[], &[]),
        ),
        ("half written", vec![("05-new.conflist", half)], None, status(&[], &[], &[], &[broken])),
        (
            "broken before flannel's: CRI-O goes on to the next",
            vec![("05-new.conflist", half), ("10-flannel.conflist", FLANNEL)],
            Some(edit("10-flannel.conflist", FLANNEL)),
            status(&[], &["10-flannel.conflist"], &[], &[broken]),
        ),
        (
            "Cilium's is left alone, and flannel's behind it too",
            vec![("05-cilium.conflist", cilium), ("10-flannel.conflist", FLANNEL)],
            None,
            status(&[], &["05-cilium.conflist"], &["10-flannel.conflist"], &[wired]),
        ),
        (
            "multus uses flannel's",
            vec![("00-multus.conf", multus), ("10-flannel.conflist", FLANNEL)],
            Some(edit("10-flannel.conflist", FLANNEL)),
            status(&[], &["10-flannel.conflist"], &[], &[meta]),
        ),
    ] {
        assert_eq!(decide(&directory(&files, &[])), (step, said), "{case}");
    }
}

#[test]
fn a_single_configuration_is_converted_unless_a_list_of_that_name_is_somebody_elses() {
    let convert = |text: &str, old: Option<&str>, new: String| {
        Some(Step::Convert {
            single: "10-flannel.conf".into(),
            text: text.into(),
            list: "10-flannel.conflist".into(),
            old: old.map(Into::into),
            new,
        })
    };
    let list = Single::parse(SINGLE).expect("valid").to_list(&entry());
    let newer = SINGLE.replace("true", "false");
    let with_istio = list.replace(OURS, &format!("{OURS}, {{\"type\": \"istio-cni\"}}"));
    let refused = "/d/10-flannel.conf: a list must take its place, and there is another 10-flannel.conflist already: \
                   it is left as it is";
    for (case, files, originals, step, said) in [
        (
            "alone",
            vec![("10-flannel.conf", SINGLE)],
            vec![],
            convert(SINGLE, None, list.clone()),
            status(&[], &["10-flannel.conf"], &[], &[]),
        ),
        (
            "written again: the list is brought up to date, and what others added stays",
            vec![("10-flannel.conf", newer.as_str()), ("10-flannel.conflist", with_istio.as_str())],
            vec![("10-flannel.conf", SINGLE)],
            convert(&newer, Some(&with_istio), with_istio.replace(SINGLE, &newer)),
            status(&["10-flannel.conflist"], &["10-flannel.conf"], &[], &[]),
        ),
        (
            "beside a list that is not ours",
            vec![("10-flannel.conf", SINGLE), ("10-flannel.conflist", FLANNEL)],
            vec![],
            None,
            status(&[], &["10-flannel.conf"], &["10-flannel.conflist"], &[refused]),
        ),
    ] {
        assert_eq!(decide(&directory(&files, &originals)), (step, said), "{case}");
    }
}
