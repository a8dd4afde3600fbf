//! ADD: what the agent is told, what the runtime gets back, and what happens when the agent is not well.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bulkhead_cni::protocol::{AttachmentId, CniAnswer, CniRequest, PodName, Sandbox};
use serde_json::{Value, json};

use crate::{
    agent::{FakeAgent, Part},
    plugin::{Invocation, conf},
    pod::{Pod, ip},
};

fn expected(pod: &Pod, addresses: &[&str]) -> CniRequest {
    CniRequest::Add {
        attachment: AttachmentId { container: "c0ffee".into(), ifname: "eth0".into() },
        sandbox: Sandbox {
            network: "cbr0".into(),
            netns: pod.netns(),
            host_ifname: "veth1".into(),
            host_ifindex: pod.host_ifindex().try_into().unwrap(),
            mac: [2, 0, 0, 0, 0, 5],
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod: Some(PodName { namespace: "shop".into(), name: "cart-0".into(), uid: Some("11-22".into()) }),
        },
    }
}

#[test]
fn every_version_tells_the_agent_where_the_pod_hangs_and_hands_the_result_on() {
    let pod = Pod::wired();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let agent = FakeAgent::content();
        let previous = pod.result(version, &["10.244.1.5/24", "fd00:1::5/64"]);
        let seen = Invocation::of("ADD", &pod, &conf(version, &agent.socket, Some(&previous))).run();
        assert_eq!((seen.answer(), seen.stderr.as_str()), (previous, ""), "{version}");
        assert_eq!(agent.heard(), [expected(&pod, &["10.244.1.5", "fd00:1::5"])], "{version}");
    }
}

#[test]
fn the_result_is_handed_on_byte_for_byte() {
    let (pod, agent) = (Pod::wired(), FakeAgent::content());
    let previous =
        r#"{ "z":1.500,"big":123456789012345678901234567890,  "ips":[{"address":"10.244.1.5/24"}],"z":2 }"#;
    let socket = agent.socket.display();
    let stdin = format!(
        r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"bulkhead-cni","socket":"{socket}","prevResult":{previous}}}"#
    );
    let seen = Invocation::of("ADD", &pod, &Value::Null).reading(stdin).run();
    assert_eq!((seen.code, seen.stdout.trim_end_matches('\n')), (Some(0), previous));
}

#[test]
fn an_incomplete_list_of_interfaces_is_completed_by_the_kernel() {
    let pod = Pod::wired();
    for interfaces in [
        json!(null),
        json!([]),
        json!([{"name": "eth0", "sandbox": pod.netns()}]),
        json!([{"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/proc/7/ns/net"}, {"name": "veth1"}]),
    ] {
        let agent = FakeAgent::content();
        let previous =
            json!({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": [{"address": "10.244.1.5/24"}]});
        let seen = Invocation::of("ADD", &pod, &conf("1.0.0", &agent.socket, Some(&previous))).run();
        assert_eq!((seen.answer(), seen.stderr.as_str()), (previous, ""), "{interfaces}");
        assert_eq!(agent.heard(), [expected(&pod, &["10.244.1.5"])], "{interfaces}");
    }
}

#[test]
fn where_the_result_contradicts_the_kernel_the_kernel_counts_and_a_warning_says_so() {
    let (pod, agent) = (Pod::wired(), FakeAgent::content());
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "vethX"}, {"name": "eth0", "mac": "02:00:00:00:00:99", "sandbox": pod.netns()},
        ],
        "ips": [{"address": "10.244.1.5/24", "interface": 1}],
    });
    let seen = Invocation::of("ADD", &pod, &conf("1.0.0", &agent.socket, Some(&previous))).run();
    assert_eq!(seen.answer(), previous);
    assert_eq!(agent.heard(), [expected(&pod, &["10.244.1.5"])]);
    assert!(
        seen.stderr.contains("02:00:00:00:00:99") && seen.stderr.contains("does not list veth1"),
        "{seen:?}"
    );
}

#[test]
fn what_is_not_a_pod_behind_a_veth_is_refused_without_asking_the_agent() {
    let (pod, agent) = (Pod::wired(), FakeAgent::content());
    let previous = pod.result("1.0.0", &["10.244.1.5/24"]);
    let conf = conf("1.0.0", &agent.socket, Some(&previous));
    let add = || Invocation::of("ADD", &pod, &conf);
    ip(&["-n", &pod.pod, "link", "add", "br9", "type", "bridge"]);
    ip(&["-n", &pod.pod, "link", "add", "va", "type", "veth", "peer", "name", "vb"]);
    let named = |name: &str| {
        let text = conf.to_string().replace("\"eth0\"", &format!("\"{name}\""));
        add().with("CNI_IFNAME", name).reading(text).run()
    };
    named("nosuch").refused(101, "interface nosuch in");
    named("br9").refused(101, "is not one end of a veth pair to the host");
    named("va").refused(101, "is not one end of a veth pair to the host");
    add()
        .with("CNI_NETNS", "/run/netns/no-such")
        .run()
        .refused(4, "CNI_NETNS: cannot open /run/netns/no-such");
    add().with("CNI_NETNS", "/dev/null").run().refused(4, "CNI_NETNS: cannot enter /dev/null");
    assert_eq!(agent.heard(), []);
}

