//! Does this node really enforce what the cluster says?

use super::status::Status;

/// Why not, one line each; empty: it does.
pub fn reasons(status: &Status) -> Vec<String> {
    let mut reasons = Vec::new();
    if !status.source.synced {
        reasons.push("the cluster's objects have not been read completely yet".to_owned());
    }
    if let Some(error) = &status.datapath.error {
        reasons.push(format!("the kernel does not hold what the policies say: {error}"));
    }
    for endpoint in status.endpoints.iter().filter(|endpoint| !endpoint.up_to_date) {
        if status.source.synced && status.datapath.error.is_none() {
            reasons.push(format!("pod {} on {} is not up to date", endpoint.pod, endpoint.interface));
        }
    }
    reasons
}
