//! bulkhead's place in the node's CNI chain: the plugin's binary, and its entry in the configuration that the
//! runtime uses. Put there once by `bulkhead install-cni`, kept there by the agent, taken away by `uninstall`.
//!
//! ```text
//! settings ─▶ place (paths) ─▶ directory: which files runtimes use ─▶ plan (pure): what to write
//!                                  ▲                                      │
//!                  keeper: on every change, and every few seconds      swap: whole files, nobody's write lost
//!                                                                      plugin: the binary
//! ```
//!
//! The entry goes behind all others, because ADD must return only when the pod's interface is final; where others
//! (Istio, Linkerd, `bandwidth`) insert theirs behind ours it stays where it is: everything after the plugin that
//! makes the interface is as good, and two keepers that both insist on the last place would never rest.
mod directory;
mod entry;
mod keeper;
mod list;
mod place;
mod plan;
mod plugin;
mod removal;
mod status;
mod swap;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

pub use self::{
    directory::{Directory, plugin_types},
    entry::{Entry, FailurePolicy},
    keeper::{Chain, Keeper},
    list::{Invalid, List, Single},
    place::Place,
    plan::Kind,
    plugin::PLUGIN,
    removal::{Removed, remove, remove_plugin},
    status::{Status, Warning},
};

/// Everything is looked at this often, in case the kernel's notifications missed something.
const RESCAN: Duration = Duration::from_secs(5);

/// The agent's part in it.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)] // the agent's own settings have the same name
pub struct Settings {
    /// `auto`: the agent keeps the CNI plugin and its entry in place; `off`: it only looks.
    #[arg(long, env = "BULKHEAD_CHAIN", value_enum, default_value_t)]
    pub chain: Mode,
    #[command(flatten)]
    pub installation: Installation,
}

/// What is installed, and where.
#[derive(Clone, Debug, Default, Args)]
pub struct Installation {
    #[command(flatten)]
    pub directories: Directories,
    /// The plugin's binary; default: `bulkhead-cni` beside this executable.
    #[arg(long, env = "BULKHEAD_PLUGIN", value_name = "PATH")]
    pub plugin: Option<PathBuf>,
    /// What the plugin does when no agent answers: `closed`, the pod does not start yet; `open`, it starts unenforced.
    #[arg(long, env = "BULKHEAD_FAILURE_POLICY", value_enum, default_value_t)]
    pub failure_policy: FailurePolicy,
}

/// The runtime's directories; found on k3s and elsewhere if not given.
#[derive(Clone, Debug, Default, Args)]
pub struct Directories {
    /// Directory of the node's CNI configurations; default: k3s's if there is one, else /etc/cni/net.d.
    #[arg(long, env = "BULKHEAD_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Directory of the node's CNI plugins; default: k3s's if the configurations are k3s's, else /opt/cni/bin.
    #[arg(long, env = "BULKHEAD_CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
}

/// Off unless asked for: an agent started by hand changes nothing about how the node starts pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Auto,
    #[default]
    Off,
}
