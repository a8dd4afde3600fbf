//! Taking values apart, with each fault tied to the place where it was found.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{path::Path, syntax};
use crate::cluster::object::Labels;

/// Something at one place of a document that the API server would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::source) struct Fault {
    pub path: Path,
    pub message: String,
}

impl Fault {
    pub fn new(path: &Path, message: impl Into<String>) -> Self {
        Self { path: path.clone(), message: message.into() }
    }
}

/// A value and the way to it.
#[derive(Clone, Debug)]
pub(in crate::source) struct At<'v> {
    pub value: &'v Value,
    pub path: Path,
}

impl<'v> At<'v> {
    pub fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(&self.path, message)
    }

    pub fn object(&self) -> Result<Fields<'v>, Fault> {
        match self.value {
            Value::Object(map) => Ok(Fields { map, path: self.path.clone() }),
            other => Err(self.fault(format!("expected a map, found {}", kind_of(other)))),
        }
    }

    pub fn list(&self) -> Result<Vec<At<'v>>, Fault> {
        match self.value {
            Value::Array(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(i, value)| At { value, path: self.path.index(i) })
                .collect()),
            other => Err(self.fault(format!("expected a list, found {}", kind_of(other)))),
        }
    }

    pub fn string(&self) -> Result<&'v str, Fault> {
        self.value
            .as_str()
            .ok_or_else(|| self.fault(format!("expected a string, found {}", kind_of(self.value))))
    }

    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_path_to_error::deserialize(self.value).map_err(|error| Fault {
            path: self.path.join(error.path()),
            message: error.into_inner().to_string(),
        })
    }
}

/// A map and the way to it.
#[derive(Clone, Debug)]
pub(in crate::source) struct Fields<'v> {
    pub map: &'v Map<String, Value>,
    pub path: Path,
}

impl<'v> Fields<'v> {
    /// A field that is null is one that is missing.
    pub fn get(&self, key: &str) -> Option<At<'v>> {
        let value = self.map.get(key).filter(|v| !v.is_null())?;
        Some(At { value, path: self.path.key(key) })
    }

    /// Empty when missing.
    pub fn list(&self, key: &str) -> Result<Vec<At<'v>>, Fault> {
        self.get(key).map_or(Ok(Vec::new()), |at| at.list())
    }

    pub fn string(&self, key: &str) -> Result<Option<&'v str>, Fault> {
        self.get(key).map(|at| at.string()).transpose()
    }

    pub fn decode<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Fault> {
        self.get(key).map(|at| at.decode()).transpose()
    }

    pub fn unknown(&self, known: &[&str]) -> Vec<Fault> {
        let unknown = self.map.keys().filter(|k| !known.contains(&k.as_str()));
        unknown.map(|k| Fault::new(&self.path.key(k), "unknown field")).collect()
    }

    /// The entries of a string map that are labels; a null value is an empty one, as for the API server.
    pub fn labels(&self, key: &str) -> Result<(Labels, Vec<(String, Fault)>), Fault> {
        let Some(at) = self.get(key) else { return Ok((Labels::new(), Vec::new())) };
        let fields = at.object()?;
        let (mut labels, mut faults) = (Labels::new(), Vec::new());
        for (name, value) in fields.map {
            let at = At { value, path: fields.path.key(name) };
            let text = if value.is_null() { Ok("") } else { at.string() };
            match text.and_then(|text| check_label(name, text).map(|()| text).map_err(|e| at.fault(e))) {
                Ok(text) => labels.insert(name.as_str(), text),
                Err(fault) => faults.push((name.clone(), fault)),
            }
        }
        Ok((labels, faults))
    }
}

fn check_label(key: &str, value: &str) -> Result<(), String> {
    syntax::label_key(key).and_then(|()| syntax::label_value(value))
}

pub(in crate::source) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// Notes the fault, if it is one, and goes on without the value.
pub(in crate::source) fn or_note<T>(result: Result<T, Fault>, faults: &mut Vec<Fault>) -> Option<T> {
    result.map_err(|fault| faults.push(fault)).ok()
}
