//! What can go wrong, and the code the runtime is told.

use std::{error::Error, io};

use serde::Serialize;

use crate::{agent::AgentError, version::SpecVersion};

/// One variant per thing an operator would do differently. Codes below 100 are the specification's, section "Error".
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error("cniVersion: {got:?} is not supported; this plugin speaks 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
    IncompatibleVersion { got: String },
    #[error("cniVersion: {verb} needs {since} or newer, the configuration says {version}")]
    VerbUnknownToVersion { verb: &'static str, since: SpecVersion, version: SpecVersion },
    /// Well-formed, but something we do not serve.
    #[error("{field}: {why}")]
    Unsupported { field: String, why: String },
    #[error("{name}: {why}")]
    Environment { name: &'static str, why: String },
    #[error("{doing}")]
    Io { doing: String, source: io::Error },
    #[error("the network configuration on standard input is not a JSON object")]
    Decode { source: serde_json::Error },
    #[error("the network configuration on standard input is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("{field}: {why}")]
    Config { field: String, why: String },
    #[error(
        "prevResult: missing; bulkhead runs after an interface plugin (flannel, bridge) and not on its own"
    )]
    NotChained,
    #[error("the agent asks to try again later: {message}")]
    TryAgain { message: String },
    #[error("the agent cannot be asked; try again later")]
    AgentAway { source: AgentError },
    /// STATUS only. Code 50 and not 51: with the agent away the kernel keeps enforcing for pods that run already.
    #[error("not available: {why}")]
    NotAvailable { why: String },
    /// The agent's own verdict; the code is the agent's.
    #[error("{message}")]
    Refused { code: u32, message: String },
    /// Something answers on the socket, but not in our protocol.
    #[error("the agent's answer cannot be read")]
    Protocol { source: AgentError },
    /// The kernel's picture of the interface is not that of a pod behind a veth pair.
    #[error("interface {ifname} in {netns}: {why}")]
    NotAVeth { ifname: String, netns: String, why: String },
}

impl CniError {
    /// For `map_err`: what was being done when the I/O failed.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub fn config(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Config { field: field.into(), why: why.into() }
    }

    /// Whether the agent is missing rather than against it: what `failurePolicy` is about.
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::TryAgain { .. } | Self::AgentAway { .. } | Self::Protocol { .. })
    }

    pub const fn code(&self) -> u32 {
        match self {
            Self::IncompatibleVersion { .. } | Self::VerbUnknownToVersion { .. } => 1,
            Self::Unsupported { .. } => 2,
            Self::Environment { .. } => 4,
            Self::Io { .. } => 5,
            Self::Decode { .. } | Self::TooLarge { .. } => 6,
            Self::Config { .. } | Self::NotChained => 7,
            Self::TryAgain { .. } | Self::AgentAway { .. } => 11,
            Self::NotAvailable { .. } => 50,
            Self::Refused { code, .. } => *code,
            Self::Protocol { .. } => 100,
            Self::NotAVeth { .. } => 101,
        }
    }

    /// The error object of the specification, as JSON.
    pub fn report(&self, version: SpecVersion) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Report {
            cni_version: SpecVersion,
            code: u32,
            msg: String,
            #[serde(skip_serializing_if = "String::is_empty")]
            details: String,
        }
        let report =
            Report { cni_version: version, code: self.code(), msg: self.to_string(), details: self.causes() };
        serde_json::to_string(&report).expect("strings and integers serialize")
    }

    /// Message and causes on one line.
    pub fn with_causes(&self) -> String {
        match self.causes() {
            causes if causes.is_empty() => self.to_string(),
            causes => format!("{self}: {causes}"),
        }
    }

    fn causes(&self) -> String {
        std::iter::successors(self.source(), |cause| (*cause).source())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_report_has_version_code_message_and_causes() {
        let error = CniError::io("opening /x")(io::Error::new(io::ErrorKind::NotFound, "no such file"));
        let report: Value = serde_json::from_str(&error.report(SpecVersion::V0_4_0)).expect("JSON");
        assert_eq!(
            report,
            json!({"cniVersion": "0.4.0", "code": 5, "msg": "opening /x", "details": "no such file"})
        );
    }

    #[test]
    fn details_are_left_out_where_there_is_no_cause() {
        let report: Value =
            serde_json::from_str(&CniError::NotChained.report(SpecVersion::NEWEST)).expect("JSON");
        assert_eq!(
            report.as_object().expect("object").keys().collect::<Vec<_>>(),
            ["cniVersion", "code", "msg"]
        );
    }
}
