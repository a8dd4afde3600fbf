//! What libcni does: runs the plugins of a network configuration list in order and remembers the result.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::{
    netns::Netns,
    node::{Node, POD_MTU, pod_network},
    probe::Family,
};

/// Directory of Debian's containernetworking-plugins.
pub const PLUGIN_DIR: &str = "/usr/lib/cni";
pub const NETWORK: &str = "cbr0";
pub const IFNAME: &str = "eth0";

/// A network configuration list and where its plugins run.
#[derive(Debug)]
pub struct Chain {
    list: List,
    path: Vec<PathBuf>,
    cache: PathBuf,
    /// The last plugin is in the list.
    complete: AtomicBool,
}

/// Where the list comes from.
#[derive(Debug)]
enum List {
    Fixed(Value),
    /// Read anew at every call, as containerd does when the directory changes: the first file by its name.
    Directory(PathBuf),
}

/// One attachment as the runtime names it.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub container: String,
    pub netns: PathBuf,
    pub namespace: String,
    pub pod: String,
    pub uid: String,
}

/// What ADD gave, and how long each plugin took.
#[derive(Clone, Debug)]
pub struct Added {
    pub result: Value,
    pub took: Vec<(String, Duration)>,
}

/// A plugin's own error: `code` and `msg` as the CNI specification has them.
#[derive(Debug)]
pub struct PluginError {
    pub plugin: String,
    pub code: Option<u64>,
    pub message: String,
}

impl std::fmt::Display for PluginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => write!(f, "{}: CNI error {code}: {}", self.plugin, self.message),
            None => write!(f, "{}: {}", self.plugin, self.message),
        }
    }
}

impl std::error::Error for PluginError {}

impl Chain {
    /// What flannel's plugin hands to its delegates on this node, then `last` if given.
    pub fn flannel(node: &Node, last: Option<(Value, &Path)>) -> Self {
        let bridge = json!({
            "type": "bridge", "bridge": "cni0", "mtu": POD_MTU,
            "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": node.dir().join("host-local"),
                "ranges": [[{"subnet": node.pods_v4()}], [{"subnet": node.pods_v6()}]],
                // flannel leaves the gateway to the bridge plugin, whose CHECK then misses it.
                "routes": [
                    {"dst": pod_network(Family::V4), "gw": node.pods_v4().nth(1)},
                    {"dst": pod_network(Family::V6), "gw": node.pods_v6().nth(1)},
                ],
            },
        });
        let (mut plugins, mut path) = (vec![bridge], vec![PathBuf::from(PLUGIN_DIR)]);
        if let Some((config, binary)) = last {
            plugins.push(config);
            path.extend(binary.parent().map(Path::to_path_buf));
        }
        Self {
            list: List::Fixed(json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins})),
            path,
            cache: node.dir().join("cni-cache/results"),
            complete: AtomicBool::new(true),
        }
    }

    /// Whatever the node's directories hold when a pod starts or ends.
    pub fn of_directory(node: &Node) -> Self {
        Self {
            list: List::Directory(node.cni_configurations()),
            path: vec![PLUGIN_DIR.into(), node.cni_plugins()],
            cache: node.dir().join("cni-cache/results"),
            complete: AtomicBool::new(true),
        }
    }

    /// The list as a file in `/etc/cni/net.d` would hold it.
    pub fn conflist(&self) -> Result<Value> {
        let directory = match &self.list {
            List::Fixed(list) => {
                let mut list = list.clone();
                if !self.complete.load(Ordering::Relaxed)
                    && let Some(plugins) = list["plugins"].as_array_mut()
                {
                    plugins.pop();
                }
                return Ok(list);
            }
            List::Directory(directory) => directory,
        };
        let files = fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path()));
        let lists = files.filter(|path| path.extension().is_some_and(|e| e == "conflist"));
        let first = lists.min().with_context(|| format!("no conflist in {}", directory.display()))?;
        serde_json::from_slice(&fs::read(&first)?).with_context(|| format!("{} is no JSON", first.display()))
    }

    /// Puts the last plugin into a list that is no file, or takes it out.
    pub fn set_complete(&self, complete: bool) {
        self.complete.store(complete, Ordering::Relaxed);
    }

    /// What the last plugin of the list finds on its standard input.
    pub fn last_config(&self, previous: Option<&Value>) -> Result<Value> {
        let list = self.conflist()?;
        let ours = plugins(&list).last().context("the list names no plugin")?;
        Ok(completed(&list, ours, previous))
    }

    /// ADD through the whole list. A failure leaves what the earlier plugins did: the runtime follows with DEL.
    pub fn add(&self, node: &Netns, attachment: &Attachment) -> Result<Added> {
        let (mut result, mut took, list) = (None, Vec::new(), self.conflist()?);
        for plugin in plugins(&list) {
            let start = Instant::now();
            let answer = self.call("ADD", node, attachment, &completed(&list, plugin, result.as_ref()))?;
            took.push((plugin_name(plugin).to_owned(), start.elapsed()));
            result = Some(serde_json::from_slice(&answer).with_context(|| {
                format!("{} printed no result: {}", plugin_name(plugin), String::from_utf8_lossy(&answer))
            })?);
        }
        let result = result.context("the list names no plugin")?;
        self.remember(attachment, &list, &result)?;
        Ok(Added { result, took })
    }

    /// CHECK through the whole list, against the remembered result.
    pub fn check(&self, node: &Netns, attachment: &Attachment) -> Result<()> {
        let result = self.remembered(attachment).context("CHECK needs the result of ADD")?;
        let list = self.conflist()?;
        for plugin in plugins(&list) {
            self.call("CHECK", node, attachment, &completed(&list, plugin, Some(&result)))?;
        }
        Ok(())
    }

    /// DEL in reverse order; may be repeated, and follows a failed ADD.
    pub fn del(&self, node: &Netns, attachment: &Attachment) -> Result<()> {
        let result = self.remembered(attachment);
        let list = self.conflist()?;
        for plugin in plugins(&list).iter().rev() {
            self.call("DEL", node, attachment, &completed(&list, plugin, result.as_ref()))?;
        }
        match fs::remove_file(self.cache_file(attachment)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn call(&self, verb: &str, node: &Netns, attachment: &Attachment, config: &Value) -> Result<Vec<u8>> {
        let name = plugin_name(config);
        let binary =
            self.path.iter().map(|dir| dir.join(name)).find(|binary| binary.exists()).with_context(|| {
                format!("no plugin {name} in {:?} (Debian package containernetworking-plugins)", self.path)
            })?;
        invoke(node, &binary, &attachment.environment(verb, &self.path), config.to_string().as_bytes())
            .map_err(|error| {
                anyhow!(error).context(format!("{verb} of {}/{}", attachment.namespace, attachment.pod))
            })
    }

    /// libcni's cache of results: the agent adopts running pods from it.
    fn remember(&self, attachment: &Attachment, list: &Value, result: &Value) -> Result<()> {
        fs::create_dir_all(&self.cache)?;
        let entry = json!({
            "kind": "cniCacheV1",
            "containerId": attachment.container,
            "config": base64(list.to_string().as_bytes()),
            "ifName": IFNAME,
            "networkName": NETWORK,
            "netns": attachment.netns,
            "cniArgs": attachment.cni_args(),
            "result": result,
        });
        Ok(fs::write(self.cache_file(attachment), entry.to_string())?)
    }

    fn remembered(&self, attachment: &Attachment) -> Option<Value> {
        let entry = fs::read(self.cache_file(attachment)).ok()?;
        serde_json::from_slice::<Value>(&entry).ok()?.get("result").cloned()
    }

    fn cache_file(&self, attachment: &Attachment) -> PathBuf {
        self.cache.join(format!("{NETWORK}-{}-{IFNAME}", attachment.container))
    }
}

impl Attachment {
    /// The variables that the runtime sets for a plugin.
    pub fn environment(&self, verb: &str, path: &[PathBuf]) -> Vec<(&'static str, OsString)> {
        vec![
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", self.container.clone().into()),
            ("CNI_NETNS", self.netns.clone().into()),
            ("CNI_IFNAME", IFNAME.into()),
            ("CNI_ARGS", self.args_string().into()),
            ("CNI_PATH", std::env::join_paths(path).expect("plugin directories have no colon")),
        ]
    }

    fn cni_args(&self) -> Vec<[String; 2]> {
        [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &self.namespace),
            ("K8S_POD_NAME", &self.pod),
            ("K8S_POD_INFRA_CONTAINER_ID", &self.container),
            ("K8S_POD_UID", &self.uid),
        ]
        .map(|(key, value)| [key.to_owned(), value.to_owned()])
        .to_vec()
    }

    fn args_string(&self) -> String {
        self.cni_args().into_iter().map(|pair| pair.join("=")).collect::<Vec<_>>().join(";")
    }
}

