//! Our entry in a list of plugins.

use std::path::Path;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::plugin::PLUGIN;

/// What the plugin does when no agent answers; the words are the plugin's, see `bulkhead_cni::config`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FailurePolicy {
    #[default]
    Closed,
    Open,
}

/// The keys that we answer for. Others in an existing entry (`timeoutSeconds`) are whoever's who wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(Vec<(&'static str, String)>);

impl Entry {
    pub fn new(failure_policy: FailurePolicy, socket: &Path) -> Self {
        let policy = match failure_policy {
            FailurePolicy::Closed => "closed",
            FailurePolicy::Open => "open",
        };
        Self(vec![
            ("type", PLUGIN.to_owned()),
            ("failurePolicy", policy.to_owned()),
            ("socket", socket.display().to_string()),
        ])
    }

    /// One line, in our order.
    pub fn text(&self) -> String {
        let pairs: Vec<_> =
            self.0.iter().map(|(key, value)| format!("{}: {}", json!(key), json!(value))).collect();
        format!("{{{}}}", pairs.join(", "))
    }

    /// The entry with our keys as they should be, or `None` if they are.
    pub fn corrected(&self, present: &str) -> Option<String> {
        let Ok(mut fields) = serde_json::from_str::<Map<String, Value>>(present) else {
            return Some(self.text());
        };
        if self.0.iter().all(|(key, value)| fields.get(*key) == Some(&json!(value))) {
            return None;
        }
        fields.extend(self.0.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
        Some(Value::from(fields).to_string())
    }
}
