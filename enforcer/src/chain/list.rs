//! One CNI configuration as text. Edits are of the text: what is not ours stays byte for byte, and taking our entry
//! out gives what was there before it came in.

use std::{borrow::Cow, ops::Range};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Entry, plugin::PLUGIN};

/// Why a runtime could not use a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("{0}")]
    Json(String),
    #[error("it is no JSON object")]
    NoObject,
    #[error("it names no network")]
    NoName,
    #[error("it lists no plugin")]
    NoPlugin,
    #[error("plugin {0} has no type")]
    NoType(usize),
    #[error("it lists nothing but bulkhead-cni, which runs behind the plugin that makes the interface")]
    NothingBefore,
}

impl From<serde_json::Error> for Invalid {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error.to_string())
    }
}

/// A list of plugins: the content of a `.conflist`.
#[derive(Debug)]
pub struct List<'a> {
    text: &'a str,
    plugins: Vec<Plugin<'a>>,
}

/// One plugin's configuration within a text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plugin<'a> {
    kind: Cow<'a, str>,
    at: Range<usize>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Type<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
}

/// serde takes an array for an object with its fields in order; runtimes do not.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Invalid> {
    let value = serde_json::from_str::<&RawValue>(text)?;
    if value.get().starts_with('{') { Ok(serde_json::from_str(text)?) } else { Err(Invalid::NoObject) }
}

impl<'a> List<'a> {
    /// Reads what the runtimes' library (libcni) insists on.
    pub fn parse(text: &'a str) -> Result<Self, Invalid> {
        let head: Head = object(text)?;
        if head.name.is_none_or(|name| name.is_empty()) {
            return Err(Invalid::NoName);
        }
        let plugins = head.plugins.iter().enumerate().map(|(number, raw)| {
            let kind = object::<Type>(raw.get()).map(|t| t.kind).unwrap_or_default();
            if kind.is_empty() {
                return Err(Invalid::NoType(number));
            }
            // The parser lends parts of the very text that it was given.
            let start = raw.get().as_ptr().addr() - text.as_ptr().addr();
            Ok(Plugin { kind, at: start..start + raw.get().len() })
        });
        let plugins = plugins.collect::<Result<Vec<_>, _>>()?;
        if plugins.is_empty() {
            return Err(Invalid::NoPlugin);
        }
        Ok(Self { text, plugins })
    }

    /// Types of the plugins, in order, without ours.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| &*plugin.kind).filter(|kind| *kind != PLUGIN)
    }

    pub fn holds_ours(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.kind == PLUGIN)
    }

    /// The text with our entry, once and behind the plugin that makes the interface; `None` if it is so already.
    pub fn with(&self, entry: &Entry) -> Result<Option<String>, Invalid> {
        if self.others().next().is_none() {
            return Err(Invalid::NothingBefore);
        }
        let ours: Vec<_> = (0..self.plugins.len()).filter(|i| self.plugins[*i].kind == PLUGIN).collect();
        match ours[..] {
            [] => Ok(Some(self.append(&entry.text()))),
            [at] if at > 0 => {
                let at = self.plugins[at].at.clone();
                Ok(entry.corrected(&self.text[at.clone()]).map(|new| splice(self.text, at, &new)))
            }
            _ => {
                let text = self.without().unwrap_or_else(|| self.text.to_owned());
                let list = List::parse(&text)?;
                Ok(Some(list.append(&entry.text())))
            }
        }
    }

    /// Behind the last plugin, set off from it as that is from what stands before it.
    fn append(&self, entry: &str) -> String {
        let last = self.plugins.last().expect("a list has plugins");
        let before = &self.text[..last.at.start];
        let gap = &before[before.trim_end().len()..];
        splice(self.text, last.at.end..last.at.end, &format!(",{gap}{entry}"))
    }

    /// The text without our entries; `None` if there is none. A list of nothing but ours has no such text.
    pub fn without(&self) -> Option<String> {
        let first_other = self.plugins.iter().position(|plugin| plugin.kind != PLUGIN)?;
        let mut text = self.text.to_owned();
        // From the end, so that what is still to go has not moved; each with the comma and the gap before it.
        for at in (first_other..self.plugins.len()).rev().filter(|at| self.plugins[*at].kind == PLUGIN) {
            text = splice(&text, self.plugins[at - 1].at.end..self.plugins[at].at.end, "");
        }
        // In front of all others there is no comma before, but one behind.
        text = splice(&text, self.plugins[0].at.start..self.plugins[first_other].at.start, "");
        (text != self.text).then_some(text)
    }

    /// The text with another configuration for the first plugin: that of a list made from a single configuration.
    pub fn with_first(&self, configuration: &str) -> String {
        splice(self.text, self.plugins[0].at.clone(), configuration.trim())
    }

    /// The first plugin's configuration.
    pub fn first(&self) -> &'a str {
        &self.text[self.plugins[0].at.clone()]
    }
}

fn splice(text: &str, at: Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..at.start], &text[at.end..])
}

/// A single plugin's configuration: the content of a `.conf` or `.json`.
#[derive(Debug)]
pub struct Single<'a> {
    text: &'a str,
    pub kind: Cow<'a, str>,
    name: &'a RawValue,
    version: Option<&'a RawValue>,
}

impl<'a> Single<'a> {
    pub fn parse(text: &'a str) -> Result<Self, Invalid> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw<'a> {
            #[serde(borrow)]
            name: Option<&'a RawValue>,
            #[serde(borrow)]
            cni_version: Option<&'a RawValue>,
        }
        let kind = object::<Type>(text)?.kind;
        let raw: Raw = object(text)?;
        if kind.is_empty() {
            return Err(Invalid::NoType(0));
        }
        let named =
            |name: &&RawValue| serde_json::from_str::<String>(name.get()).is_ok_and(|n| !n.is_empty());
        let name = raw.name.filter(named).ok_or(Invalid::NoName)?;
        Ok(Self { text: text.trim(), kind, name, version: raw.cni_version })
    }

    /// The list that a runtime makes of it (libcni's `ConfListFromConf`), with our entry.
    pub fn to_list(&self, entry: &Entry) -> String {
        let version = self.version.map(|v| format!("\n  \"cniVersion\": {v},")).unwrap_or_default();
        let (name, own, entry) = (self.name, self.text, entry.text());
        format!("{{{version}\n  \"name\": {name},\n  \"plugins\": [\n    {own},\n    {entry}\n  ]\n}}\n")
    }

    pub fn text(&self) -> &'a str {
        self.text
    }
}
