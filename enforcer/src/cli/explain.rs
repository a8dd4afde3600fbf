//! `bulkhead explain`.

use std::{
    fmt::{self, Write as _},
    io::Write,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use bulkhead_cni::config::DEFAULT_SOCKET;

use super::status::Output;
use crate::{
    agent::explain::{Explanation, KernelFinding},
    api,
    policy::{
        explain::{Boundary, End, Finding, Judgement, Passage, PolicyFinding, Way},
        model::Direction,
        probe::{EndpointRef, Family, ProbeProtocol, Side, Verdict},
        question::{Destination, Question},
    },
};

/// Why this node's agent would allow a connection, or not: step by step, with policies, rules and what the kernel
/// holds.
///
/// Exit status: 0 the agent has answered, whatever it says; 1 the kernel holds something else than the policies say;
/// 2 nobody to ask, or no such question.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Who connects: `namespace/pod`, `ip:ADDRESS` or `node:NAME`.
    #[arg(value_name = "FROM")]
    pub from: EndpointRef,
    /// To what: `namespace/pod:PORT`, `service:namespace/name:PORT`, `ip:ADDRESS:PORT` or `node:NAME:PORT`.
    #[arg(value_name = "TO")]
    pub to: Destination,
    /// TCP, UDP, SCTP or ICMP.
    #[arg(long, default_value = "TCP")]
    pub protocol: ProbeProtocol,
    /// IPv4 or IPv6 [default: IPv4 if both ends have it].
    #[arg(long)]
    pub family: Option<Family>,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// The agent's socket.
    #[arg(long, env = "BULKHEAD_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

pub async fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match (args.protocol, args.to.port) {
        (ProbeProtocol::Icmp, Some(_)) => bail!("ICMP has no ports: ask about {} without one", args.to),
        (protocol, None) if protocol != ProbeProtocol::Icmp => {
            bail!("the destination's port is missing, which {protocol} needs: {}:PORT", args.to)
        }
        _ => {}
    }
    let question = Question {
        from: args.from.clone(),
        to: args.to.clone(),
        protocol: args.protocol,
        family: args.family,
    };
    let answer = api::explain(&args.socket, question).await?;
    let explanation: Explanation =
        serde_json::from_value(answer).context("the agent's answer is of another version")?;
    match args.output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &explanation)?;
            writeln!(out)?;
        }
        Output::Table => out.write_all(explanation.to_string().as_bytes())?,
    }
    let differs = explanation.kernel.iter().any(|finding| !finding.differs.is_empty());
    Ok(ExitCode::from(u8::from(differs)))
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Question { from, to, .. } = &self.question;
        let verdict = loud(self.policy.answer.verdict);
        writeln!(f, "{from} -> {to} {}: {verdict}, says the agent of {}", self.policy.protocol, self.node)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        writeln!(f)?;
        end(f, "source", &self.policy.source)?;
        end(f, "destination", &self.policy.destination)?;
        match &self.policy.service {
            None => self.policy.ways.iter().try_for_each(|way| self.way(f, way)),
            Some(passage) => {
                self.passage(f, passage)?;
                for way in &self.policy.ways {
                    let port = way.port;
                    writeln!(f, "\nto backend {}, port {port}: {}", way.to.is, loud(way.verdict()))?;
                    end(f, "backend", &way.to)?;
                    self.way(f, way)?;
                }
                let untold = passage.backends - self.policy.ways.len();
                if untold > 0 {
                    writeln!(f, "\nand {untold} more backends, as counted above")?;
                }
                Ok(())
            }
        }
    }
}

impl Explanation {
    fn passage(&self, f: &mut fmt::Formatter<'_>, passage: &Passage) -> fmt::Result {
        let Passage { services, pod, before, backends, allowed } = passage;
        writeln!(f, "\nService {}: {allowed} of {backends} backends allowed", services.join(" and "))?;
        if let (Some(pod), Some(Side { verdict, by })) = (pod, before) {
            writeln!(f, "   before translation, at {pod}: {}: {by}", loud(*verdict))?;
            let (address, port) = (self.policy.destination.address, self.policy.port);
            self.kernel_at(f, Direction::Egress, pod, address, port)?;
        }
        Ok(())
    }

