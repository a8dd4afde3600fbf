use std::{collections::BTreeMap, sync::Arc};

use super::{objects, problems, yaml};
use crate::cluster::compact::{Few, SharedSet};
use crate::cluster::object::{
    ContainerPort, Key, Labels, NAMESPACE_NAME_LABEL, Namespace, Node, Object, Pod, Protocol, Workload,
};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn nobody(namespace: &str, name: &str) -> Pod {
    Pod {
        key: Key::new(namespace, name),
        uid: None,
        labels: Labels::new(),
        node: None,
        host_network: false,
        finished: false,
        ips: [].into(),
        ports: [].into(),
        workload: None,
    }
}

#[test]
fn a_running_pod_is_read_as_the_api_server_shows_it() {
    let loaded = yaml(
        r"
apiVersion: v1
kind: Pod
metadata:
  name: web-5d4f-x
  namespace: shop
  uid: 0a
  labels: {app: web, pod-template-hash: 5d4f, empty: }
  managedFields: [{manager: kubelet, fieldsV1: {'f:metadata': {}}}]
  ownerReferences:
  - {apiVersion: v1, kind: Foo, name: other}
  - {apiVersion: apps/v1, kind: ReplicaSet, name: web-5d4f, controller: true}
spec:
  nodeName: n1
  initContainers:
  - {name: once, ports: [{name: gone, containerPort: 1}]}
  - {name: side, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
  containers:
  - {name: a, ports: [{name: http, containerPort: 8080}, {containerPort: 1}, {name: dns, containerPort: 53, protocol: UDP}]}
  - {name: b}
status:
  phase: Running
  podIP: 10.0.1.5
  podIPs: [{ip: 10.0.1.5}, {ip: 'fd00::5'}]
",
    );
    let port = |name: &str, protocol, port| ContainerPort { name: name.to_owned(), protocol, port };
    let want = Pod {
        labels: labels(&[("app", "web"), ("pod-template-hash", "5d4f"), ("empty", "")]),
        node: Some("n1".into()),
        ips: Few::from(["10.0.1.5".parse().unwrap(), "fd00::5".parse().unwrap()]),
        ports: SharedSet::from([
            port("metrics", Protocol::Tcp, 9090),
            port("http", Protocol::Tcp, 8080),
            port("dns", Protocol::Udp, 53),
        ]),
        workload: Some(Arc::new(Workload { kind: "Deployment".into(), name: "web".into() })),
        uid: Some("0a".into()),
        ..nobody("shop", "web-5d4f-x")
    };
    assert_eq!((objects(&loaded), problems(&loaded)), (vec![Object::Pod(want)], vec![]));
}

#[test]
fn pods_differ_only_by_what_can_change_an_outcome() {
    let finished = |phase: &str| {
        (format!("status: {{phase: {phase}}}"), Pod { finished: true, ..nobody("default", "p") })
    };
    for (rest, want) in [
        (String::new(), nobody("default", "p")),
        (
            "spec: {hostNetwork: true, nodeName: ''}".into(),
            Pod { host_network: true, ..nobody("default", "p") },
        ),
        finished("Succeeded"),
        finished("Failed"),
        ("status: {phase: Pending, podIP: ''}".into(), nobody("default", "p")),
        (
            "status: {podIP: 10.0.0.9, podIPs: []}".into(),
            Pod { ips: Few::from(["10.0.0.9".parse().unwrap()]), ..nobody("default", "p") },
        ),
        ("metadata: {name: p, uid: 5-6}".into(), Pod { uid: Some("5-6".into()), ..nobody("default", "p") }),
        (
            "metadata: {name: p, uid: 5-6, annotations: {kubernetes.io/config.mirror: 1a2b}}".into(),
            Pod { uid: Some("1a2b".into()), ..nobody("default", "p") },
        ),
        (
            "spec: {containers: [{image: x, env: [{name: a}]}], tolerations: []}".into(),
            nobody("default", "p"),
        ),
    ] {
        let metadata = if rest.starts_with("metadata") { "" } else { "metadata: {name: p}\n" };
        let loaded = yaml(&format!("apiVersion: v1\nkind: Pod\n{metadata}{rest}\n"));
        assert_eq!((objects(&loaded), problems(&loaded)), (vec![Object::Pod(want)], vec![]), "{rest}");
    }
}

#[test]
fn owners_are_told_as_the_workload_a_person_wrote() {
    for (owner, hash, want) in [
        ("{kind: ReplicaSet, name: web-5d4f, controller: true}", "5d4f", Some(("Deployment", "web"))),
        ("{kind: ReplicaSet, name: web-5d4f, controller: true}", "other", Some(("ReplicaSet", "web-5d4f"))),
        ("{kind: StatefulSet, name: db, controller: true}", "db", Some(("StatefulSet", "db"))),
        ("{kind: ReplicaSet, name: web-5d4f, controller: false}", "5d4f", None),
    ] {
        let loaded = yaml(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, labels: {{pod-template-hash: {hash}}}, ownerReferences: [{owner}]}}\n"
        ));
        let [Object::Pod(pod)] = &objects(&loaded)[..] else { panic!("{owner}") };
        let got = pod.workload.as_ref().map(|w| (w.kind.as_ref(), w.name.as_ref()));
        assert_eq!(got, want, "{owner} {hash}");
    }
}

