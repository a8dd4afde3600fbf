//! Whose an address is: of pods that have finished, of the next pod that gets it, of pods on the host's network.

use lab::Family;
use serde_json::json;

use crate::stage::{Scenario, Stage, Step, label, pod, policy};

const FROM_WEB: &str =
    "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]";

#[test]
fn an_address_is_whose_the_cluster_says_it_is_and_a_reused_one_inherits_nothing() {
    let stage = Stage::set(&[]);
    stage.play(SCENARIOS);

    // The address of a peer goes to a stranger, while the finished pod's object is still there.
    let lab = &stage.lab;
    let addresses = [Family::V4, Family::V6].map(|family| lab.pod("shop/web-1").ip(family));
    let manifest = lab.manifests().snapshot().unwrap()["pod-shop-web-1.yaml"].clone();
    lab.stop_pod("shop/web-1").unwrap();
    lab.manifests().write_text("pod-shop-web-1.yaml", &manifest).unwrap();
    finish(lab, "shop/web-1");
    lab.node(1).forget_last_address().unwrap();
    let heir = lab.start_pod(pod("other/heir-1", "heir")).unwrap();
    assert_eq!([Family::V4, Family::V6].map(|family| heir.ip(family)), addresses);
    Stage::resumed(stage.lab).play(&[Scenario {
        name: "a reused address",
        steps: &[
            Step {
                name: "is the new pod's",
                act: |lab| policy(lab, "db", "db", FROM_WEB),
                then: &["TCP 80: db* <- web-2", "UDP 53: db* <- web-2"],
            },
            Step {
                name: "and serves the new pod's policies",
                act: |lab| {
                    policy(lab, "db", "db", "policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}, podSelector: {matchLabels: {app: heir}}}]}]");
                },
                then: &["TCP 80: db* <- heir-1"],
            },
        ],
    }]);
}

fn finish(lab: &lab::Lab, pod: &str) {
    lab.edit("Pod", pod, |pod| pod["status"]["phase"] = "Succeeded".into()).unwrap();
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a pod that has finished",
        steps: &[
            Step {
                name: "was a peer",
                act: |lab| policy(lab, "db", "db", FROM_WEB),
                then: &["TCP 80: db* <- web*"],
            },
            Step {
                name: "is nobody's peer",
                act: |lab| finish(lab, "shop/web-2"),
                then: &["TCP 80: db* <- web-1", "UDP 53: db* <- web-1"],
            },
        ],
    },
    Scenario {
        name: "a pod",
        steps: &[
            Step {
                name: "that is being deleted is still one",
                act: |lab| {
                    policy(lab, "db", "db", FROM_WEB);
                    lab.edit("Pod", "shop/web-1", |pod| {
                        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                    })
                    .unwrap();
                },
                then: &["TCP 80: db* <- web*"],
            },
            Step {
                name: "that is pending with an address is one",
                act: |lab| {
                    lab.edit("Pod", "shop/web-2", |pod| pod["status"]["phase"] = "Pending".into()).unwrap();
                },
                then: &["TCP 80: db* <- web*"],
            },
        ],
    },
    Scenario {
        name: "an address of the pod network without a known pod",
        steps: &[
            Step {
                name: "is reached and reaches where nothing is isolated",
                act: |lab| lab.delete("Pod", "other/guest-2").unwrap(),
                then: &["TCP 80:"],
            },
            Step {
                name: "matches no selector",
                act: |lab| {
                    policy(
                        lab,
                        "db",
                        "db",
                        "policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]",
                    );
                },
                then: &["TCP 80: db* <- web* db* probe-1 job-2 guest-1"],
            },
            Step {
                name: "matches a rule for everybody",
                act: |lab| {
                    policy(lab, "db", "db", "policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]");
                },
                then: &["TCP 80:"],
            },
            Step {
                name: "is of another tenant than any",
                act: |lab| {
                    label(lab, "Namespace", "shop", ("bulkhead.io/tenant", "red"));
                    label(lab, "Namespace", "other", ("bulkhead.io/tenant", "red"));
                },
                then: &["TCP 80: web* db* guest-1 || guest-2"],
            },
        ],
    },
    Scenario {
        name: "a pod on the host's network",
        steps: &[
            Step {
                name: "is not selected as a peer",
                act: |lab| {
                    policy(lab, "db", "db", FROM_WEB);
                    let node = lab.node(2);
                    let status = json!({
                        "phase": "Running", "hostIP": node.ipv4(), "podIP": node.ipv4(),
                        "podIPs": [{"ip": node.ipv4()}, {"ip": node.ipv6()}],
                    });
                    lab.manifests()
                        .write(&json!({
                            "apiVersion": "v1", "kind": "Pod",
                            "metadata": {"namespace": "shop", "name": "proxy", "labels": {"app": "web"}},
                            "spec": {"nodeName": "node-2", "hostNetwork": true, "containers": [{"name": "main"}]},
                            "status": status,
                        }))
                        .unwrap();
                },
                then: &["TCP 80: db* <- web*"],
            },
            Step {
                name: "is no subject",
                act: |lab| policy(lab, "proxy", "web", "policyTypes: [Ingress]"),
                then: &["TCP 80: db* <- web*; web* <-"],
            },
            Step {
                name: "is matched by its node's addresses",
                act: |lab| {
                    lab.delete("NetworkPolicy", "shop/proxy").unwrap();
                    policy(
                        lab,
                        "out",
                        "db",
                        "policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.168.77.2/32}}, {ipBlock: {cidr: 'fd00:c0:a8:4d::2/128'}}]}]",
                    );
                },
                then: &["TCP 80: db* <- web*; db* -> node-2"],
            },
        ],
    },
];