#[test]
fn a_pair_whose_other_end_is_in_a_third_namespace_is_not_the_hosts() {
    let (pod, elsewhere, agent) = (Pod::wired(), Pod::wired(), FakeAgent::content());
    let previous = pod.result("1.0.0", &["10.244.1.5/24"]);
    // Same names and indexes on both hosts: only the namespace tells them apart.
    let seen = Invocation::of("ADD", &elsewhere, &conf("1.0.0", &agent.socket, Some(&previous)))
        .with("CNI_NETNS", pod.netns().to_str().unwrap())
        .run();
    assert_eq!(pod.host_ifindex(), elsewhere.host_ifindex());
    seen.refused(101, "the host's veth1 is not its other end");
    assert_eq!(agent.heard(), []);
}

#[test]
fn a_missing_result_or_variable_is_named() {
    let (pod, agent) = (Pod::wired(), FakeAgent::content());
    let with_result = conf("1.0.0", &agent.socket, Some(&pod.result("1.0.0", &["10.244.1.5/24"])));
    let alone = conf("1.0.0", &agent.socket, None);
    Invocation::of("ADD", &pod, &alone)
        .run()
        .refused(7, "prevResult: missing; bulkhead runs after an interface plugin");
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        let seen = Invocation::of("ADD", &pod, &with_result).without(name).run();
        seen.refused(4, &format!("{name}: missing"));
        Invocation::of("ADD", &pod, &with_result)
            .with(name, "")
            .run()
            .refused(4, &format!("{name}: missing"));
    }
    let args = "K8S_POD_NAMESPACE";
    Invocation::of("ADD", &pod, &with_result).with("CNI_ARGS", args).run().refused(4, "CNI_ARGS: ");
    assert_eq!(agent.heard(), []);
}

/// ADD under both policies, with `socket` leading to an agent that is not well.
fn both_policies(pod: &Pod, socket: &Path, timeout_seconds: u64) -> [crate::plugin::Seen; 2] {
    ["closed", "open"].map(|policy| {
        let mut conf = conf("1.1.0", socket, Some(&pod.result("1.1.0", &["10.244.1.5/24"])));
        conf["failurePolicy"] = json!(policy);
        conf["timeoutSeconds"] = json!(timeout_seconds);
        Invocation::of("ADD", pod, &conf).run()
    })
}

#[test]
fn without_an_agent_the_failure_policy_decides() {
    let pod = Pod::wired();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let stale = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for socket in [&socket, &stale] {
        let [closed, open] = both_policies(&pod, socket, 10);
        closed.refused(11, &format!("no agent answers on {}", socket.display()));
        assert_eq!(open.answer(), pod.result("1.1.0", &["10.244.1.5/24"]));
        assert!(open.stderr.contains("starts without enforcement (failurePolicy: open)"), "{open:?}");
    }
}

#[test]
fn an_agent_that_is_not_well_counts_as_absent() {
    let pod = Pod::wired();
    for (case, part, code, text) in [
        ("not yet", Part::Answers(CniAnswer::TryAgain { message: "pod unknown".into() }), 11, "pod unknown"),
        ("closes unread", Part::ClosesUnread, 11, ""),
        ("closes unanswered", Part::ClosesUnanswered, 11, "closed the connection without an answer"),
        ("half a line", Part::Says("{\"answer\":\"ok\"}"), 11, "closed the connection without an answer"),
        ("garbage", Part::Says("garbage\n"), 100, "not in our protocol"),
        ("an answer we do not know", Part::Says("{\"answer\":\"maybe\"}\n"), 100, "not in our protocol"),
        ("a line without end", Part::SaysTooMuch, 100, "not one line of at most 1048576 bytes"),
    ] {
        let agent = FakeAgent::playing(part);
        let [closed, open] = both_policies(&pod, &agent.socket, 10);
        let (_, got, message) = closed.error();
        assert!(got == code && message.contains(text), "{case}: {closed:?}");
        assert_eq!(open.answer(), pod.result("1.1.0", &["10.244.1.5/24"]), "{case}");
    }
}

#[test]
fn a_slow_agent_is_given_the_deadline_and_no_more() {
    let pod = Pod::wired();
    for part in [Part::IsSilent, Part::Dribbles] {
        let agent = FakeAgent::playing(part);
        let conf = {
            let mut conf = conf("1.1.0", &agent.socket, Some(&pod.result("1.1.0", &["10.244.1.5/24"])));
            conf["timeoutSeconds"] = json!(1);
            conf
        };
        let begin = Instant::now();
        Invocation::of("ADD", &pod, &conf).run().refused(11, "did not answer within 1 s");
        assert!(begin.elapsed() >= Duration::from_secs(1), "gave up early: {:?}", begin.elapsed());
    }
}

#[test]
fn a_refusal_is_final_under_both_policies() {
    let pod = Pod::wired();
    let refusal = CniAnswer::Failed { code: 7, message: "address 10.244.1.5 belongs to another pod".into() };
    let agent = FakeAgent::playing(Part::Answers(refusal));
    for seen in both_policies(&pod, &agent.socket, 10) {
        seen.refused(7, "address 10.244.1.5 belongs to another pod");
    }
}
