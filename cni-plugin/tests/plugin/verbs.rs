//! Every verb but ADD, and what is wrong before a verb is reached.

use std::{collections::BTreeSet, path::Path};

use bulkhead_cni::protocol::{AttachmentId, CniAnswer, CniRequest};
use serde_json::json;

use crate::{
    agent::{FakeAgent, Part},
    plugin::{Invocation, Seen, conf},
    pod::{Pod, ip},
};

const NOWHERE: &str = "/nonexistent/agent.sock";

fn attachment() -> AttachmentId {
    AttachmentId { container: "c0ffee".into(), ifname: "eth0".into() }
}

#[test]
fn del_is_told_to_the_agent_in_every_version_and_as_often_as_asked() {
    let (pod, agent) = (Pod::wired(), FakeAgent::content());
    let versions = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    for version in versions {
        let conf = conf(version, &agent.socket, Some(&pod.result(version, &["10.244.1.5/24"])));
        Invocation::of("DEL", &pod, &conf).run().silent_success();
        Invocation::of("DEL", &pod, &conf).run().silent_success();
    }
    let told = CniRequest::Del { attachment: attachment() };
    assert_eq!(agent.heard(), vec![told; 2 * versions.len()]);
}

#[test]
fn del_needs_neither_result_nor_namespace_nor_readable_arguments() {
    let (pod, agent) = (Pod::wired(), FakeAgent::content());
    let alone = conf("1.1.0", &agent.socket, None);
    let unreadable = conf("1.1.0", &agent.socket, Some(&json!({"ips": 7})));
    ip(&["netns", "del", &pod.pod]);
    Invocation::of("DEL", &pod, &alone).run().silent_success();
    Invocation::of("DEL", &pod, &alone).without("CNI_NETNS").run().silent_success();
    Invocation::of("DEL", &pod, &unreadable).with("CNI_ARGS", "garbage").run().silent_success();
    assert_eq!(agent.heard(), vec![CniRequest::Del { attachment: attachment() }; 3]);
}

#[test]
fn del_succeeds_whatever_state_the_agent_is_in() {
    let pod = Pod::wired();
    let del = |socket: &Path| {
        let mut conf = conf("1.1.0", socket, None);
        conf["timeoutSeconds"] = json!(1);
        Invocation::of("DEL", &pod, &conf).run()
    };
    del(Path::new(NOWHERE)).success_with_warning("no agent answers on /nonexistent/agent.sock");
    for (part, warning) in [
        (Part::IsSilent, "did not answer within 1 s"),
        (Part::Says("garbage\n"), "not in our protocol"),
        (Part::Answers(CniAnswer::TryAgain { message: "busy".into() }), "busy"),
        (Part::Answers(CniAnswer::Failed { code: 5, message: "map is full".into() }), "map is full"),
    ] {
        del(&FakeAgent::playing(part).socket).success_with_warning(warning);
    }
}

#[test]
fn del_still_wants_to_know_what_to_delete() {
    let pod = Pod::wired();
    let conf = conf("1.1.0", Path::new(NOWHERE), None);
    Invocation::of("DEL", &pod, &conf)
        .without("CNI_CONTAINERID")
        .run()
        .refused(4, "CNI_CONTAINERID: missing");
    Invocation::of("DEL", &pod, &conf).reading("garbage").run().refused(6, "");
}

#[test]
fn check_has_the_agent_compare_and_reports_what_it_says() {
    let pod = Pod::wired();
    let check = |version: &str, part: Part| {
        let agent = FakeAgent::playing(part);
        let conf = conf(version, &agent.socket, Some(&pod.result(version, &["10.244.1.5/24"])));
        (Invocation::of("CHECK", &pod, &conf).run(), agent.heard())
    };
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let (seen, heard) = check(version, Part::Answers(CniAnswer::Ok));
        seen.silent_success();
        assert!(
            matches!(&heard[..], [CniRequest::Check { attachment: a, sandbox }]
                if *a == attachment() && sandbox.host_ifname == "veth1" && sandbox.addresses.len() == 1),
            "{heard:?}"
        );
    }
    let gone = CniAnswer::Failed { code: 3, message: "not enforced".into() };
    check("1.1.0", Part::Answers(gone)).0.refused(3, "not enforced");
    let (seen, heard) = check("0.3.1", Part::Answers(CniAnswer::Ok));
    seen.refused(1, "CHECK needs 0.4.0 or newer");
    assert_eq!(heard, []);
}

#[test]
fn check_fails_when_it_cannot_verify_even_under_an_open_policy() {
    let pod = Pod::wired();
    let mut conf = conf("1.1.0", Path::new(NOWHERE), Some(&pod.result("1.1.0", &["10.244.1.5/24"])));
    conf["failurePolicy"] = json!("open");
    Invocation::of("CHECK", &pod, &conf).run().refused(11, "no agent answers");
    conf["prevResult"] = json!(null);
    Invocation::of("CHECK", &pod, &conf).run().refused(7, "prevResult: missing");
}

