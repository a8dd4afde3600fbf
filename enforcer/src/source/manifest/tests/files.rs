use std::{fmt::Write, fs, path::Path};

use proptest::prelude::*;

use super::{objects, problems, yaml};
use crate::{
    cluster::object::{Key, NetworkPolicy, Object},
    source::manifest::{Loaded, load, parse_bytes},
};

fn json(text: &str) -> Loaded {
    parse_bytes(Path::new("m.json"), text.as_bytes())
}

fn names(loaded: &Loaded) -> Vec<String> {
    loaded.objects.iter().map(|l| format!("{} {}", l.origin.line, l.object.reference())).collect()
}

#[test]
fn documents_are_told_apart_as_kubectl_does() {
    let namespace = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    let (a, b) = (namespace("a"), namespace("b"));
    for (case, text, want) in [
        ("empty", String::new(), vec![]),
        ("only comments and separators", "# x\n---\n\n---\n# y\n".into(), vec![]),
        ("null documents", "---\nnull\n--- ~\n".into(), vec![]),
        ("two documents", format!("{a}---\n{b}"), vec!["1 Namespace a", "5 Namespace b"]),
        (
            "comment after the separator",
            format!("--- # first\n# more\n{a}---   \n{b}"),
            vec!["3 Namespace a", "7 Namespace b"],
        ),
        (
            "content after the separator",
            "--- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n".into(),
            vec!["1 Namespace a"],
        ),
        (
            "dashes that separate nothing",
            format!("{a}  annotations: {{x: '---'}}\n").replace(": {name: a}", ":\n  name: a"),
            vec!["1 Namespace a"],
        ),
        (
            "carriage returns",
            format!("{a}---\n{b}").replace('\n', "\r\n"),
            vec!["1 Namespace a", "5 Namespace b"],
        ),
        ("byte order mark", format!("\u{feff}{a}"), vec!["1 Namespace a"]),
        (
            "end marks and directives",
            format!("%YAML 1.1\n---\n{a}...\n---\n{b}"),
            vec!["3 Namespace a", "8 Namespace b"],
        ),
        (
            "anchors",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: &n a, labels: {x: *n}}\n".into(),
            vec!["1 Namespace a"],
        ),
        (
            "JSON is YAML",
            "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}".into(),
            vec!["1 Namespace a"],
        ),
    ] {
        let loaded = yaml(&text);
        assert_eq!(
            (names(&loaded), problems(&loaded)),
            (want.into_iter().map(str::to_owned).collect(), vec![]),
            "{case}"
        );
    }
}

#[test]
fn a_broken_document_leaves_its_neighbours() {
    let whole = "apiVersion: v1\nkind: Namespace\nmetadata: {name: NAME}\n";
    for (broken, line, message) in [
        ("a: [", 5, "did not find expected node content, while parsing a flow node"),
        ("a: b\n c: d", 6, "mapping values are not allowed in this context"),
        ("kind: Pod\nkind: Pod", 5, "duplicate key \"kind\""),
        ("a: *x", 5, "unknown anchor"),
        ("just text", 5, "expected a Kubernetes object, found a string"),
        ("- a", 5, "expected a Kubernetes object, found a list"),
        ("apiVersion: v1", 5, "kind: the object has no kind"),
        ("a: .nan", 5, "a: NaN is not a number that JSON knows"),
        ("a: !x 1", 5, "a: invalid type: enum, expected plain data"),
    ] {
        let loaded = yaml(&format!(
            "{}---\n{broken}\n---\n{}",
            whole.replace("NAME", "a"),
            whole.replace("NAME", "z")
        ));
        let names: Vec<_> = loaded.objects.iter().map(|l| l.object.reference().key.name).collect();
        assert_eq!(
            (names, problems(&loaded)),
            (vec!["a".into(), "z".into()], vec![format!("m.yaml:{line}: {message}")]),
            "{broken}"
        );
    }
}

