//! What one namespace's owner writes is that namespace's business.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use lab::{Family, Plan, PodSpec, Transport, until};

const GUARD_DB: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard-db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 80}]
";

/// Five thousand blocks over the same addresses, each with another exception: every address would be in all but one.
fn crossing() -> String {
    let mut policy =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: big, namespace: evil}\n\
                      spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n    - to:\n"
            .to_owned();
    for n in 0..5000 {
        let except = format!("10.99.{}.{}/32", n / 256, n % 256);
        writeln!(policy, "        - ipBlock: {{cidr: 0.0.0.0/0, except: [{except}]}}").unwrap();
    }
    policy
}

#[test]
fn a_policy_beyond_all_measure_isolates_its_own_pods_and_holds_nobody_else_up() {
    let lab = Plan::bulkhead().nodes(1).raise().unwrap();
    for namespace in ["shop", "evil"] {
        lab.namespace(namespace, &[]).unwrap();
    }
    let pod = |key: &str| {
        let (_, name) = key.split_once('/').unwrap();
        PodSpec::new(key).label("app", name).serve(Transport::Tcp, 80)
    };
    lab.start_pods([pod("shop/db"), pod("shop/web"), pod("evil/mallory")]).unwrap();

    lab.apply(&crossing()).unwrap();
    let defects = || {
        let status = lab.agent(1).status()?;
        Ok((
            status["defects"]["evil/big"][0].as_str().unwrap_or_default().to_owned(),
            status["ready"] == true,
        ))
    };
    let (why, ready) = until(Duration::from_secs(20), defects, |(why, _)| !why.is_empty()).unwrap();
    assert!(why.starts_with("no room: "), "{why}");
    assert!(ready, "it is no other pod's business");

    lab.apply(GUARD_DB).unwrap();
    // Mallory's egress is shut, and the good policy is in force.
    let want = BTreeSet::from([
        ("shop/web", "shop/db"),
        ("shop/db", "shop/web"),
        ("shop/db", "evil/mallory"),
        ("shop/web", "evil/mallory"),
    ]);
    for family in [Family::V4, Family::V6] {
        let matrix = lab.matrix_settled((Transport::Tcp, 80, family), &want).unwrap();
        assert_eq!(matrix.reached(), want, "{matrix}");
    }
    let late = PodSpec::new("shop/late").serve(Transport::Tcp, 80);
    lab.start_pods([late]).unwrap();
}
