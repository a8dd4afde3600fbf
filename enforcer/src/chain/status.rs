//! What is said about the chain: in `bulkhead status`, and to whoever publishes Events.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::directory::File;

/// Is bulkhead in the node's CNI configuration, and what keeps it out?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Directory of the configurations.
    pub directory: String,
    /// Where the plugin's binary is, or should be.
    pub plugin: String,
    /// Whether the agent keeps both in place, or only looks.
    pub kept: bool,
    /// Configurations that hold the plugin.
    pub chained: Vec<String>,
    /// The configuration in use, if it does not: pods that start by it are not enforced.
    pub unchained: Vec<String>,
    /// Others that no runtime uses while the first one is there.
    pub unused: Vec<String>,
    pub problems: Vec<String>,
    /// The plugin or the entry could not be written.
    pub failed: bool,
    /// How often the entry or the plugin had to be put back since the agent started.
    pub restored: u64,
}

/// What an operator should hear of without asking; one Event each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// In CamelCase, as the Event's reason.
    pub reason: &'static str,
    pub message: String,
}

impl Status {
    pub(super) fn problem(&mut self, file: &File, what: &str) {
        let path = Path::new(&self.directory).join(&file.name);
        self.problems.push(format!("{}: {what}", path.display()));
    }

    pub fn warnings(&self) -> Vec<Warning> {
        let problems = self.problems.iter();
        problems.map(|problem| Warning { reason: "CNIConfiguration", message: problem.clone() }).collect()
    }

    /// Name and value of each line of the table.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let by = if self.kept { "kept by the agent" } else { "not kept by the agent" };
        let state = if self.chained.is_empty() { "in no list".to_owned() } else { self.chained.join(", ") };
        let restored = match self.restored {
            0 => String::new(),
            n => format!(", put back {n} times"),
        };
        let mut lines = vec![("CNI chain", format!("{}: {state} ({by}{restored})", self.directory))];
        for list in &self.unchained {
            lines.push((
                "Problem",
                format!("{list} does not run bulkhead-cni: pods that start now are not enforced"),
            ));
        }
        lines.extend(self.problems.iter().map(|problem| ("Problem", problem.clone())));
        lines
    }
}
