//! From bytes to values: documents with their lines, decoded one by one within bounds.
//!
//! YAML is split into documents before it is parsed, as kubectl does, so that a broken document does not
//! take its neighbours down. Whatever the syntax, the result is a [`serde_json::Value`].

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::source::object::path::{Path, Step};

/// Largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Yaml,
    Json,
}

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'t> {
    bytes: &'t [u8],
    /// Line in the file, from 1, of the document's first byte.
    line: usize,
    syntax: Syntax,
}

/// Why a document has no value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub line: usize,
    pub message: String,
}

pub(super) fn documents(bytes: &[u8], syntax: Syntax) -> Vec<Document<'_>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match syntax {
        Syntax::Yaml => yaml_documents(bytes),
        Syntax::Json => json_documents(bytes),
    }
}

fn yaml_documents(bytes: &[u8]) -> Vec<Document<'_>> {
    let (mut documents, mut start, mut first_line, mut at) = (Vec::new(), 0, 1, 0);
    for (index, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        if is_separator(line) {
            documents.push(Document { bytes: &bytes[start..at], line: first_line, syntax: Syntax::Yaml });
            // What follows the dashes on their line belongs to the next document.
            (start, first_line) = (at + 3, index + 1);
        }
        at += line.len();
    }
    documents.push(Document { bytes: &bytes[start..], line: first_line, syntax: Syntax::Yaml });
    documents.retain(|d| !d.is_blank());
    documents
}

fn is_separator(line: &[u8]) -> bool {
    line.strip_prefix(b"---").is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
}

/// Values that follow one another, as kubectl reads them; after a broken one nothing can be told apart.
fn json_documents(bytes: &[u8]) -> Vec<Document<'_>> {
    let mut stream = serde_json::Deserializer::from_slice(bytes).into_iter::<IgnoredAny>();
    let (mut documents, mut start, mut line) = (Vec::new(), 0, 1);
    loop {
        let gap = bytes[start..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        line += count_lines(&bytes[start..start + gap]);
        start += gap;
        if start == bytes.len() {
            return documents;
        }
        let read = stream.next().is_some_and(|value| value.is_ok());
        let end = if read { stream.byte_offset().max(start) } else { bytes.len() };
        documents.push(Document { bytes: &bytes[start..end], line, syntax: Syntax::Json });
        line += count_lines(&bytes[start..end]);
        start = end;
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.split(|b| *b == b'\n').count() - 1
}

impl Document<'_> {
    /// Only comments, directives and white space.
    fn is_blank(&self) -> bool {
        self.bytes.split(|b| *b == b'\n').all(|line| {
            let line = line.trim_ascii();
            line.is_empty() || line.starts_with(b"#") || line.starts_with(b"%") || line == b"..."
        })
    }

    /// Line of the first byte that says something.
    pub fn first_line(&self) -> usize {
        let said = self.bytes.split(|b| *b == b'\n').position(|line| {
            let line = line.trim_ascii();
            !line.is_empty() && !line.starts_with(b"#")
        });
        self.line + said.unwrap_or(0)
    }

    pub fn value(&self) -> Result<Value, Unreadable> {
        let text = std::str::from_utf8(self.bytes).map_err(|error| Unreadable {
            line: self.line + count_lines(&self.bytes[..error.valid_up_to()]),
            message: "not UTF-8".into(),
        })?;
        // Without aliases a value costs no more than its text; what aliases may add is bounded.
        let budget = Cell::new(4 * text.len() + (1 << 20));
        match self.syntax {
            Syntax::Yaml => Tree(&budget)
                .deserialize(serde_yaml_ng::Deserializer::from_str(text))
                .map_err(|error| self.unreadable(error.location().map(|l| l.line()), &error)),
            Syntax::Json => {
                let mut json = serde_json::Deserializer::from_str(text);
                Tree(&budget)
                    .deserialize(&mut json)
                    .and_then(|value| json.end().map(|()| value))
                    .map_err(|error| self.unreadable(Some(error.line()), &error))
            }
        }
    }

    fn unreadable(&self, line: Option<usize>, error: &impl fmt::Display) -> Unreadable {
        let line = line.filter(|l| *l > 0).map_or_else(|| self.first_line(), |l| self.in_file(l));
        Unreadable { line, message: without_position(&error.to_string()) }
    }

    /// Line in the file of what `path` leads to, or of its nearest ancestor that is there.
    pub fn line_of(&self, path: &Path) -> usize {
        (1..=path.steps().len())
            .rev()
            .find_map(|n| self.find(&path.steps()[..n]))
            .unwrap_or_else(|| self.first_line())
    }

    /// The parsers tell positions only in errors, so the search ends in one.
    fn find(&self, path: &[Step]) -> Option<usize> {
        let text = std::str::from_utf8(self.bytes).ok()?;
        let line = match self.syntax {
            Syntax::Yaml => {
                Find(path).deserialize(serde_yaml_ng::Deserializer::from_str(text)).err()?.location()?.line()
            }
            Syntax::Json => {
                Find(path).deserialize(&mut serde_json::Deserializer::from_str(text)).err()?.line()
            }
        };
        (line > 0).then(|| self.in_file(line))
    }

    /// The file's line for a parser's line of the document, never past the last one that says something: a
    /// parser that misses something at the end looks for it one line below, and YAML has breaks besides `\n`.
    fn in_file(&self, line: usize) -> usize {
        self.line + (line - 1).min(count_lines(self.bytes.trim_ascii_end()))
    }
}

