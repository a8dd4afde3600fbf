//! A live connection that stays allowed notices nothing of any edit.

use std::{env, time::Duration};

use lab::{Family, Lab, Stream};

use crate::stage::{at, lab_with, label, packets, policy};

const WEBS: &str = "{podSelector: {matchLabels: {app: web}}}";

/// Edits that leave the webs' way to the db open, each of another kind, in the two forms of each.
const EDITS: [fn(&Lab, bool); 10] = [
    |lab, there| toggle(lab, there, "noise", "nobody", "policyTypes: [Ingress]"),
    |lab, there| {
        let peers = if there {
            "{podSelector: {matchLabels: {app: guest}}}"
        } else {
            "{podSelector: {matchLabels: {app: job}}}"
        };
        policy(lab, "db", "db", &format!("policyTypes: [Ingress], ingress: [{{from: [{WEBS}, {peers}]}}]"));
    },
    |lab, there| {
        let ports = if there {
            "ports: [{port: 80}]"
        } else {
            "ports: [{port: 1, endPort: 1000}, {port: 53, protocol: UDP}]"
        };
        policy(lab, "db", "db", &format!("policyTypes: [Ingress], ingress: [{{from: [{WEBS}], {ports}}}]"));
    },
    |lab, there| {
        let from = if there {
            "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}"
        } else {
            "ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 'fd00::/16'}"
        };
        policy(lab, "db", "db", &format!("policyTypes: [Ingress], ingress: [{{from: [{{{from}}}]}}]"));
    },
    |lab, there| {
        toggle(
            lab,
            there,
            "db-too",
            "db",
            "policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchExpressions: [{key: rev, operator: Exists}]}}]}]",
        );
    },
    |lab, there| label(lab, "Pod", "shop/web-1", ("rev", if there { "1" } else { "2" })),
    |lab, there| label(lab, "Namespace", "shop", ("rev", if there { "1" } else { "2" })),
    |lab, there| label(lab, "Namespace", "shop", ("bulkhead.io/tenant", if there { "red" } else { "blue" })),
    |lab, there| {
        toggle(
            lab,
            there,
            "web-out",
            "web",
            "policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]",
        );
    },
    |lab, there| toggle(lab, there, "web-in", "web", "policyTypes: [Ingress]"),
];

fn toggle(lab: &Lab, there: bool, name: &str, app: &str, rules: &str) {
    if there {
        policy(lab, name, app, rules);
    } else {
        lab.delete("NetworkPolicy", &format!("shop/{name}")).unwrap();
    }
}

/// `$LAB_EDITS` of them, each in force before the next.
#[test]
fn a_stream_that_stays_allowed_loses_nothing_over_many_edits() {
    let edits: usize = env::var("LAB_EDITS").map_or(100, |n| n.parse().unwrap());
    let lab = lab_with(&["shop/db-1", "shop/web-1", "shop/web-2"]);
    policy(&lab, "db", "db", &format!("policyTypes: [Ingress], ingress: [{{from: [{WEBS}]}}]"));
    lab.settle().unwrap();
    let updates = || lab.agent(1).status().unwrap()["datapath"]["updates"].as_u64().unwrap();
    // What a lost packet would be counted as at the hooks; the ends would have to send it again.
    let lost = || {
        let reasons = ["policy-denied", "tenant-boundary", "not-tracked", "no-endpoint", "source-ip"];
        [1, 2].map(|node| reasons.map(|reason| packets(&lab, node, reason)))
    };
    let retransmitted = || lab.pods().iter().map(|pod| pod.netns().retransmitted().unwrap()).sum::<u64>();
    let before = (updates(), lost(), retransmitted());
    let db = lab.pod("shop/db-1");
    let streams = [
        ("shop/web-1", Family::V4),
        ("shop/web-1", Family::V6),
        ("shop/web-2", Family::V4),
        ("shop/web-2", Family::V6),
    ]
    .map(|(web, family)| {
        Stream::start(lab.pod(web).netns(), at(&db, family, 80), Duration::from_millis(1)).unwrap()
    });
    for n in 0..edits {
        EDITS[n % EDITS.len()](&lab, (n / EDITS.len()).is_multiple_of(2));
        lab.settle().unwrap();
    }
    let reports = streams.map(Stream::stop);
    assert!(updates() - before.0 >= u64::try_from(edits).unwrap(), "the kernel was written for every edit");
    assert_eq!((lost(), retransmitted()), (before.1, before.2));
    for report in reports {
        assert!(report.sent > 20, "{report:?}");
        assert_eq!(
            (report.echoed, report.retransmitted, report.broken.clone()),
            (report.sent, 0, None),
            "{report:?}"
        );
        println!("{edits} edits: {report:?}");
    }
}
