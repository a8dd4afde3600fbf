//! `CNI_ARGS`: `KEY=value` pairs separated by semicolons, by which Kubernetes runtimes name the pod.

use crate::{protocol::PodName, request::is_identifier};

/// The pod named by `args`; `None` when none is named. An error says which part cannot be read.
///
/// As in libcni a key we do not know is an error unless `IgnoreUnknown` is true: it may have been meant to matter.
pub fn pod_of(args: &str) -> Result<Option<PodName>, String> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    let (mut unknown, mut ignore_unknown) = (None, false);
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not KEY=value"))?;
        match key {
            "K8S_POD_NAMESPACE" => namespace = named(key, value)?,
            "K8S_POD_NAME" => name = named(key, value)?,
            "K8S_POD_UID" => uid = named(key, value)?,
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IgnoreUnknown" => ignore_unknown = truth(value)?,
            _ => unknown = unknown.or(Some(key)),
        }
    }
    if let Some(key) = unknown.filter(|_| !ignore_unknown) {
        return Err(format!("unknown key {key:?}, and IgnoreUnknown is not set"));
    }
    match (namespace, name) {
        (Some(namespace), Some(name)) => Ok(Some(PodName { namespace, name, uid })),
        (None, None) => Ok(None),
        (Some(_), None) => Err("K8S_POD_NAMESPACE without K8S_POD_NAME".to_owned()),
        (None, Some(_)) => Err("K8S_POD_NAME without K8S_POD_NAMESPACE".to_owned()),
    }
}

/// Names and UIDs, at most 253 characters. Wider than Kubernetes (capitals, '_'): podman sets the same keys.
fn named(key: &str, value: &str) -> Result<Option<String>, String> {
    match value {
        "" => Ok(None),
        _ if value.len() <= 253 && is_identifier(value) => Ok(Some(value.to_owned())),
        _ => Err(format!("{key}={value:?} is not a name")),
    }
}

/// Go's `strconv.ParseBool` without its one-letter forms, which libcni uses for this key.
fn truth(value: &str) -> Result<bool, String> {
    match value {
        "1" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err(format!("IgnoreUnknown={value:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_completely_or_not_at_all() {
        let pod = |uid: Option<&str>| {
            Ok(Some(PodName { namespace: "shop".into(), name: "cart-0".into(), uid: uid.map(Into::into) }))
        };
        let no = |why: &str| Err(why.to_owned());
        for (args, want) in [
            ("", Ok(None)),
            ("IgnoreUnknown=1;FOO=bar", Ok(None)),
            ("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0", pod(None)),
            (
                "IgnoreUnknown=true;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_INFRA_CONTAINER_ID=ab;K8S_POD_UID=1-2;",
                pod(Some("1-2")),
            ),
            ("X=1;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=", pod(None)),
            ("FOO=bar", no("unknown key \"FOO\", and IgnoreUnknown is not set")),
            ("FOO=bar;IgnoreUnknown=0", no("unknown key \"FOO\", and IgnoreUnknown is not set")),
            ("IgnoreUnknown=maybe", no("IgnoreUnknown=\"maybe\" is neither true nor false")),
            ("K8S_POD_NAME", no("\"K8S_POD_NAME\" is not KEY=value")),
            ("K8S_POD_NAME=cart-0", no("K8S_POD_NAME without K8S_POD_NAMESPACE")),
            ("K8S_POD_NAMESPACE=shop", no("K8S_POD_NAMESPACE without K8S_POD_NAME")),
            ("K8S_POD_NAMESPACE=../etc;K8S_POD_NAME=x", no("K8S_POD_NAMESPACE=\"../etc\" is not a name")),
        ] {
            assert_eq!(pod_of(args), want, "{args}");
        }
    }
}