#[test]
fn bytes_that_are_no_text_spoil_only_their_document() {
    let text = b"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\na: b\nc: \xff\n";
    let loaded = parse_bytes(Path::new("m.yaml"), text);
    assert_eq!(
        (names(&loaded), problems(&loaded)),
        (vec!["1 Namespace a".into()], vec!["m.yaml:6: not UTF-8".into()])
    );
}

#[test]
fn lists_are_opened() {
    let want = ["1 Pod default/a", "1 Pod shop/b"];
    let a = r#"{"metadata": {"name": "a"}}"#;
    let b = r#"{"metadata": {"name": "b", "namespace": "shop"}}"#;
    let (full_a, full_b) = (
        a.replacen('{', r#"{"apiVersion": "v1", "kind": "Pod", "#, 1),
        b.replacen('{', r#"{"apiVersion": "v1", "kind": "Pod", "#, 1),
    );
    for text in [
        format!(r#"{{"apiVersion": "v1", "kind": "PodList", "items": [{a}, {b}]}}"#),
        format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{full_a}, {full_b}]}}"#),
        format!(r#"{{"kind": "List", "items": [{{"kind": "List", "items": [{full_a}]}}, {full_b}]}}"#),
    ] {
        let (from_json, from_yaml) = (json(&text), yaml(&text));
        assert_eq!(
            (names(&from_json), problems(&from_json)),
            (want.map(str::to_owned).into(), vec![]),
            "{text}"
        );
        assert_eq!(objects(&from_json), objects(&from_yaml), "{text}");
    }
    assert_eq!(names(&json(&format!("{full_a}\n\n{full_b}\n"))), ["1 Pod default/a", "3 Pod shop/b"]);
}

#[test]
fn faults_in_a_list_are_told_by_the_items_own_path_and_line() {
    let text = "{\"kind\": \"NetworkPolicyList\", \"apiVersion\": \"networking.k8s.io/v1\", \"items\": [\n{\"metadata\": {\"name\": \"a\"}},\n{\"metadata\": {\"name\": \"b\"},\n \"spec\": {\"ingress\": 5}}]}";
    let want = "4: NetworkPolicy default/b: spec.ingress: expected a list, found a number";
    assert_eq!(problems(&json(text)), [format!("m.json:{want}")]);
    assert_eq!(problems(&yaml(text)), [format!("m.yaml:{want}")]);
}

#[test]
fn broken_json_is_told_by_line() {
    let text =
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\n{\n\"a\": }\n";
    let loaded = json(text);
    assert_eq!(
        (names(&loaded), problems(&loaded)),
        (vec!["1 Namespace a".into()], vec!["m.json:3: expected value".into()])
    );
}

#[test]
fn aliases_cannot_make_a_small_file_large() {
    let mut bomb = format!("a0: &a0 {:?}\n", "x".repeat(1000));
    for level in 1..9 {
        let items = vec![format!("*a{}", level - 1); 30].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{items}]").unwrap();
    }
    let loaded = yaml(&bomb);
    assert_eq!((loaded.objects.len(), loaded.problems.len()), (0, 1), "{:?}", problems(&loaded));
}

#[test]
fn one_broken_manifest_among_a_thousand_is_the_only_one_missing() {
    let directory = tempfile::tempdir().unwrap();
    for n in 0..1000 {
        let colon = if n == 500 { ": [" } else { ":" };
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name{colon} p{n}\nspec: {{}}\n"
        );
        fs::write(directory.path().join(format!("{n:04}.yaml")), text).unwrap();
    }
    let loaded = load(&[directory.path().to_owned()]);
    let file = directory.path().join("0500.yaml");
    assert_eq!(loaded.objects.len(), 999);
    let want =
        format!("{}:5: did not find expected ',' or ']', while parsing a flow sequence", file.display());
    assert_eq!(problems(&loaded), [want]);
}