/// Runs one plugin binary inside `node` and gives what it printed.
pub fn invoke(
    node: &Netns,
    binary: &Path,
    environment: &[(&'static str, OsString)],
    stdin: &[u8],
) -> Result<Vec<u8>, PluginError> {
    let plugin = binary.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |message: String| PluginError { plugin: plugin.clone(), code: None, message };
    let mut child = node
        .command(binary)
        .map_err(|e| failed(e.to_string()))?
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("cannot run {}: {e}", binary.display())))?;
    // A plugin may answer without having read everything (EPIPE); its answer tells.
    let _ = child.stdin.take().expect("stdin is piped").write_all(stdin);
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    Err(PluginError {
        code: answer.get("code").and_then(Value::as_u64),
        message: match answer {
            Value::Null => format!(
                "{}, stdout {:?}, stderr {:?}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
            _ => format!("{} {}", text("msg"), text("details")).trim().to_owned(),
        },
        plugin,
    })
}

fn plugins(list: &Value) -> &[Value] {
    list["plugins"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// As libcni does: the list's version and name, and the result so far.
fn completed(list: &Value, plugin: &Value, previous: Option<&Value>) -> Value {
    let mut config = plugin.clone();
    config["cniVersion"] = list["cniVersion"].clone();
    config["name"] = list["name"].clone();
    if let Some(previous) = previous {
        config["prevResult"] = previous.clone();
    }
    config
}

fn plugin_name(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

/// How Go encodes bytes in JSON.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let word =
                (0..3).fold(0_usize, |word, i| word << 8 | usize::from(chunk.get(i).copied().unwrap_or(0)));
            (0..4).map(
                move |i| {
                    if i <= chunk.len() { char::from(ALPHABET[word >> (18 - 6 * i) & 63]) } else { '=' }
                },
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn the_cache_holds_the_list_as_go_encodes_bytes() {
        let encoded = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }
}