/// Drops the parser's own " at line 3 column 5": they count from the document's start, not the file's.
fn without_position(message: &str) -> String {
    let mut parts = message.split(" at line ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let said = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let said = said.strip_prefix(" column ").unwrap_or(said);
        text + said.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

/// Builds a value while its size stays within the budget (bytes, roughly): YAML aliases multiply.
#[derive(Clone, Copy)]
struct Tree<'b>(&'b Cell<usize>);

impl Tree<'_> {
    fn pay<E: serde::de::Error>(self, size: usize) -> Result<(), E> {
        let left =
            self.0.get().checked_sub(size + 1).ok_or_else(|| E::custom("aliases make it too large"))?;
        self.0.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plain data")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.pay(0).map(|()| Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.pay(0).map(|()| value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.pay(0).map(|()| value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.pay(0).map(|()| value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // Infinite and undefined numbers have no JSON form; null would read as "absent".
        if !value.is_finite() {
            return Err(E::custom(format!("{value} is not a number that JSON knows")));
        }
        self.pay(0).map(|()| value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.pay(value.len()).map(|()| value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.pay::<A::Error>(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.pay::<A::Error>(0)?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(self)? {
            let key = match key {
                Value::String(key) => key,
                // As kubectl, whose YAML becomes JSON: keys are strings.
                Value::Number(_) | Value::Bool(_) => key.to_string(),
                _ => return Err(A::Error::custom("a key is not a string")),
            };
            let value = entries.next_value_seed(self)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate key {key:?}")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Follows a path and fails where it ends, so that the error tells the position.
struct Find<'p>(&'p [Step]);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the way to a field")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.0.split_first() else {
            return Err(A::Error::custom("found"));
        };
        for _ in 0..*wanted {
            if items.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        items.next_element_seed(Find(rest))?;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.0.split_first() else {
            return Err(A::Error::custom("found"));
        };
        while let Some(found) = entries.next_key_seed(FindKey { wanted, is_last: rest.is_empty() })? {
            if found {
                entries.next_value_seed(Find(rest))?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Whether a key is the wanted one; the last of a path is where the search ends.
struct FindKey<'p> {
    wanted: &'p str,
    is_last: bool,
}

impl<'de> DeserializeSeed<'de> for FindKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FindKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.is_last => Err(E::custom("found")),
            found => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fuzz target `manifest`.
    #[test]
    fn a_document_that_ends_too_early_is_wrong_on_its_last_line() {
        let lines = |bytes: &[u8]| {
            let read = documents(bytes, Syntax::Yaml).into_iter().map(|d| d.value().map_err(|e| e.line));
            read.filter_map(Result::err).collect::<Vec<_>>()
        };
        assert_eq!(lines(b"kind: Pod\n---\nkind: Node\nspec: {podCIDR"), [4]);
        assert_eq!(lines(b"kind: Pod\n---\nkind: Node\nspec: {podCIDR\n\n"), [4]);
    }
}
