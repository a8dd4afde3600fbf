use std::collections::BTreeSet;

use super::{Other, Signs, judge, packet_filter::take};

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn each_enforcer_is_known_by_what_it_leaves_on_the_node() {
    let ordinary = || Signs {
        interfaces: set(&["lo", "eth0", "cni0", "flannel.1", "veth0a1b2c3d"]),
        chains: set(&["filter", "nat", "KUBE-SERVICES", "KUBE-FIREWALL", "FLANNEL-FWD", "FORWARD"]),
        plugins: set(&["flannel", "portmap", "bulkhead-cni"]),
        pins: set(&["bulkhead"]),
        processes: set(&["kubelet", "containerd", "flanneld", "bulkhead", "k3s-server"]),
        labels: set(&["app=flannel", "k8s-app=kube-dns", "app=web"]),
        pods: set(&["kube-flannel-ds-x7k2p", "coredns-5d78c9869d-abcde"]),
    };
    let knp = "kube-network-policies";
    let router = "kube-router (k3s's network policies are its as well)";
    for (case, signs, want) in [
        ("flannel and us", ordinary(), vec![]),
        (
            "flannel's chart with netpol.enabled: a table of nftables",
            Signs { chains: set(&[knp, "postrouting"]), ..ordinary() },
            vec![(knp, vec!["packet filter kube-network-policies"])],
        ),
        (
            "its own DaemonSet",
            Signs {
                labels: set(&["app=kube-network-policies"]),
                pods: set(&["kube-network-policies-8xk2j"]),
                ..ordinary()
            },
            vec![(knp, vec!["a pod with app=kube-network-policies", "pod kube-network-policies-8xk2j"])],
        ),
        (
            "a process that shares the node's process table",
            Signs { processes: set(&["kube-network-po"]), ..ordinary() },
            vec![(knp, vec!["process kube-network-po"])],
        ),
        (
            "k3s: many chains, of which two are enough",
            Signs {
                chains: set(&["KUBE-NWPLCY-A", "KUBE-POD-FW-B", "KUBE-POD-FW-C", "KUBE-ROUTER-INPUT"]),
                ..ordinary()
            },
            vec![(router, vec!["packet filter KUBE-NWPLCY-A", "packet filter KUBE-POD-FW-B"])],
        ),
        (
            "Calico beside Cilium's remains",
            Signs { interfaces: set(&["cali0a1b2c3d4e5"]), pins: set(&["cilium"]), ..ordinary() },
            vec![("Calico", vec!["interface cali0a1b2c3d4e5"]), ("Cilium", vec!["pin cilium"])],
        ),
        (
            "Antrea by its process and plugin",
            Signs { processes: set(&["antrea-agent"]), plugins: set(&["antrea"]), ..ordinary() },
            vec![("Antrea", vec!["CNI plugin antrea", "process antrea-agent"])],
        ),
    ] {
        let want: Vec<_> = want
            .into_iter()
            .map(|(name, evidence)| Other {
                name: name.to_owned(),
                evidence: evidence.into_iter().map(str::to_owned).collect(),
            })
            .collect();
        assert_eq!(judge(&signs), want, "{case}");
    }
}

/// A netlink message of this type with this body.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("short");
    let mut message = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

fn attribute(kind: u16, value: &str) -> Vec<u8> {
    let length = u16::try_from(4 + value.len() + 1).expect("short");
    let mut attribute = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value.as_bytes(), b"\0"].concat();
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

#[test]
fn chains_are_read_from_the_kernels_answer_and_a_broken_one_is_an_error() {
    let chain = |table: &str, name: &str| {
        message(
            0xa03,
            &[&[2, 0, 0, 0][..], &attribute(1, table), &attribute(2, "x"), &attribute(3, name)].concat(),
        )
    };
    let (mut names, two) =
        (BTreeSet::new(), [chain("filter", "KUBE-ROUTER-INPUT"), chain("nat", "A")].concat());
    assert!(!take(&two, &mut names).expect("read"));
    assert_eq!(names, set(&["filter", "KUBE-ROUTER-INPUT", "nat", "A"]));
    assert!(take(&message(3, &[0; 4]), &mut names).expect("read"), "the end");
    let denied = take(&message(2, &(-1_i32).to_ne_bytes()), &mut names).expect_err("an error");
    assert_eq!(denied.raw_os_error(), Some(1));
    for cut in 1..two.len() / 2 {
        assert!(take(&two[..cut], &mut names).is_err(), "{cut}");
    }
}