    fn way(&self, f: &mut fmt::Formatter<'_>, way: &Way) -> fmt::Result {
        let source = self.policy.source.address;
        for (direction, judgement, remote) in
            [(Direction::Egress, &way.egress, way.to.address), (Direction::Ingress, &way.ingress, source)]
        {
            let Judgement { side: Side { verdict, by }, pod, node, boundary, policies } = judgement;
            writeln!(f)?;
            let Some(pod) = pod else {
                writeln!(f, "{direction}: {}: {by}", loud(*verdict))?;
                continue;
            };
            let node = node.as_deref().unwrap_or("no node");
            writeln!(f, "{direction} of {pod}, judged on {node}: {}: {by}", loud(*verdict))?;
            if let Some(Boundary { own, other, passed }) = boundary
                && (own.is_some() || other != "shared")
            {
                let own = own.as_ref().map_or_else(|| "shared".to_owned(), |own| format!("tenant {own}"));
                let word = if *passed { "passed" } else { "CLOSED" };
                writeln!(f, "   tenants: {own} here, {other} there: {word}")?;
            }
            policies.iter().try_for_each(|policy| findings(f, policy))?;
            self.kernel_at(f, direction, pod, remote, way.port)?;
        }
        Ok(())
    }

    fn kernel_at(
        &self,
        f: &mut fmt::Formatter<'_>,
        direction: Direction,
        pod: &str,
        remote: std::net::IpAddr,
        port: u16,
    ) -> fmt::Result {
        let is_asked = |finding: &&KernelFinding| {
            (finding.direction, finding.pod.as_str(), finding.remote, finding.port)
                == (direction, pod, remote, port)
        };
        for finding in self.kernel.iter().filter(is_asked) {
            let KernelFinding {
                interface,
                endpoint,
                rule_set,
                generation,
                identity,
                blocks,
                tenant,
                verdict,
                by,
                ..
            } = finding;
            let mut numbers = format!("{remote} has identity {identity}");
            if *blocks != 0 {
                write!(numbers, ", block set {blocks}")?;
            }
            if *tenant != 0 && *tenant != bulkhead_ebpf::abi::TENANT_UNKNOWN {
                write!(numbers, ", tenant {tenant}")?;
            }
            writeln!(
                f,
                "   kernel: {}: {by}; endpoint {endpoint} on {interface}, rule set {rule_set}, \
                 generation {generation}; {numbers}",
                loud(*verdict)
            )?;
            finding.differs.iter().try_for_each(|how| writeln!(f, "   KERNEL DIFFERS: {how}"))?;
        }
        Ok(())
    }
}

fn end(f: &mut fmt::Formatter<'_>, name: &str, end: &End) -> fmt::Result {
    let End { address, is, identity, blocks, tenant } = end;
    write!(f, "{name:<12} {address}: {is}; {tenant}")?;
    if let Some(pod) = identity {
        let pairs = |labels: &crate::cluster::object::Labels| {
            let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            pairs.join(",")
        };
        if !pod.labels.is_empty() {
            write!(f, "; told by {}", pairs(&pod.labels))?;
        }
        if !pod.namespace_labels.is_empty() {
            write!(f, "; its namespace by {}", pairs(&pod.namespace_labels))?;
        }
    }
    if !blocks.is_empty() {
        write!(f, "; in {}", blocks.join(", "))?;
    }
    writeln!(f)
}

fn findings(f: &mut fmt::Formatter<'_>, policy: &PolicyFinding) -> fmt::Result {
    let PolicyFinding { policy: name, rules, defects } = policy;
    if rules.is_empty() {
        writeln!(f, "   {name}: isolates and admits nobody")?;
    } else {
        writeln!(f, "   {name}: isolates")?;
    }
    for rule in rules {
        let finding = match rule.finding {
            Finding::Admits => "ADMITS",
            Finding::OtherPeer => "no: the other end is none of these",
            Finding::OtherPort => "no: another port or protocol",
        };
        writeln!(f, "      rule {}: {}: {finding}", rule.rule, rule.admits)?;
    }
    defects.iter().try_for_each(|defect| writeln!(f, "      not in force: {defect}"))
}

