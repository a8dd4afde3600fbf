//! Versions of the CNI specification.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::CniError;

/// The versions this plugin speaks. Ordered: a later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl SpecVersion {
    /// Oldest first, as VERSION lists them.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    pub const NEWEST: Self = Self::V1_1_0;

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Exact spelling only; everything else is [`CniError::IncompatibleVersion`].
    pub fn parse(text: &str) -> Result<Self, CniError> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| CniError::IncompatibleVersion { got: text.to_owned() })
    }

    /// The version an answer is written in: the one on standard input if we speak it, else our newest. Never fails,
    /// because an error about unreadable input has to carry a version too.
    pub fn for_answer(stdin: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Head {
            #[serde(rename = "cniVersion")]
            version: String,
        }
        serde_json::from_slice::<Head>(stdin)
            .ok()
            .and_then(|head| Self::parse(&head.version).ok())
            .unwrap_or(Self::NEWEST)
    }

    /// An error unless this version knows a verb introduced in `since`.
    pub fn knows(self, verb: &'static str, since: Self) -> Result<(), CniError> {
        if self >= since {
            Ok(())
        } else {
            Err(CniError::VerbUnknownToVersion { verb, since, version: self })
        }
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for SpecVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_written_in_the_version_asked_for_or_else_the_newest() {
        for (stdin, want) in [
            (r#"{"cniVersion":"0.3.1"}"#, SpecVersion::V0_3_1),
            (r#"{"cniVersion":"1.0.0","name":7}"#, SpecVersion::V1_0_0),
            (r#"{"cniVersion":"0.2.0"}"#, SpecVersion::V1_1_0),
            (r#"{"cniVersion":3}"#, SpecVersion::V1_1_0),
            ("garbage", SpecVersion::V1_1_0),
            ("", SpecVersion::V1_1_0),
        ] {
            assert_eq!(SpecVersion::for_answer(stdin.as_bytes()), want, "{stdin}");
        }
    }

    #[test]
    fn a_verb_is_known_from_its_version_on() {
        assert!(SpecVersion::V0_4_0.knows("CHECK", SpecVersion::V0_4_0).is_ok());
        let error = SpecVersion::V1_0_0.knows("GC", SpecVersion::V1_1_0).expect_err("GC is new in 1.1.0");
        assert_eq!(error.to_string(), "cniVersion: GC needs 1.1.0 or newer, the configuration says 1.0.0");
    }
}
