//! Where runtimes keep their things.

use std::{fs, path::Path};

use crate::chain::{Directories, Place};

const K3S: &str = "var/lib/rancher/k3s/agent/etc/cni/net.d";

#[test]
fn k3s_is_found_by_its_configurations_and_what_is_given_counts_more() {
    let given = |conf: Option<&str>, bin: Option<&str>| Directories {
        cni_conf_dir: conf.map(Into::into),
        cni_bin_dir: bin.map(Into::into),
    };
    let k3s_list = format!("{K3S}/10-flannel.conflist");
    let old_k3s = "var/lib/rancher/k3s/data/current/bin/flannel";
    let new_k3s = "var/lib/rancher/k3s/data/cni/flannel";
    let (etc, opt) = ("etc/cni/net.d", "opt/cni/bin");
    for (case, files, given, want) in [
        ("an empty machine", vec![], given(None, None), (etc, opt)),
        ("kubeadm's", vec!["etc/cni/net.d/10-flannel.conflist"], given(None, None), (etc, opt)),
        (
            "k3s before October 2024",
            vec![&*k3s_list, old_k3s],
            given(None, None),
            (K3S, "var/lib/rancher/k3s/data/current/bin"),
        ),
        (
            "k3s since",
            vec![&*k3s_list, old_k3s, new_k3s],
            given(None, None),
            (K3S, "var/lib/rancher/k3s/data/cni"),
        ),
        (
            "k3s that has not written anything yet",
            vec!["var/lib/rancher/k3s/agent/etc/cni/net.d/.keep", new_k3s],
            given(None, None),
            (K3S, "var/lib/rancher/k3s/data/cni"),
        ),
        (
            "what k3s left behind on a machine that runs something else",
            vec!["var/lib/rancher/k3s/agent/etc/cni/net.d/.keep", "etc/cni/net.d/10-flannel.conflist"],
            given(None, None),
            (etc, opt),
        ),
        ("given", vec![&*k3s_list, new_k3s], given(Some("/c"), Some("/b")), ("/c", "/b")),
        ("plugins of another runtime", vec![&*k3s_list, new_k3s], given(Some("/c"), None), ("/c", opt)),
        ("only the plugins given", vec![&*k3s_list, new_k3s], given(None, Some("/b")), (K3S, "/b")),
    ] {
        let root = tempfile::tempdir().expect("tempdir");
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("below root")).expect("made");
            fs::write(path, "{}").expect("written");
        }
        let at = |path: &str| {
            if path.starts_with('/') { Path::new(path).to_owned() } else { root.path().join(path) }
        };
        let want = Place { configurations: at(want.0), plugins: at(want.1) };
        assert_eq!(Place::find_below(root.path(), &given), want, "{case}");
    }
}
