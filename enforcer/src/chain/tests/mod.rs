//! Real flannel configurations, with and without us.
mod edits;
mod keeping;
mod places;
mod plans;
mod removing;

use std::path::Path;

use super::{Entry, FailurePolicy};

/// As flannel's manifest (kube-flannel.yml) writes it.
const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;
/// A single plugin's configuration, as flannel's early manifests had it.
const SINGLE: &str =
    r#"{"name": "cbr0", "cniVersion": "0.3.1", "type": "flannel", "delegate": {"isDefaultGateway": true}}"#;
const OURS: &str = r#"{"type": "bulkhead-cni", "failurePolicy": "closed", "socket": "/run/a.sock"}"#;

fn entry() -> Entry {
    Entry::new(FailurePolicy::Closed, Path::new("/run/a.sock"))
}
