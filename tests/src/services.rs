//! Service and EndpointSlice objects joined: what each port of a Service is reached by, and what stands behind it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::probe::{Family, Transport};

/// Ties an EndpointSlice to its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// For how long a client keeps its backend unless the Service says otherwise, in seconds.
const AFFINITY_SECONDS: u32 = 10_800;

/// One port of one Service, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/service:port`; without the colon if the port has no name.
    pub name: String,
    pub transport: Transport,
    pub port: u16,
    pub cluster_ip: Option<IpAddr>,
    /// External IPs, and addresses of the load balancer.
    pub external_ips: Vec<IpAddr>,
    pub node_port: Option<u16>,
    /// Seconds for which a client keeps its backend.
    pub affinity: Option<u32>,
    /// Sorted, at their target ports.
    pub backends: Vec<SocketAddr>,
}

/// A Service as far as its ports go.
#[derive(Debug, Deserialize)]
pub struct Service {
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: ServiceSpec,
    #[serde(default)]
    status: ServiceStatus,
}

#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs")]
    external_ips: Vec<IpAddr>,
    external_traffic_policy: Option<String>,
    internal_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<SpecPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpecPort {
    #[serde(default)]
    pub name: String,
    pub protocol: Option<String>,
    pub port: u16,
    /// A number, a name, or the same as `port`.
    pub target_port: Option<Value>,
    node_port: Option<u16>,
}

#[derive(Debug, Deserialize)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: ClientIp,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Vec<Ingress>,
}

