//! The API server's part, played with files: the directory of manifests that all agents of a lab watch.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;

/// A directory with one file per object. Files appear and change whole (written aside, then renamed).
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    /// Told everything as well.
    api: Option<Arc<ApiServer>>,
    writes: AtomicU32,
    marks: AtomicU32,
}

impl Manifests {
    pub(crate) fn create(dir: &Path, api: Option<Arc<ApiServer>>) -> Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), api, writes: AtomicU32::new(0), marks: AtomicU32::new(0) })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stores one object under its kind and name.
    pub fn write(&self, object: &Value) -> Result<()> {
        let text = serde_json::to_string_pretty(object)?; // JSON is YAML
        self.write_text(&file_name(object)?, &text)?;
        if let Some(api) = &self.api {
            api.admin().apply(object)?;
        }
        Ok(())
    }

    /// The UID that the API server has given to an object, if there is one.
    pub(crate) fn uid(&self, kind: &str, key: &str) -> Result<Option<String>> {
        let Some(api) = &self.api else { return Ok(None) };
        let uid = api.admin().get(kind, key)?["metadata"]["uid"].as_str().map(str::to_owned);
        Ok(Some(uid.context("an object without a UID")?))
    }

    /// Stores any text as a manifest file, readable or not; an API server is not told of it.
    pub fn write_text(&self, file: &str, text: &str) -> Result<()> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        let aside = self.dir.join(format!(".write-{number}.tmp"));
        fs::write(&aside, text)?;
        fs::rename(&aside, self.dir.join(file)).with_context(|| format!("cannot store {file}"))
    }

    /// Stores every document of a YAML text and returns them.
    pub fn apply(&self, yaml: &str) -> Result<Vec<Value>> {
        let objects = documents(yaml)?;
        objects.iter().try_for_each(|object| self.write(object))?;
        Ok(objects)
    }

    /// Changes a stored object; `key` is `namespace/name`, or `name` for what has no namespace.
    pub fn edit(&self, kind: &str, key: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let file = file_of(kind, key);
        let text = fs::read_to_string(self.dir.join(&file)).with_context(|| format!("cannot read {file}"))?;
        let mut object = serde_yaml_ng::from_str(&text)?;
        change(&mut object);
        self.write(&object)
    }

    /// Stores one more object of a kind that nobody uses, and tells how many there are.
    pub(crate) fn mark(&self, kind: &str) -> Result<u32> {
        let number = self.marks.fetch_add(1, Ordering::Relaxed) + 1;
        let mark = |n| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": format!("mark-{n}")}});
        let marks: Vec<_> = (1..=number).map(|n| mark(n).to_string()).collect();
        self.write_text(&format!("{}-marks.yaml", kind.to_lowercase()), &marks.join("\n---\n"))?;
        Ok(number)
    }

    /// All manifest files, by name.
    pub fn snapshot(&self) -> Result<BTreeMap<String, String>> {
        let files =
            fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        files
            .filter(|name| !matches!(name, Ok(name) if name.starts_with('.')))
            .map(|name: Result<String>| {
                let name = name?;
                let text = fs::read_to_string(self.dir.join(&name))?;
                Ok((name, text))
            })
            .collect()
    }

    /// Brings the directory back to what it was.
    pub fn restore(&self, snapshot: &BTreeMap<String, String>) -> Result<()> {
        let now = self.snapshot()?;
        for (name, text) in snapshot.iter().filter(|(name, text)| now.get(*name) != Some(text)) {
            self.write_text(name, text)?;
            if let Some(api) = &self.api {
                documents(text)?.iter().try_for_each(|object| api.admin().apply(object).map(drop))?;
            }
        }
        for (name, text) in now.iter().filter(|(name, _)| !snapshot.contains_key(*name)) {
            fs::remove_file(self.dir.join(name))?;
            if let Some(api) = &self.api {
                documents(text)?.iter().try_for_each(|object| api.admin().remove(object))?;
            }
        }
        Ok(())
    }

    /// Removes an object; `key` is `namespace/name`, or `name` for what has no namespace.
    pub fn delete(&self, kind: &str, key: &str) -> Result<()> {
        let file = file_of(kind, key);
        fs::remove_file(self.dir.join(&file)).with_context(|| format!("cannot remove {file}"))?;
        if let Some(api) = &self.api {
            api.admin().delete(kind, key)?;
        }
        Ok(())
    }
}

/// The documents of a YAML text; empty ones are left out.
pub fn documents(yaml: &str) -> Result<Vec<Value>> {
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|document| Value::deserialize(document).context("not a YAML document"))
        .filter(|document| !matches!(document, Ok(Value::Null)))
        .collect()
}

/// The documents of every YAML file of a directory, in the order of file names.
pub fn read_dir(dir: &Path) -> Result<Vec<Value>> {
    let mut files = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    let documents = files
        .iter()
        .map(|path| documents(&fs::read_to_string(path)?).with_context(|| format!("in {}", path.display())));
    Ok(documents.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn file_name(object: &Value) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").context("an object has no kind")?;
    let name = text("/metadata/name").context("an object has no name")?;
    Ok(match text("/metadata/namespace") {
        Some(namespace) => file_of(kind, &format!("{namespace}/{name}")),
        None => file_of(kind, name),
    })
}

fn file_of(kind: &str, key: &str) -> String {
    format!("{}-{}.yaml", kind.to_lowercase(), key.replace('/', "-"))
}
