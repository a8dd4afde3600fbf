//! The kinds that are served, and the paths at which they are.

/// One kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    pub kind: &'static str,
    pub api_version: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
}

const CORE: &str = "v1";

pub const RESOURCES: [Resource; 6] = [
    Resource { kind: "Namespace", api_version: CORE, plural: "namespaces", namespaced: false },
    Resource { kind: "Node", api_version: CORE, plural: "nodes", namespaced: false },
    Resource { kind: "Pod", api_version: CORE, plural: "pods", namespaced: true },
    Resource { kind: "Service", api_version: CORE, plural: "services", namespaced: true },
    Resource {
        kind: "NetworkPolicy",
        api_version: "networking.k8s.io/v1",
        plural: "networkpolicies",
        namespaced: true,
    },
    Resource {
        kind: "EndpointSlice",
        api_version: "discovery.k8s.io/v1",
        plural: "endpointslices",
        namespaced: true,
    },
];

impl Resource {
    pub fn of_kind(kind: &str) -> Option<Self> {
        RESOURCES.into_iter().find(|resource| resource.kind.eq_ignore_ascii_case(kind))
    }

    /// Where objects are created: in a namespace, if the kind has them.
    pub fn collection(&self, namespace: &str) -> String {
        let root = if self.api_version == CORE { "api" } else { "apis" };
        let (version, plural) = (self.api_version, self.plural);
        if self.namespaced {
            format!("/{root}/{version}/namespaces/{namespace}/{plural}")
        } else {
            format!("/{root}/{version}/{plural}")
        }
    }
}

/// What a path means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub resource: Resource,
    /// `None`: of all namespaces, or of a kind that has none.
    pub namespace: Option<String>,
    /// `None`: all of them.
    pub name: Option<String>,
    pub status: bool,
}

impl Target {
    /// `None`: nothing that is served.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let find = |plural: &str, namespaced: bool| {
            let fits = |r: &Resource| {
                r.plural == plural && r.api_version == version && (r.namespaced || !namespaced)
            };
            RESOURCES.into_iter().find(fits)
        };
        let (plural, namespace, rest) = match rest {
            ["namespaces", namespace, plural, rest @ ..] if find(plural, true).is_some() => {
                (*plural, Some((*namespace).to_owned()), rest)
            }
            [plural, rest @ ..] => (*plural, None, rest),
            [] => return None,
        };
        let resource = find(plural, namespace.is_some())?;
        let (name, status) = match rest {
            [] => (None, false),
            [name] => (Some((*name).to_owned()), false),
            [name, "status"] => (Some((*name).to_owned()), true),
            _ => return None,
        };
        Some(Self { resource, namespace, name, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_kubernetes() {
        let parse =
            |path: &str| Target::parse(path).map(|t| (t.resource.kind, t.namespace, t.name, t.status));
        let text = |text: &str| Some(text.to_owned());
        for (path, want) in [
            ("/api/v1/pods", Some(("Pod", None, None, false))),
            ("/api/v1/namespaces", Some(("Namespace", None, None, false))),
            ("/api/v1/namespaces/shop", Some(("Namespace", None, text("shop"), false))),
            ("/api/v1/namespaces/shop/pods", Some(("Pod", text("shop"), None, false))),
            ("/api/v1/namespaces/shop/pods/web/status", Some(("Pod", text("shop"), text("web"), true))),
            (
                "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/a",
                Some(("NetworkPolicy", text("shop"), text("a"), false)),
            ),
            ("/apis/discovery.k8s.io/v1/endpointslices", Some(("EndpointSlice", None, None, false))),
            ("/apis/networking.k8s.io/v1/pods", None),
            ("/api/v1/secrets", None),
            ("/version", None),
        ] {
            assert_eq!(parse(path), want, "{path}");
        }
    }
}