/// Left out rather than read as a pod that no policy selects.
#[test]
fn a_pod_that_might_escape_its_policies_is_left_out() {
    for (meta, rest, problem) in [
        (
            "labels: {app: 1}",
            "",
            "m.yaml:3: Pod default/p: metadata.labels.app: expected a string, found a number",
        ),
        ("labels: [app]", "", "m.yaml:3: Pod default/p: metadata.labels: expected a map, found a list"),
        (
            "labels: {app: a b}",
            "",
            "m.yaml:3: Pod default/p: metadata.labels.app: \"a b\" is not a label value",
        ),
        (
            "",
            "spec: {hostNetwork: 1}",
            "m.yaml:4: Pod default/p: spec.hostNetwork: invalid type: integer `1`, expected a boolean",
        ),
        (
            "",
            "spec: {nodeName: 1}",
            "m.yaml:4: Pod default/p: spec.nodeName: expected a string, found a number",
        ),
        (
            "",
            "status: {phase: 1}",
            "m.yaml:4: Pod default/p: status.phase: expected a string, found a number",
        ),
        ("", "spec: []", "m.yaml:4: Pod default/p: spec: expected a map, found a list"),
        ("namespace: 5", "", "m.yaml:3: metadata.namespace: expected a string, found a number"),
    ] {
        let loaded = yaml(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, {meta}}}\n{rest}\n"));
        assert_eq!(
            (objects(&loaded), problems(&loaded)),
            (vec![], vec![problem.to_owned()]),
            "{meta} {rest}"
        );
    }
}

#[test]
fn an_unreadable_part_of_a_pod_that_opens_nothing_leaves_the_rest() {
    let one = Pod { ips: Few::from(["10.0.0.1".parse().unwrap()]), ..nobody("default", "p") };
    for (rest, want, problem) in [
        (
            "status: {podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0}]}",
            one,
            "status.podIPs[1].ip: \"10.0.0\" is not an IP address",
        ),
        ("status: {podIP: x}", nobody("default", "p"), "status.podIP: \"x\" is not an IP address"),
        (
            "spec: {containers: [{ports: [{name: a, containerPort: 0}]}]}",
            nobody("default", "p"),
            "spec.containers[0].ports[0].containerPort: 0 is not a port from 1 to 65535",
        ),
        (
            "spec: {containers: [{ports: [{name: a}]}]}",
            nobody("default", "p"),
            "spec.containers[0].ports[0]: missing field `containerPort`",
        ),
        (
            "spec: {containers: [{ports: [{name: a, containerPort: 1, protocol: x}]}]}",
            nobody("default", "p"),
            "spec.containers[0].ports[0].protocol: \"x\" is none of TCP, UDP, SCTP",
        ),
    ] {
        let loaded = yaml(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n{rest}\n"));
        let want = (vec![Object::Pod(want)], vec![format!("m.yaml:4: Pod default/p: {problem}")]);
        assert_eq!((objects(&loaded), problems(&loaded)), want, "{rest}");
    }
}

#[test]
fn a_namespace_always_carries_its_name() {
    let loaded = yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {bulkhead.io/tenant: red, kubernetes.io/metadata.name: x}\n  annotations: {bulkhead.io/allow-tenants: '*'}\n",
    );
    let want = Namespace {
        name: "shop".into(),
        labels: labels(&[("bulkhead.io/tenant", "red"), (NAMESPACE_NAME_LABEL, "shop")]),
        annotations: labels(&[("bulkhead.io/allow-tenants", "*")]),
    };
    assert_eq!((objects(&loaded), problems(&loaded)), (vec![Object::Namespace(want)], vec![]));
}

#[test]
fn an_unreadable_tenant_is_a_tenant_of_its_own() {
    let tenant = |name: &str| {
        let loaded = yaml(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{bulkhead.io/tenant: 1}}}}\n"
        ));
        let [Object::Namespace(namespace)] = &objects(&loaded)[..] else { panic!("{name}") };
        assert_eq!(loaded.problems.len(), 1);
        namespace.labels.get("bulkhead.io/tenant").expect("a tenant").to_string()
    };
    assert_eq!(tenant("a"), "<unreadable, a>");
    assert_ne!(tenant("a"), tenant("b"));
}

#[test]
fn a_node_has_the_addresses_of_its_status_and_of_flannel() {
    let loaded = yaml(
        r"
apiVersion: v1
kind: Node
metadata:
  name: n1
  annotations:
    flannel.alpha.coreos.com/public-ip: 192.0.2.7
    flannel.alpha.coreos.com/public-ipv6: '2001:db8::7'
    flannel.alpha.coreos.com/backend-type: vxlan
spec: {podCIDR: 10.9.0.0/24, podCIDRs: [10.1.1.5/24, 'fd00:1::/64']}
status:
  addresses:
  - {type: InternalIP, address: 192.0.2.8}
  - {type: ExternalIP, address: 198.51.100.1}
  - {type: Hostname, address: n1}
  - {type: InternalIP, address: nonsense}
",
    );
    let want = Node {
        name: "n1".into(),
        addresses: ["192.0.2.7", "2001:db8::7", "192.0.2.8", "198.51.100.1"]
            .map(|a| a.parse().unwrap())
            .into(),
        pod_cidrs: ["10.1.1.0/24", "fd00:1::/64"].map(|c| c.parse().unwrap()).into(),
    };
    let problem = "m.yaml:16: Node n1: status.addresses[3].address: \"nonsense\" is not an IP address";
    assert_eq!((objects(&loaded), problems(&loaded)), (vec![Object::Node(want)], vec![problem.to_owned()]));
}

#[test]
fn other_kinds_are_counted() {
    let loaded = yaml(
        "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: projectcalico.org/v3\nkind: NetworkPolicy\n---\nkind: List\nitems: [{kind: Deployment, apiVersion: apps/v1}]\n---\nkind: SecretList\napiVersion: v1\nitems: [{}, {}]\n",
    );
    let want = [("Deployment", 2), ("NetworkPolicy", 1), ("Secret", 2)].map(|(k, n)| (k.to_owned(), n));
    assert_eq!((loaded.ignored.clone(), problems(&loaded)), (BTreeMap::from(want), vec![]));
}
