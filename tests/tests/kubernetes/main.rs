//! The API server as a source of the cluster's objects: what it says is known, whatever happens on the way.
//!
//! With `KUBEBUILDER_ASSETS` set, the same tests run against etcd and kube-apiserver.
#![expect(clippy::unwrap_used, reason = "tests")]

mod broken;
mod enforced;
mod fetch;
mod order;
mod refused;
mod stage;
mod sync;
mod tls;