#[test]
fn a_directory_is_its_manifests_and_nothing_below() {
    let directory = tempfile::tempdir().unwrap();
    let namespace = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    fs::create_dir(directory.path().join("below.yaml")).unwrap();
    for file in ["a.yaml", "b.yml", "c.txt", ".d.yaml", "below.yaml/e.yaml", "f.yaml~"] {
        fs::write(directory.path().join(file), namespace(&file[..1].replace('.', "d"))).unwrap();
    }
    fs::write(
        directory.path().join("g.json"),
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"g"}}"#,
    )
    .unwrap();
    let loaded = load(&[
        directory.path().to_owned(),
        directory.path().join("c.txt"),
        directory.path().join("gone.yaml"),
    ]);
    assert_eq!(names(&loaded), ["1 Namespace a", "1 Namespace b", "1 Namespace c", "1 Namespace g"]);
    assert_eq!(loaded.problems.len(), 1, "{:?}", loaded.problems);
}

#[test]
fn of_two_descriptions_the_first_holds_and_a_policy_isolates_twice() {
    let directory = tempfile::tempdir().unwrap();
    let policy = |app: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{podSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{{}}]}}\n"
        )
    };
    let pod = |node: &str| {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: w}}\nspec: {{nodeName: {node}}}\n")
    };
    fs::write(directory.path().join("1.yaml"), policy("a") + &pod("first")).unwrap();
    fs::write(directory.path().join("2.yaml"), policy("b") + &pod("second")).unwrap();
    fs::write(directory.path().join("3.yaml"), policy("a")).unwrap();
    let loaded = load(&[directory.path().to_owned()]);
    let (mut pods, mut policies) = (Vec::new(), Vec::new());
    for object in objects(&loaded) {
        match object {
            Object::Pod(pod) => pods.push(pod.node.unwrap().to_string()),
            Object::NetworkPolicy(NetworkPolicy { key, ingress, .. }) => {
                policies.push((key, ingress.unwrap().len()));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pods, ["first"]);
    assert_eq!(policies, [(Key::new("default", "p"), 1), (Key::new("default", "p (again at 2.yaml:1)"), 0)]);
    assert_eq!(loaded.problems.len(), 3, "{:?}", loaded.problems);
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "apiVersion",
        "kind",
        "metadata",
        "name",
        "namespace",
        "labels",
        "spec",
        "status",
        "items",
        "NetworkPolicy",
        "Pod",
        "List",
        "v1",
        "networking.k8s.io/v1",
        "podSelector",
        "matchLabels",
        "ingress",
        "egress",
        "from",
        "ports",
        "port",
        "endPort",
        "ipBlock",
        "cidr",
        "10.0.0.0/8",
        "80",
        "null",
        ":",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "---\n",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&a ",
        "*a",
        "!t ",
        "\"",
        "'",
        "|\n",
        "?",
        "<<",
        "#",
        "%",
        "\t",
        "\u{0}",
        "é",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        parse_bytes(Path::new("m.yaml"), &bytes);
        parse_bytes(Path::new("m.json"), &bytes);
    }

    #[test]
    fn anything_like_a_manifest_is_read_without_a_panic(words in prop::collection::vec(word(), 0..60)) {
        parse_bytes(Path::new("m.yaml"), words.concat().as_bytes());
        parse_bytes(Path::new("m.json"), words.concat().as_bytes());
    }

    /// Whatever is done to a manifest, a problem is told or its meaning is read.
    #[test]
    fn a_damaged_policy_never_vanishes_silently(at in 0usize..200, byte in any::<u8>().prop_filter("a comment is no damage", |byte| *byte != b'#')) {
        let mut text = b"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: db\n  namespace: shop\nspec:\n  podSelector: {}\n  ingress:\n  - from:\n    - podSelector: {matchLabels: {app: web}}\n".to_vec();
        let at = at % text.len();
        text[at] = byte;
        let loaded = parse_bytes(Path::new("m.yaml"), &text);
        prop_assert!(!loaded.objects.is_empty() || !loaded.problems.is_empty() || !loaded.ignored.is_empty());
        for object in objects(&loaded) {
            if let Object::NetworkPolicy(policy) = object {
                let open = policy.ingress.iter().flatten().any(|rule| rule.peers.is_empty());
                prop_assert!(!open, "{policy:?}");
            }
        }
    }
}
