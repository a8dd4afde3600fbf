//! Where this node's runtime has its CNI configurations and plugins.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Directories, directory::is_configuration};

const CONFIGURATIONS: &str = "/etc/cni/net.d";
const PLUGINS: &str = "/opt/cni/bin";
/// k3s writes its flannel configuration here, whatever `/etc/cni` says.
const K3S_CONFIGURATIONS: &str = "/var/lib/rancher/k3s/agent/etc/cni/net.d";
/// The first that exists: `cni` stays over k3s's upgrades (releases since October 2024); before, plugins were beside
/// k3s's own binaries, in a directory per release to which `current` leads.
const K3S_PLUGINS: [&str; 2] = ["/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/data/current/bin"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub configurations: PathBuf,
    pub plugins: PathBuf,
}

impl Place {
    pub fn find(given: &Directories) -> Self {
        Self::find_below(Path::new("/"), given)
    }

    /// `root` stands for `/`. What is given is taken as it is.
    pub(super) fn find_below(root: &Path, given: &Directories) -> Self {
        let at = |path: &str| root.join(path.trim_start_matches('/'));
        let k3s = holds_configurations(&at(K3S_CONFIGURATIONS))
            || (at(K3S_CONFIGURATIONS).is_dir() && !holds_configurations(&at(CONFIGURATIONS)));
        let configurations = || at(if k3s { K3S_CONFIGURATIONS } else { CONFIGURATIONS });
        let configurations = given.cni_conf_dir.clone().unwrap_or_else(configurations);
        let plugins = given.cni_bin_dir.clone().unwrap_or_else(|| {
            let of_k3s = configurations == at(K3S_CONFIGURATIONS);
            let found = K3S_PLUGINS.map(&at).into_iter().find(|path| of_k3s && path.is_dir());
            found.unwrap_or_else(|| at(PLUGINS))
        });
        Self { configurations, plugins }
    }
}

fn holds_configurations(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| entries.flatten().any(|e| is_configuration(&e.path())))
}