#[derive(Debug, Deserialize)]
struct Ingress {
    ip: Option<IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointSlice {
    metadata: Metadata,
    address_type: String,
    #[serde(default)]
    ports: Vec<SlicePort>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct SlicePort {
    #[serde(default)]
    name: String,
    protocol: Option<String>,
    port: u16,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    #[serde(default)]
    conditions: Conditions,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

/// Every Service port of these objects that is there in this family; other kinds of objects are passed over.
pub fn ports(objects: &[Value], family: Family) -> Result<Vec<ServicePort>> {
    let slices: Vec<EndpointSlice> = of_kind(objects, "EndpointSlice")?;
    let services: Vec<Service> = of_kind(objects, "Service")?;
    let ports = services.iter().map(|service| service.ports(&slices, family));
    Ok(ports.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Objects of one kind in the form that we use.
pub fn of_kind<T: for<'de> Deserialize<'de>>(objects: &[Value], kind: &str) -> Result<Vec<T>> {
    let parse = |object: &Value| {
        T::deserialize(object).with_context(|| format!("not a {kind} that the lab understands: {object}"))
    };
    objects.iter().filter(|object| object["kind"] == kind).map(parse).collect()
}

impl Service {
    fn ports(&self, slices: &[EndpointSlice], family: Family) -> Result<Vec<ServicePort>> {
        for policy in [&self.spec.external_traffic_policy, &self.spec.internal_traffic_policy] {
            ensure!(
                policy.as_deref() != Some("Local"),
                "{}: the lab's proxy knows no policy Local",
                self.key()
            );
        }
        if self.spec.kind.as_deref() == Some("ExternalName") {
            return Ok(Vec::new());
        }
        let cluster_ip = self.cluster_ips()?.into_iter().find(|ip| family.has(*ip));
        let external: Vec<_> = self.external_ips().filter(|ip| family.has(*ip)).collect();
        let own: Vec<_> = slices.iter().filter(|slice| slice.is_of(self, family)).collect();
        let port = |port: &SpecPort| {
            Ok(ServicePort {
                name: if port.name.is_empty() { self.key() } else { format!("{}:{}", self.key(), port.name) },
                transport: transport(port.protocol.as_deref())?,
                port: port.port,
                cluster_ip,
                external_ips: external.clone(),
                node_port: port.node_port.filter(|_| cluster_ip.is_some()),
                affinity: self.affinity(),
                backends: backends(&own, port)?,
            })
        };
        // Headless, or not in this family: nothing to translate.
        if cluster_ip.is_none() && external.is_empty() {
            return Ok(Vec::new());
        }
        self.spec.ports.iter().map(port).collect()
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    fn cluster_ips(&self) -> Result<Vec<IpAddr>> {
        let both = match self.spec.cluster_ips.as_slice() {
            [] => self.spec.cluster_ip.as_slice(),
            ips => ips,
        };
        let addresses = both.iter().filter(|ip| !ip.is_empty() && *ip != "None");
        addresses.map(|ip| ip.parse().with_context(|| format!("{}: clusterIP {ip}", self.key()))).collect()
    }

    fn external_ips(&self) -> impl Iterator<Item = IpAddr> {
        let balancer = self.status.load_balancer.ingress.iter().filter_map(|ingress| ingress.ip);
        self.spec.external_ips.iter().copied().chain(balancer)
    }

    fn affinity(&self) -> Option<u32> {
        let config = self.spec.session_affinity_config.as_ref();
        let seconds = config.map_or(AFFINITY_SECONDS, |config| config.client_ip.timeout_seconds);
        (self.spec.session_affinity.as_deref() == Some("ClientIP")).then_some(seconds)
    }
}

impl EndpointSlice {
    fn is_of(&self, service: &Service, family: Family) -> bool {
        let address_type = match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        self.metadata.namespace == service.metadata.namespace
            && self.metadata.labels.get(SERVICE_NAME) == Some(&service.metadata.name)
            && self.address_type == address_type
    }
}

/// The ready ones; if there are none, those that still serve while they end.
fn backends(slices: &[&EndpointSlice], port: &SpecPort) -> Result<Vec<SocketAddr>> {
    let mut endpoints = Vec::new();
    for slice in slices {
        for offered in slice.ports.iter().filter(|offered| offered.name == port.name) {
            ensure!(
                transport(offered.protocol.as_deref())? == transport(port.protocol.as_deref())?,
                "{} offers port {:?} over another protocol than its Service",
                slice.metadata.name,
                port.name
            );
            let at = |endpoint: &Endpoint| {
                // Consumers of a slice look at the first address only.
                let ip = endpoint.addresses.first()?;
                Some((SocketAddr::new(*ip, offered.port), endpoint.conditions))
            };
            endpoints.extend(slice.endpoints.iter().filter_map(at));
        }
    }
    let chosen = |fits: fn(Conditions) -> bool| {
        let mut backends: Vec<_> = endpoints.iter().filter(|(_, c)| fits(*c)).map(|(at, _)| *at).collect();
        backends.sort_unstable();
        backends.dedup();
        backends
    };
    let ready = chosen(|conditions| conditions.ready != Some(false));
    let ending = |c: Conditions| c.serving == Some(true) && c.terminating == Some(true);
    Ok(if ready.is_empty() { chosen(ending) } else { ready })
}

fn transport(protocol: Option<&str>) -> Result<Transport> {
    match protocol {
        None | Some("TCP") => Ok(Transport::Tcp),
        Some("UDP") => Ok(Transport::Udp),
        Some(other) => bail!("the lab's proxy translates TCP and UDP, not {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{ServicePort, ports};
    use crate::{
        kubelet::documents,
        probe::{Family, Transport},
    };

    const CART: &str = r"
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: cart}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00:10:96::1']
  externalIPs: [203.0.113.1]
  sessionAffinity: ClientIP
  ports: [{name: web, port: 80, targetPort: web, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.2}]}}
";

    fn slice(name: &str, family: &str, port: &str, endpoints: &str) -> String {
        format!(
            "---\n\
             kind: EndpointSlice\n\
             metadata: {{namespace: shop, name: {name}, labels: {{kubernetes.io/service-name: cart}}}}\n\
             addressType: {family}\n\
             ports: [{port}]\n\
             endpoints: [{endpoints}]\n"
        )
    }

    #[test]
    fn a_port_has_the_backends_of_its_name_and_family_that_are_ready() {
        let web = "{name: web, port: 8080}";
        let yaml = [
            CART.to_owned(),
            slice("a", "IPv4", web, "{addresses: [10.244.1.3]}, {addresses: [10.244.1.2]}"),
            slice(
                "b",
                "IPv4",
                "{name: web, port: 9090}",
                "{addresses: [10.244.2.2], conditions: {ready: true}}",
            ),
            slice(
                "c",
                "IPv4",
                web,
                "{addresses: [10.244.1.9], conditions: {ready: false, serving: true, terminating: true}}",
            ),
            slice("d", "IPv4", "{name: other, port: 1}", "{addresses: [10.244.1.8]}"),
        ];
        let objects = documents(&yaml.concat()).unwrap_or_default();
        let want = ServicePort {
            name: "shop/cart:web".into(),
            transport: Transport::Tcp,
            port: 80,
            cluster_ip: Some([10, 96, 0, 1].into()),
            external_ips: vec![[203, 0, 113, 1].into(), [203, 0, 113, 2].into()],
            node_port: Some(30080),
            affinity: Some(10_800),
            backends: vec![
                ([10, 244, 1, 2], 8080).into(),
                ([10, 244, 1, 3], 8080).into(),
                ([10, 244, 2, 2], 9090).into(),
            ],
        };
        assert_eq!(ports(&objects, Family::V4).ok(), Some(vec![want.clone()]));
        let v6 = ServicePort {
            cluster_ip: "fd00:10:96::1".parse().ok(),
            external_ips: Vec::new(),
            backends: Vec::new(),
            ..want.clone()
        };
        assert_eq!(ports(&objects, Family::V6).ok(), Some(vec![v6]));
        // Without a ready one, those that still serve while they end.
        let objects = documents(&[&yaml[0], &yaml[3]].map(String::as_str).concat()).unwrap_or_default();
        let ending = ServicePort { backends: vec![([10, 244, 1, 9], 8080).into()], ..want };
        assert_eq!(ports(&objects, Family::V4).ok(), Some(vec![ending]));
    }

    #[test]
    fn a_headless_service_has_nothing_to_translate() {
        let headless =
            CART.replace("10.96.0.1\n", "None\n").replace("[10.96.0.1, 'fd00:10:96::1']", "[None]");
        let headless = headless
            .replace("externalIPs: [203.0.113.1]", "externalIPs: []")
            .replace("ingress: [{ip: 203.0.113.2}]", "");
        let objects = documents(&headless).unwrap_or_default();
        assert_eq!(objects.len(), 1);
        assert_eq!(ports(&objects, Family::V4).ok(), Some(Vec::new()));
    }
}
