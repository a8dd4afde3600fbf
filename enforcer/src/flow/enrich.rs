//! An observation with names: small enough to keep tens of thousands, rendered only when somebody reads it.

use std::sync::Arc;

use bulkhead_ebpf::reason::Reason;
use uuid::Uuid;

use super::{
    clock::Timestamp,
    event::{Kind, Observation, Side},
    hubble::PolicyMatch,
    names::{LocalPod, Names, Party, PolicyInfo, Who},
};
use crate::{
    cluster::{
        Frontend,
        object::{Key, Ports, Protocol, Rule},
    },
    policy::model::{Direction, DirectionRules, Grant, RuleSet},
};

#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    pub uuid: Uuid,
    pub time: Timestamp,
    /// End: when the connection started.
    pub started: Option<Timestamp>,
    pub seen: Observation,
    pub source: Arc<Party>,
    pub destination: Arc<Party>,
    /// Of source and destination: the Service by whose address, or by whose backend, the connection goes.
    pub services: [Option<Arc<Key>>; 2],
    pub local: Option<Arc<LocalPod>>,
    pub decided: Decided,
}

/// Which policies decided, in the direction of [`Observation::direction`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decided {
    /// `None`: dropped, or the rule is not known any more.
    pub grant: Option<Arc<Grant>>,
    pub matched: PolicyMatch,
    /// Policies that the grant or the isolation names, with what is known of them, sorted.
    pub policies: Vec<(Key, Arc<PolicyInfo>)>,
}

impl Flow {
    /// `wall` turns `CLOCK_MONOTONIC` nanoseconds into wall time.
    pub fn of(seen: Observation, names: &Names, wall: impl Fn(u64) -> Timestamp) -> Self {
        let local = names.endpoints.at(&seen.endpoint, seen.time).cloned();
        let services = services(&seen, names);
        let parties = parties(&seen, names, local.as_deref());
        let [source, destination] = [0, 1].map(|side| translated(&parties[side], services[side].as_ref()));
        Self {
            uuid: Uuid::new_v4(),
            time: wall(seen.time),
            started: match &seen.kind {
                Kind::End(totals) => Some(wall(totals.started)),
                Kind::New | Kind::Drop => None,
            },
            decided: Decided::of(&seen, names),
            seen,
            source,
            destination,
            services,
            local,
        }
    }

    pub fn dropped(&self) -> bool {
        self.seen.kind == Kind::Drop
    }
}

/// The local end is who owns the interface, whatever address the packet claims; the other is told by its
/// address.
fn parties(seen: &Observation, names: &Names, local: Option<&LocalPod>) -> [Arc<Party>; 2] {
    let by_address = |side: usize, identity: u32| match &seen.packet {
        Some(packet) => names.party(packet.addresses[side], identity, seen.time),
        None => Arc::new(Party { who: Who::Unknown, identity: 0, tenant: None }),
    };
    let ours = |side| local.map_or_else(|| by_address(side, 0), |pod| Arc::clone(&pod.party));
    match seen.local() {
        Side::Source => [ours(0), by_address(1, seen.remote_identity)],
        Side::Destination => [by_address(0, seen.remote_identity), ours(1)],
    }
}

fn services(seen: &Observation, names: &Names) -> [Option<Arc<Key>>; 2] {
    let at = |side: usize| {
        let packet = seen.packet.as_ref()?;
        let protocol = Protocol::of_number(packet.protocol)?;
        let at = Frontend { address: packet.addresses[side], protocol, port: packet.ports[side] };
        names.services.at(&at, seen.time).cloned()
    };
    [at(0), at(1)]
}

/// An address that nobody owns, but which a Service has.
fn translated(party: &Arc<Party>, service: Option<&Arc<Key>>) -> Arc<Party> {
    match (&party.who, service) {
        (Who::Unmanaged | Who::World, Some(service)) => {
            Arc::new(Party { who: Who::Service(Arc::clone(service)), ..Party::clone(party) })
        }
        _ => Arc::clone(party),
    }
}

impl Decided {
    fn of(seen: &Observation, names: &Names) -> Self {
        let rule_set = names.rule_sets.at(&seen.rule_set, seen.time).map(Arc::as_ref);
        if seen.kind == Kind::Drop {
            return Self { policies: Self::isolating(seen, names, rule_set), ..Self::default() };
        }
        let Some(grant) = names.grants.at(&seen.rule, seen.time).cloned() else {
            return Self { matched: PolicyMatch::All, ..Self::default() };
        };
        let (matched, policies) = match grant.as_ref() {
            Grant::NotIsolated => (PolicyMatch::All, Vec::new()),
            Grant::LocalNode | Grant::Door => (PolicyMatch::PeerOnly, Vec::new()),
            Grant::Rules(rules) => {
                let matched = rules
                    .first()
                    .and_then(|first| find(rule_set?, seen.direction, &first.policy, first.rule))
                    .map_or(PolicyMatch::All, matched);
                let mut keys: Vec<_> = rules.iter().map(|r| &r.policy).collect();
                keys.dedup();
                (matched, keys.into_iter().map(|key| known(names, key, seen.time)).collect())
            }
        };
        Self { grant: Some(grant), matched, policies }
    }

    /// Only a denial by policy is the work of policies.
    fn isolating(
        seen: &Observation,
        names: &Names,
        rule_set: Option<&RuleSet>,
    ) -> Vec<(Key, Arc<PolicyInfo>)> {
        let (Reason::PolicyDenied, Some(rule_set)) = (seen.reason, rule_set) else {
            return Vec::new();
        };
        let policies = &direction_rules(rule_set, seen.direction).policies;
        policies.iter().map(|p| known(names, &p.policy, seen.time)).collect()
    }
}

fn known(names: &Names, key: &Key, time: u64) -> (Key, Arc<PolicyInfo>) {
    (key.clone(), names.policies.at(key, time).cloned().unwrap_or_default())
}

fn find<'a>(rules: &'a RuleSet, direction: Direction, policy: &Key, index: usize) -> Option<&'a Rule> {
    let policies = &direction_rules(rules, direction).policies;
    policies.iter().find(|p| p.policy == *policy)?.rules.iter().find(|r| r.index == index)
}

fn matched(rule: &Rule) -> PolicyMatch {
    let all_ports = rule.ports.iter().all(|p| p.ports == Ports::All);
    match (rule.peers.is_empty(), rule.ports.is_empty(), all_ports) {
        (true, true, _) => PolicyMatch::All,
        (true, false, true) => PolicyMatch::ProtocolOnly,
        (true, false, false) => PolicyMatch::PortOnly,
        (false, true, _) => PolicyMatch::PeerOnly,
        (false, false, true) => PolicyMatch::PeerAndProtocol,
        (false, false, false) => PolicyMatch::PeerAndPort,
    }
}

fn direction_rules(rules: &RuleSet, direction: Direction) -> &DirectionRules {
    match direction {
        Direction::Ingress => &rules.ingress,
        Direction::Egress => &rules.egress,
    }
}
