//! A pod: a namespace wired by real CNI calls, and a server inside that echoes.

use std::{net::IpAddr, sync::Mutex, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    chain::{Added, Attachment, Chain},
    kubelet::Manifests,
    netns::Netns,
    node::Node,
    probe::{Family, Transport},
    server::Server,
};

/// What a pod is, as the API server stores it: without status.
#[derive(Clone, Debug)]
pub struct PodSpec {
    manifest: Value,
}

impl PodSpec {
    /// `key` is `namespace/name`; on node 1 and serving nothing unless told otherwise.
    pub fn new(key: &str) -> Self {
        let (namespace, name) = key.split_once('/').expect("a pod's key is namespace/name");
        Self {
            manifest: json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": namespace, "name": name, "labels": {}},
                "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "lab", "ports": []}]},
            }),
        }
    }

    /// A Pod manifest with `spec.nodeName`; its containers' ports are served.
    pub fn from_manifest(manifest: Value) -> Result<Self> {
        for field in ["/metadata/namespace", "/metadata/name", "/spec/nodeName"] {
            let value = manifest.pointer(field).and_then(Value::as_str);
            value.with_context(|| format!("a pod of the scenario lacks {field}"))?;
        }
        Ok(Self { manifest })
    }

    #[must_use]
    pub fn on(mut self, node: u8) -> Self {
        self.manifest["spec"]["nodeName"] = format!("node-{node}").into();
        self
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.manifest["metadata"]["labels"][key] = value.into();
        self
    }

    /// Serves this port, and declares it under a name such as `tcp-80`.
    #[must_use]
    pub fn serve(self, transport: Transport, port: u16) -> Self {
        self.serve_as(&format!("{transport}-{port}").to_lowercase(), transport, port)
    }

    /// Serves this port, and declares it under this name.
    #[must_use]
    pub fn serve_as(mut self, name: &str, transport: Transport, port: u16) -> Self {
        let declared = self.manifest["spec"]["containers"][0]["ports"].as_array_mut().expect("made by new");
        declared.push(json!({"name": name, "containerPort": port, "protocol": transport.to_string()}));
        self
    }

    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }

    pub fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub fn node(&self) -> &str {
        self.text("/spec/nodeName")
    }

    /// Ports of all containers; what is neither TCP nor UDP is not served.
    pub fn ports(&self) -> Vec<(Transport, u16)> {
        let containers = self.manifest["spec"]["containers"].as_array().into_iter().flatten();
        containers
            .flat_map(|container| container["ports"].as_array().into_iter().flatten())
            .filter_map(|port| {
                let transport = match port["protocol"].as_str() {
                    None | Some("TCP") => Transport::Tcp,
                    Some("UDP") => Transport::Udp,
                    Some(_) => return None,
                };
                Some((transport, u16::try_from(port["containerPort"].as_u64()?).ok()?))
            })
            .collect()
    }

    fn text(&self, pointer: &str) -> &str {
        self.manifest.pointer(pointer).and_then(Value::as_str).expect("checked when the spec was made")
    }

    fn running(&self, uid: &str, addresses: &[IpAddr], node: &Node) -> Value {
        let mut manifest = self.pending(uid);
        manifest["status"] = json!({
            "phase": "Running",
            "hostIP": node.ipv4(),
            "hostIPs": [{"ip": node.ipv4()}, {"ip": node.ipv6()}],
            "podIP": addresses.first(),
            "podIPs": addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
        });
        manifest
    }

    fn pending(&self, uid: &str) -> Value {
        let mut manifest = self.manifest.clone();
        manifest["metadata"]["uid"] = uid.into();
        manifest
    }
}

/// Something to do inside a pod's namespace.
pub type Act<'a> = Box<dyn FnOnce(&Netns) + 'a>;

/// What happens inside a pod's namespace around ADD.
#[derive(Default)]
pub struct Start<'a> {
    /// Runs before ADD, when the namespace exists and has nothing but loopback.
    pub before_add: Option<Act<'a>>,
    /// Runs as soon as ADD has returned: the first act of the pod's first process.
    pub first_act: Option<Act<'a>>,
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    server: Mutex<Option<Server>>,
    spec: PodSpec,
    attachment: Attachment,
    addresses: Vec<IpAddr>,
    added: Added,
    netns: Netns,
}

impl Pod {
    pub(crate) fn start(
        spec: PodSpec,
        netns: &str,
        node: &Node,
        chain: &Chain,
        manifests: &Manifests,
        start: Start<'_>,
    ) -> Result<Self> {
        let netns = Netns::create(netns)?;
        let mut attachment = Attachment {
            container: format!("{}-{}", netns.name(), spec.name()),
            netns: netns.path(),
            namespace: spec.namespace().to_owned(),
            pod: spec.name().to_owned(),
            uid: format!("uid-{}", netns.name()),
        };
        manifests.write(&spec.pending(&attachment.uid))?;
        if let Some(uid) = manifests.uid("Pod", &spec.key())? {
            attachment.uid = uid;
        }
        if let Some(act) = start.before_add {
            act(&netns);
        }
        let added = match chain.add(node.netns(), &attachment) {
            Ok(added) => added,
            Err(error) => {
                let _ = chain.del(node.netns(), &attachment); // as the runtime does after a failed ADD
                return Err(error);
            }
        };
        if let Some(act) = start.first_act {
            act(&netns);
        }
        let addresses = addresses(&added.result)?;
        let server = Server::start(&netns, &spec.ports())?;
        manifests.write(&spec.running(&attachment.uid, &addresses, node))?;
        Ok(Self { server: Mutex::new(Some(server)), spec, attachment, addresses, added, netns })
    }

    pub(crate) fn stop(&self, node: &Node, chain: &Chain, manifests: &Manifests) -> Result<()> {
        self.quiet();
        chain.del(node.netns(), &self.attachment)?;
        manifests.delete("pod", &self.key())
    }

    /// Ends the server inside; a pod that is dropped with its lab needs no DEL.
    pub(crate) fn quiet(&self) {
        if let Ok(mut server) = self.server.lock() {
            server.take();
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        self.spec.key()
    }

    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    pub fn ip(&self, family: Family) -> IpAddr {
        *self
            .addresses
            .iter()
            .find(|ip| family.has(**ip))
            .expect("the chain gives one address of each family")
    }

    /// The result of the last plugin in the chain.
    pub fn added(&self) -> &Added {
        &self.added
    }

    /// How long `bulkhead-cni` took in ADD; zero in a flat lab.
    pub fn added_by_bulkhead(&self) -> Duration {
        let own = self.added.took.iter().filter(|(plugin, _)| plugin == "bulkhead-cni");
        own.map(|(_, took)| *took).sum()
    }

    /// Datagrams and connections that the pod's server has had from this address.
    pub fn heard_from(&self, address: IpAddr) -> u64 {
        let server = self.server.lock().expect("a server does not panic");
        server.as_ref().map_or(0, |server| server.heard_from(address))
    }
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().context("the result of ADD has no ips")?;
    ips.iter()
        .map(|ip| {
            let text = ip["address"].as_str().unwrap_or_default();
            let address = text.split('/').next().unwrap_or_default();
            address.parse().with_context(|| format!("{text} in the result of ADD is no address"))
        })
        .collect()
}