fn loud(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allowed",
        Verdict::Deny => "DENIED",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, address: &str, tenant: &str) -> Value {
        json!({
            "address": address, "is": format!("pod {name} on node-1"), "tenant": tenant,
            "blocks": ["10.244.0.0/16 except 10.244.9.0/24"],
            "identity": {"namespace": "shop", "labels": {"app": name}, "namespaceLabels": {"env": "prod"}},
        })
    }

    fn finding(direction: &str, pod: &str, remote: &str, port: u16, differs: &[&str]) -> Value {
        json!({
            "pod": pod, "direction": direction, "remote": remote, "port": port, "interface": "veth1", "endpoint": 4,
            "ruleSet": 7, "generation": 9, "identity": 261, "blocks": 2, "tenant": 1, "verdict": "allow",
            "by": "not isolated", "differs": differs,
        })
    }

    /// Through a Service with two backends, of which one is denied; the kernel disagrees at one end.
    fn explanation() -> Explanation {
        let way = |address: &str, ingress: Value| {
            json!({
                "to": pod("db", address, "tenant blue"), "port": 5432, "ingress": ingress,
                "egress": {
                    "verdict": "allow", "by": "not isolated", "pod": "shop/web", "node": "node-1",
                    "boundary": {"own": "red", "other": "tenant blue", "passed": true}, "policies": [],
                },
            })
        };
        let denied = json!({
            "verdict": "deny", "by": "isolated by shop/guard, no rule allows", "pod": "shop/db", "node": "node-2",
            "boundary": {"own": null, "other": "shared", "passed": true},
            "policies": [{
                "policy": "shop/guard", "defects": ["spec.ingress[2]: no"],
                "rules": [
                    {"rule": 0, "admits": "anyone, TCP/80", "finding": "otherPort"},
                    {"rule": 1, "admits": "pods app=x of its namespace, any port", "finding": "otherPeer"},
                ],
            }],
        });
        let outside = json!({"verdict": "allow", "by": "not a pod", "pod": null, "node": null, "boundary": null, "policies": []});
        let side = |verdict: &str, by: &str| json!({"verdict": verdict, "by": by});
        let explanation = json!({
            "node": "node-1",
            "question": {"from": "shop/web", "to": "service:shop/db:80", "protocol": "TCP"},
            "verdict": "deny", "egress": side("allow", "x"), "ingress": side("deny", "y"),
            "protocol": "TCP", "port": 80,
            "source": pod("web", "10.244.1.2", "tenant red"),
            "destination": {"address": "10.96.0.1", "is": "address of a Service", "identity": null, "blocks": [], "tenant": "shared"},
            "service": {
                "services": ["shop/db"], "pod": "shop/web", "before": side("allow", "not isolated"),
                "backends": 3, "allowed": 2,
            },
            "ways": [way("10.244.2.3", denied), way("192.0.2.1", outside)],
            "kernel": [
                finding("egress", "shop/web", "10.96.0.1", 80, &[]),
                finding("egress", "shop/web", "10.244.2.3", 5432, &["the policies say deny, the maps allow"]),
            ],
            "notes": ["the kernel is not up to date: full"],
        });
        serde_json::from_value(explanation).expect("an answer")
    }

    #[test]
    fn every_step_has_its_line() {
        let kernel = |remote: &str| {
            format!(
                "   kernel: allowed: not isolated; endpoint 4 on veth1, rule set 7, generation 9; \
                 {remote} has identity 261, block set 2, tenant 1"
            )
        };
        let of_pods = "; in 10.244.0.0/16 except 10.244.9.0/24";
        let want = [
            "shop/web -> service:shop/db:80 TCP: DENIED, says the agent of node-1".to_owned(),
            "note: the kernel is not up to date: full".to_owned(),
            String::new(),
            format!(
                "source       10.244.1.2: pod web on node-1; tenant red; told by app=web; its namespace by env=prod{of_pods}"
            ),
            "destination  10.96.0.1: address of a Service; shared".to_owned(),
            String::new(),
            "Service shop/db: 2 of 3 backends allowed".to_owned(),
            "   before translation, at shop/web: allowed: not isolated".to_owned(),
            kernel("10.96.0.1"),
            String::new(),
            "to backend pod db on node-1, port 5432: DENIED".to_owned(),
            format!(
                "backend      10.244.2.3: pod db on node-1; tenant blue; told by app=db; its namespace by env=prod{of_pods}"
            ),
            String::new(),
            "egress of shop/web, judged on node-1: allowed: not isolated".to_owned(),
            "   tenants: tenant red here, tenant blue there: passed".to_owned(),
            kernel("10.244.2.3"),
            "   KERNEL DIFFERS: the policies say deny, the maps allow".to_owned(),
            String::new(),
            "ingress of shop/db, judged on node-2: DENIED: isolated by shop/guard, no rule allows".to_owned(),
            "   shop/guard: isolates".to_owned(),
            "      rule 0: anyone, TCP/80: no: another port or protocol".to_owned(),
            "      rule 1: pods app=x of its namespace, any port: no: the other end is none of these"
                .to_owned(),
            "      not in force: spec.ingress[2]: no".to_owned(),
            String::new(),
            "to backend pod db on node-1, port 5432: allowed".to_owned(),
            format!(
                "backend      192.0.2.1: pod db on node-1; tenant blue; told by app=db; its namespace by env=prod{of_pods}"
            ),
            String::new(),
            "egress of shop/web, judged on node-1: allowed: not isolated".to_owned(),
            "   tenants: tenant red here, tenant blue there: passed".to_owned(),
            String::new(),
            "ingress: allowed: not a pod".to_owned(),
            String::new(),
            "and 1 more backends, as counted above".to_owned(),
        ];
        assert_eq!(explanation().to_string().lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn the_json_form_comes_back_as_it_was() {
        let explanation = explanation();
        let json = serde_json::to_value(&explanation).expect("plain data");
        assert_eq!(json["kernel"][0]["direction"], "egress");
        assert_eq!(serde_json::from_value::<Explanation>(json).expect("its own"), explanation);
    }
}
