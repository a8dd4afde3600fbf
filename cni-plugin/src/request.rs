//! What the runtime asks: the environment, and the bytes on standard input.

use std::{collections::BTreeMap, ffi::OsString, io::Read, path::PathBuf};

use crate::{
    error::CniError,
    kubernetes,
    protocol::{AttachmentId, PodName},
};

/// Longest network configuration, in bytes. GC lists every attachment of the node: 10,000 of them are about 1.2 MB.
pub const MAX_CONFIG: u64 = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// One invocation. Variables are validated by the accessors, because each verb needs others.
#[derive(Debug)]
pub struct Request {
    pub verb: Verb,
    pub stdin: Vec<u8>,
    variables: BTreeMap<&'static str, String>,
}

impl Request {
    /// Reads everything there is to read. `variable` looks a name up in the environment.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>, stdin: impl Read) -> Result<Self, CniError> {
        let mut variables = BTreeMap::new();
        for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            // An empty variable is an unset one: runtimes pass both.
            if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
                let value = value.into_string().map_err(|_| environment(name, "not UTF-8"))?;
                variables.insert(name, value);
            }
        }
        let verb = match variables.get("CNI_COMMAND").map(String::as_str) {
            Some("ADD") => Verb::Add,
            Some("DEL") => Verb::Del,
            Some("CHECK") => Verb::Check,
            Some("GC") => Verb::Gc,
            Some("STATUS") => Verb::Status,
            Some("VERSION") => Verb::Version,
            Some(other) => {
                let why =
                    format!("unknown verb {other:?}; there are ADD, DEL, CHECK, GC, STATUS and VERSION");
                return Err(environment("CNI_COMMAND", why));
            }
            None => return Err(environment("CNI_COMMAND", "missing")),
        };
        let mut bytes = Vec::new();
        stdin
            .take(MAX_CONFIG + 1)
            .read_to_end(&mut bytes)
            .map_err(CniError::io("reading the network configuration from standard input"))?;
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(CniError::TooLarge { limit: MAX_CONFIG });
        }
        Ok(Self { verb, stdin: bytes, variables })
    }

    /// `CNI_CONTAINERID` and `CNI_IFNAME`, both required.
    pub fn attachment(&self) -> Result<AttachmentId, CniError> {
        let container = self.required("CNI_CONTAINERID")?;
        if !is_identifier(container) {
            let why = "must start with a letter or digit, followed by letters, digits, '_', '.' or '-'";
            return Err(environment("CNI_CONTAINERID", why));
        }
        let ifname = self.required("CNI_IFNAME")?;
        if !is_interface_name(ifname) {
            let why = "must be 1 to 15 characters, not \".\" or \"..\", without '/', ':' or whitespace";
            return Err(environment("CNI_IFNAME", why));
        }
        Ok(AttachmentId { container: container.to_owned(), ifname: ifname.to_owned() })
    }

    /// `CNI_NETNS`, required; whether it exists is not looked at here.
    pub fn netns(&self) -> Result<PathBuf, CniError> {
        let path = PathBuf::from(self.required("CNI_NETNS")?);
        if path.is_absolute() { Ok(path) } else { Err(environment("CNI_NETNS", "must be an absolute path")) }
    }

    /// The pod named in `CNI_ARGS`; `None` for a container that is not a Kubernetes pod.
    pub fn pod(&self) -> Result<Option<PodName>, CniError> {
        kubernetes::pod_of(self.variables.get("CNI_ARGS").map_or("", String::as_str))
            .map_err(|why| environment("CNI_ARGS", why))
    }

    fn required(&self, name: &'static str) -> Result<&str, CniError> {
        self.variables.get(name).map(String::as_str).ok_or_else(|| environment(name, "missing"))
    }
}

/// The specification's shape of container ids and network names.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Linux's rules for interface names, and the specification's.
pub fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(|c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace())
}

fn environment(name: &'static str, why: impl Into<String>) -> CniError {
    CniError::Environment { name, why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(variables: &[(&str, &str)]) -> Result<Request, CniError> {
        let value_of = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(*value))
        };
        Request::read(value_of, &b"{}"[..])
    }

    fn attachment(container: &str, ifname: &str) -> Result<AttachmentId, String> {
        request(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", container), ("CNI_IFNAME", ifname)])
            .and_then(|request| request.attachment())
            .map_err(|error| {
                format!("{} {}", error.code(), error.to_string().split(':').next().unwrap_or_default())
            })
    }

    #[test]
    fn container_and_interface_names_follow_the_specification() {
        let id = |container: &str, ifname: &str| {
            Ok(AttachmentId { container: container.to_owned(), ifname: ifname.to_owned() })
        };
        let bad = |name: &str| Err(format!("4 {name}"));
        for (container, ifname, want) in [
            ("abc", "eth0", id("abc", "eth0")),
            ("0_a.b-C", "fifteen-letters", id("0_a.b-C", "fifteen-letters")),
            ("", "eth0", bad("CNI_CONTAINERID")),
            ("-abc", "eth0", bad("CNI_CONTAINERID")),
            ("a/b", "eth0", bad("CNI_CONTAINERID")),
            ("ä", "eth0", bad("CNI_CONTAINERID")),
            ("abc", "", bad("CNI_IFNAME")),
            ("abc", "..", bad("CNI_IFNAME")),
            ("abc", "et/h0", bad("CNI_IFNAME")),
            ("abc", "eth:0", bad("CNI_IFNAME")),
            ("abc", "eth 0", bad("CNI_IFNAME")),
            ("abc", "sixteen-letters-", bad("CNI_IFNAME")),
        ] {
            assert_eq!(attachment(container, ifname), want, "{container:?} {ifname:?}");
        }
    }

    #[test]
    fn an_unknown_or_missing_verb_is_an_error_that_names_the_variable() {
        for variables in [&[("CNI_COMMAND", "add")][..], &[]] {
            let error = request(variables).expect_err("no such verb");
            assert!(error.code() == 4 && error.to_string().starts_with("CNI_COMMAND: "), "{error}");
        }
    }

    #[test]
    fn a_relative_namespace_path_is_refused() {
        let request = request(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "run/netns/x")]).expect("verb");
        assert_eq!(request.netns().expect_err("relative").to_string(), "CNI_NETNS: must be an absolute path");
    }

    #[test]
    fn an_endless_configuration_is_cut_off() {
        let read = Request::read(|_| Some("ADD".into()), std::io::repeat(b' '));
        assert_eq!(read.expect_err("endless").code(), 6);
    }
}
