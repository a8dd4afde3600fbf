//! Random changes of the cluster, all from one seed: policies, labels, tenants.

use bulkhead::policy::{DEFAULT_TENANT_LABEL, tenant::DOOR_ANNOTATION, testkit::generate::Random};
use serde_json::{Value, json};

use super::stage::{APPS, NAMESPACES, TIERS};

/// Policies that a namespace has at most, besides the standing one.
const POLICIES: usize = 5;
const TEAMS: [&str; 3] = ["x", "y", "z"];
const TENANTS: [&str; 3] = ["red", "blue", ""];
const BLOCKS: [(&str, &[&str]); 6] = [
    ("10.244.0.0/16", &["10.244.2.0/24"]),
    ("10.244.1.0/24", &[]),
    ("10.244.2.0/27", &["10.244.2.4/30"]),
    ("fd00:10:244::/48", &["fd00:10:244:1::/64"]),
    ("fd00:10:244:2::/64", &[]),
    ("0.0.0.0/0", &["10.244.1.0/28"]),
];

/// What an operator does next; keys as of [`crate::topology::Lab::delete`].
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Creates it or replaces it.
    Policy(Value),
    NoPolicy(String),
    PodLabel {
        pod: String,
        key: &'static str,
        value: &'static str,
    },
    Team {
        namespace: &'static str,
        value: &'static str,
    },
    /// `None`: shared.
    Tenant {
        namespace: &'static str,
        value: Option<&'static str>,
    },
    Door {
        namespace: &'static str,
        value: &'static str,
    },
}

pub fn draw(random: &mut Random, actors: usize) -> Edit {
    let namespace = random.pick(&NAMESPACES);
    match random.below(100) {
        0..48 => Edit::Policy(policy(random, namespace)),
        48..66 => Edit::NoPolicy(format!("{namespace}/{}", policy_name(random))),
        66..86 if actors > 0 => {
            let pod = format!("{namespace}/actor-{}", random.below(actors));
            if random.chance(60) {
                Edit::PodLabel { pod, key: "app", value: random.pick(&APPS) }
            } else {
                Edit::PodLabel { pod, key: "tier", value: random.pick(&TIERS) }
            }
        }
        86..94 => Edit::Team { namespace, value: random.pick(&TEAMS) },
        94..97 => {
            let value = random.pick(&TENANTS);
            Edit::Tenant { namespace, value: (!value.is_empty()).then_some(value) }
        }
        _ => Edit::Door { namespace, value: random.pick(&["", "red", "blue", "*"]) },
    }
}

fn policy_name(random: &mut Random) -> String {
    format!("p{}", random.below(POLICIES))
}

fn policy(random: &mut Random, namespace: &str) -> Value {
    let types = random.pick(&[&["Ingress"][..], &["Egress"], &["Ingress", "Egress"]]);
    let mut spec = json!({"podSelector": selector(random), "policyTypes": types});
    for (kind, field, peers) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
        if types.contains(&kind) {
            let rules: Vec<_> = (0..random.below(3)).map(|_| rule(random, peers)).collect();
            spec[field] = rules.into();
        }
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": policy_name(random)}, "spec": spec,
    })
}

fn rule(random: &mut Random, field: &str) -> Value {
    let mut rule = json!({});
    if random.chance(85) {
        rule[field] = (0..=random.below(2)).map(|_| peer(random)).collect();
    }
    if random.chance(60) {
        rule["ports"] = (0..=random.below(2)).map(|_| port(random)).collect();
    }
    rule
}

fn peer(random: &mut Random) -> Value {
    let of_namespaces = |random: &mut Random| match random.below(3) {
        0 => json!({}),
        1 => json!({"matchLabels": {"team": random.pick(&TEAMS)}}),
        _ => json!({"matchLabels": {"kubernetes.io/metadata.name": random.pick(&NAMESPACES)}}),
    };
    match random.below(4) {
        0 => json!({"podSelector": selector(random)}),
        1 => json!({"namespaceSelector": of_namespaces(random)}),
        2 => json!({"namespaceSelector": of_namespaces(random), "podSelector": selector(random)}),
        _ => {
            let (cidr, except) = random.pick(&BLOCKS);
            json!({"ipBlock": {"cidr": cidr, "except": except}})
        }
    }
}

fn selector(random: &mut Random) -> Value {
    match random.below(5) {
        0 => json!({}),
        1 => json!({"matchLabels": {"app": random.pick(&APPS)}}),
        2 => json!({"matchLabels": {"tier": random.pick(&TIERS)}}),
        3 => json!({"matchExpressions": [
            {"key": "app", "operator": random.pick(&["In", "NotIn"]), "values": [random.pick(&APPS)]},
        ]}),
        _ => json!({"matchExpressions": [
            {"key": "tier", "operator": random.pick(&["Exists", "DoesNotExist"])},
        ]}),
    }
}

fn port(random: &mut Random) -> Value {
    match random.below(6) {
        0 => json!({"port": 80}),
        1 => json!({"port": 80, "endPort": 90, "protocol": "TCP"}),
        2 => json!({"port": "web"}),
        3 => json!({"port": "dns", "protocol": "UDP"}),
        4 => json!({"protocol": "UDP"}),
        _ => json!({"port": 81}),
    }
}

/// Labels and annotations of a namespace as an edit leaves them.
pub fn edit_namespace(edit: &Edit, object: &mut Value) {
    match edit {
        Edit::Team { value, .. } => object["metadata"]["labels"]["team"] = (*value).into(),
        Edit::Tenant { value: Some(value), .. } => {
            object["metadata"]["labels"][DEFAULT_TENANT_LABEL] = (*value).into();
        }
        Edit::Tenant { value: None, .. } => {
            if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
                labels.remove(DEFAULT_TENANT_LABEL);
            }
        }
        Edit::Door { value, .. } => object["metadata"]["annotations"] = json!({DOOR_ANNOTATION: value}),
        Edit::Policy(_) | Edit::NoPolicy(_) | Edit::PodLabel { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bulkhead::source::manifest::parse_bytes;

    use super::*;

    #[test]
    fn every_policy_is_one_that_the_api_server_takes_and_the_seed_repeats_it() {
        let (mut random, mut again) = (Random(7), Random(7));
        let mut policies = 0;
        for _ in 0..500 {
            let edit = draw(&mut random, 4);
            assert_eq!(edit, draw(&mut again, 4));
            if let Edit::Policy(policy) = edit {
                let loaded = parse_bytes(Path::new("policy.json"), policy.to_string().as_bytes());
                assert_eq!((loaded.objects.len(), loaded.problems), (1, vec![]), "{policy}");
                policies += 1;
            }
        }
        assert!(policies > 150, "{policies}");
    }
}
