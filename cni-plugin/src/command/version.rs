//! VERSION: which versions of the specification we speak.

use serde::{Deserialize, Serialize};

use crate::{command::Outcome, error::CniError, request::Request, version::SpecVersion};

/// Answers in the version asked for if we speak it, in our newest otherwise: this is how versions are negotiated, so an
/// unknown one is no error. Empty input is accepted, as runtimes of 0.3.1 send nothing.
pub fn version(request: &Request) -> Result<Outcome, CniError> {
    #[derive(Deserialize)]
    struct Asked {
        #[serde(rename = "cniVersion", default)]
        _version: Option<String>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        cni_version: SpecVersion,
        supported_versions: [SpecVersion; 4],
    }
    if !request.stdin.trim_ascii().is_empty() {
        let _: Asked =
            serde_json::from_slice(&request.stdin).map_err(|source| CniError::Decode { source })?;
    }
    let versions = Versions {
        cni_version: SpecVersion::for_answer(&request.stdin),
        supported_versions: SpecVersion::ALL,
    };
    let answer = serde_json::to_string(&versions).expect("strings serialize");
    Ok(Outcome { answer: Some(answer), warnings: vec![] })
}
