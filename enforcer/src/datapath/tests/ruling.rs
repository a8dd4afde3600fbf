//! What is read out of the maps for `explain` is what the compiler says, over generated clusters.

use std::{collections::BTreeMap, net::IpAddr};

use bulkhead_ebpf::abi::{self, Endpoint, Peer, RULE_BITS_PORT, RuleKey};

use super::{DatapathError, Image, Local, Model, Rule, ServiceAddress, Tables};
use crate::{
    datapath::ruling::{Attempt, Lookup, rule},
    policy::{Simulator, model::Direction, probe::Verdict, testkit::Case},
};

impl Lookup for Image {
    fn endpoint(&self, ifindex: u32) -> Result<Option<Endpoint>, DatapathError> {
        Ok(self.endpoints.get(&ifindex).copied())
    }

    fn peer(&self, address: IpAddr) -> Result<Option<Peer>, DatapathError> {
        let covering = self.prefixes.iter().filter(|(prefix, _)| prefix.contains(address));
        let longest = covering.max_by_key(|(prefix, _)| prefix.prefix()).map(|(_, peer)| *peer);
        Ok(self.peers.get(&address).copied().or(longest))
    }

    fn service(&self, at: &ServiceAddress) -> Result<Option<u32>, DatapathError> {
        Ok(self.services.get(at).copied())
    }

    fn rule(&self, key: &RuleKey) -> Result<Option<u32>, DatapathError> {
        let port = u16::from_be_bytes(key.port_be);
        let with = |bits: u32| {
            let kept = !u16::MAX.checked_shr(bits - abi::RULE_BITS_PROTOCOL).unwrap_or(0);
            RuleKey { port_be: (port & kept).to_be_bytes(), ..*key }
        };
        let by_port =
            (abi::RULE_BITS_PROTOCOL..=RULE_BITS_PORT).rev().map(|bits| Rule { key: with(bits), bits });
        let all = Rule { key: RuleKey { protocol: 0, port_be: [0; 2], ..*key }, bits: abi::RULE_BITS_ALL };
        Ok(by_port.chain([all]).find_map(|rule| self.rules.get(&rule).copied()))
    }
}

#[test]
fn the_maps_are_read_as_the_compiler_means_them() {
    let (mut allowed, mut denied, mut of_services) = (0, 0, 0);
    for seed in 0..200 {
        let case = Case::of(seed, 40);
        let index = case.index().seen_from(Some("n1"));
        let mut simulator = Simulator::new(index, case.settings.clone());
        let compiled = simulator.compiled(Some("n1"));
        let mut tables = Tables::open(Model::default(), None).expect("opened");
        let locals: BTreeMap<u32, Local> = (10..)
            .zip(compiled.endpoints.keys())
            .map(|(ifindex, pod)| {
                let addresses = simulator.index().pod(pod).map(|pod| simulator.index().addresses(pod));
                let addresses = addresses.unwrap_or_default();
                let pod = Some(pod.clone());
                (
                    ifindex,
                    Local {
                        id: ifindex,
                        ifindex,
                        pod,
                        mac: [2; 6],
                        addresses,
                        adopted: false,
                        silent: false,
                    },
                )
            })
            .collect();
        let plan = tables.plan_whole(&compiled, &locals).expect("planned");
        tables.carry_out(plan).expect("written");
        let image = tables.kernel_ref().now.clone();
        for probe in &case.probes {
            let Ok(flow) = simulator.flow(probe) else { continue };
            for direction in [Direction::Egress, Direction::Ingress] {
                let (own, other) = match direction {
                    Direction::Egress => (&flow.src, &flow.dst),
                    Direction::Ingress => (&flow.dst, &flow.src),
                };
                let Some(local) = own
                    .endpoint
                    .as_ref()
                    .and_then(|own| locals.values().find(|local| local.pod.as_ref() == Some(&own.pod)))
                else {
                    continue;
                };
                if own.address == other.address {
                    continue;
                }
                let before =
                    (direction == Direction::Egress).then(|| simulator.before_translation(&flow)).flatten();
                let want = before.clone().unwrap_or_else(|| simulator.side(&flow, direction));
                let attempt =
                    Attempt { direction, remote: other.address, protocol: flow.protocol, port: flow.port };
                let ruling = rule(&image, &image.endpoints[&local.ifindex], &attempt).expect("an image");
                let context = || format!("seed {seed}, {direction} of {probe:?}: {ruling:?}, {want:?}");
                assert_eq!(ruling.outcome.is_ok(), want.verdict == Verdict::Allow, "{}", context());
                assert_eq!(ruling.is_service, before.is_some(), "{}", context());
                of_services += usize::from(ruling.is_service);
                *if ruling.outcome.is_ok() { &mut allowed } else { &mut denied } += 1;
            }
        }
    }
    assert!(allowed > 300 && denied > 300 && of_services > 50, "{allowed} {denied} {of_services}");
}