#[test]
fn gc_tells_the_agent_which_attachments_exist() {
    let agent = FakeAgent::content();
    let mut conf = conf("1.1.0", &agent.socket, None);
    let gc = |conf: &serde_json::Value| Invocation::bare("GC").reading(conf.to_string()).run();
    gc(&conf).refused(7, "cni.dev/valid-attachments: missing");
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "c0ffee", "ifname": "eth0"}]);
    gc(&conf).silent_success();
    assert_eq!(
        agent.heard(),
        [CniRequest::Gc { network: "cbr0".into(), valid: BTreeSet::from([attachment()]) }]
    );
    conf["socket"] = json!(NOWHERE);
    gc(&conf).refused(11, "no agent answers");
    conf["cniVersion"] = json!("1.0.0");
    gc(&conf).refused(1, "GC needs 1.1.0 or newer");
}

#[test]
fn status_is_the_agents_readiness() {
    let status = |socket: &Path, policy: &str| -> Seen {
        let mut conf = conf("1.1.0", socket, None);
        conf["failurePolicy"] = json!(policy);
        Invocation::bare("STATUS").reading(conf.to_string()).run()
    };
    let playing = |part: Part, policy: &str| status(&FakeAgent::playing(part).socket, policy);
    let starting = || Part::Answers(CniAnswer::TryAgain { message: "still reading policies".into() });

    playing(Part::Answers(CniAnswer::Ok), "closed").silent_success();
    playing(starting(), "closed").refused(50, "still reading policies");
    status(Path::new(NOWHERE), "closed").refused(50, "no agent answers");
    playing(Part::ClosesUnanswered, "closed").refused(50, "without an answer");
    playing(Part::Answers(CniAnswer::Failed { code: 51, message: "no bpffs".into() }), "open")
        .refused(51, "no bpffs");
    // Under an open policy ADD succeeds without the agent, and that is what STATUS is about.
    status(Path::new(NOWHERE), "open").success_with_warning("not ready, but pods may start");
    playing(starting(), "open").success_with_warning("still reading policies");

    let old = conf("1.0.0", Path::new(NOWHERE), None);
    Invocation::bare("STATUS").reading(old.to_string()).run().refused(1, "STATUS needs 1.1.0 or newer");
}

#[test]
fn version_answers_in_the_version_asked_for() {
    for (stdin, version) in [
        (r#"{"cniVersion":"0.3.1"}"#, "0.3.1"),
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        (r#"{"cniVersion":"1.1.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"9.9.9"}"#, "1.1.0"),
        ("{}", "1.1.0"),
        ("", "1.1.0"),
    ] {
        let seen = Invocation::bare("VERSION").reading(stdin).run();
        let want = json!({"cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
        assert_eq!((seen.answer(), seen.stderr.as_str()), (want, ""), "{stdin}");
    }
    Invocation::bare("VERSION").reading("garbage").run().refused(6, "");
}

#[test]
fn unreadable_input_is_a_decoding_error_for_every_verb() {
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for stdin in ["", "garbage", "[1]", "{\"cniVersion\": \"1.1.0\"", "\u{0}"] {
            let seen = Invocation::bare(verb).reading(stdin).run();
            let (version, code, _) = seen.error();
            assert_eq!((version.as_str(), code, seen.stderr.as_str()), ("1.1.0", 6, ""), "{verb} {stdin:?}");
        }
    }
}

#[test]
fn an_unknown_version_is_incompatible_for_every_verb() {
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        for version in ["0.2.0", "0.3.0", "1.2.0", "v1.1.0", ""] {
            let conf = conf(version, Path::new(NOWHERE), None);
            let seen = Invocation::bare(verb).reading(conf.to_string()).run();
            seen.refused(1, &format!("cniVersion: {version:?} is not supported"));
        }
    }
}

#[test]
fn errors_are_written_in_the_version_of_the_configuration() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let conf = conf(version, Path::new(NOWHERE), None);
        let seen = Invocation::bare("DEL").reading(conf.to_string()).run();
        let (got, code, _) = seen.error();
        assert_eq!((got.as_str(), code), (version, 4));
    }
}

#[test]
fn a_missing_or_unknown_verb_is_an_error() {
    Invocation::bare("MULTIPLY").run().refused(4, "CNI_COMMAND: unknown verb \"MULTIPLY\"");
    Invocation::bare("").run().refused(4, "CNI_COMMAND: missing");
    Invocation::bare("ADD").without("CNI_COMMAND").run().refused(4, "CNI_COMMAND: missing");
}
