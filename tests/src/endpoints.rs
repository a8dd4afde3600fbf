//! The endpoint slice controller's part: which running pods stand behind a Service, as EndpointSlice objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    kubelet,
    probe::Family,
    services::{Metadata, SERVICE_NAME, Service, SpecPort, of_kind},
    topology::Lab,
};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

#[derive(Debug, Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
    containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Container {
    #[serde(default)]
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Deserialize)]
struct ContainerPort {
    name: Option<String>,
    #[serde(rename = "containerPort")]
    number: u16,
    protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: IpAddr,
}

impl Lab {
    /// Brings the slices of all Services with a selector up to date with the pods that run.
    pub fn publish_endpoints(&self) -> Result<()> {
        let objects = kubelet::read_dir(self.manifests().dir())?;
        let wanted = slices(&objects)?;
        let key = |slice: &Value| {
            let text = |field: &str| slice["metadata"][field].as_str().unwrap_or_default().to_owned();
            format!("{}/{}", text("namespace"), text("name"))
        };
        let kept: BTreeSet<_> = wanted.iter().map(key).collect();
        wanted.iter().try_for_each(|slice| self.manifests().write(slice))?;
        let ours = |slice: &&Value| slice["metadata"]["labels"][MANAGED_BY] == CONTROLLER;
        let stale = objects.iter().filter(ours).map(key).filter(|slice| !kept.contains(slice));
        stale.into_iter().try_for_each(|slice| self.delete("EndpointSlice", &slice))
    }
}

/// One slice per Service, family and set of resolved ports: pods behind one named port may differ in its number.
fn slices(objects: &[Value]) -> Result<Vec<Value>> {
    let pods: Vec<Pod> = of_kind(objects, "Pod")?;
    let services: Vec<Service> = of_kind(objects, "Service")?;
    let mut slices = Vec::new();
    for service in services.iter().filter(|service| !service.spec.selector.is_empty()) {
        for (family, address_type) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let mut groups = BTreeMap::<String, (Vec<Value>, Vec<Value>)>::new();
            for pod in pods.iter().filter(|pod| pod.is_behind(service)) {
                let Some(ip) = pod.status.pod_ips.iter().map(|ip| ip.ip).find(|ip| family.has(*ip)) else {
                    continue;
                };
                let ports =
                    service.spec.ports.iter().filter_map(|port| pod.resolved(port)).collect::<Vec<_>>();
                let group = groups.entry(Value::from(ports.clone()).to_string());
                group.or_insert_with(|| (ports, Vec::new())).1.push(pod.endpoint(ip));
            }
            for (n, (ports, endpoints)) in groups.into_values().enumerate() {
                let name = format!("{}-{}-{n}", service.metadata.name, address_type.to_lowercase());
                slices.push(json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {
                        "namespace": service.metadata.namespace, "name": name,
                        "labels": {SERVICE_NAME: service.metadata.name, MANAGED_BY: CONTROLLER},
                    },
                    "addressType": address_type,
                    "ports": ports,
                    "endpoints": endpoints,
                }));
            }
        }
    }
    Ok(slices)
}

impl Pod {
    fn is_behind(&self, service: &Service) -> bool {
        self.metadata.namespace == service.metadata.namespace
            && self.status.phase == "Running"
            && service.spec.selector.iter().all(|(key, value)| self.metadata.labels.get(key) == Some(value))
    }

    /// The port of a slice; a pod without the named port offers none.
    fn resolved(&self, port: &SpecPort) -> Option<Value> {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let number = match &port.target_port {
            None => port.port,
            Some(Value::String(name)) => {
                let mut declared = self.spec.containers.iter().flat_map(|container| &container.ports);
                let fits = |declared: &&ContainerPort| {
                    declared.name.as_ref() == Some(name)
                        && declared.protocol.as_deref().unwrap_or("TCP") == protocol
                };
                declared.find(fits)?.number
            }
            Some(number) => u16::try_from(number.as_u64()?).ok()?,
        };
        Some(json!({"name": port.name, "protocol": protocol, "port": number}))
    }

    fn endpoint(&self, ip: IpAddr) -> Value {
        json!({
            "addresses": [ip],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": self.spec.node_name,
            "targetRef": {
                "kind": "Pod", "namespace": self.metadata.namespace, "name": self.metadata.name,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::slices;
    use crate::kubelet::documents;

    #[test]
    fn pods_behind_one_named_port_are_grouped_by_the_number_it_has_there() {
        let pod = |name: &str, ip: &str, port: u16| {
            format!(
                "---\n\
                 kind: Pod\n\
                 metadata: {{namespace: shop, name: {name}, labels: {{app: cart}}}}\n\
                 spec: {{nodeName: node-1, containers: [{{ports: [{{name: web, containerPort: {port}}}]}}]}}\n\
                 status: {{phase: Running, podIPs: [{{ip: {ip}}}]}}\n"
            )
        };
        let service = "kind: Service\n\
                       metadata: {namespace: shop, name: cart}\n\
                       spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: web}]}\n";
        let yaml = [
            service.to_owned(),
            pod("a", "10.244.1.2", 8080),
            pod("b", "10.244.1.3", 9090),
            pod("c", "10.244.1.4", 8080),
            pod("elsewhere", "10.244.1.5", 8080).replace("namespace: shop", "namespace: other"),
            pod("done", "10.244.1.6", 8080).replace("Running", "Succeeded"),
        ];
        let slices = slices(&documents(&yaml.concat()).unwrap_or_default()).unwrap_or_default();
        let told = |slice: &Value| {
            let endpoints = slice["endpoints"].as_array().into_iter().flatten();
            let addresses = endpoints.map(|endpoint| endpoint["addresses"][0].clone());
            (slice["metadata"]["name"].clone(), slice["ports"].clone(), addresses.collect::<Value>())
        };
        let port = |number: u16| json!([{"name": "http", "protocol": "TCP", "port": number}]);
        assert_eq!(
            slices.iter().map(told).collect::<Vec<_>>(),
            [
                (json!("cart-ipv4-0"), port(8080), json!(["10.244.1.2", "10.244.1.4"])),
                (json!("cart-ipv4-1"), port(9090), json!(["10.244.1.3"])),
            ]
        );
    }
}
