//! Tenants: whose a namespace is, and whom it lets in (semantics 38, 39).

use std::collections::BTreeSet;

use super::Settings;
use crate::cluster::object::Namespace;

/// Annotation of the destination namespace: tenants that may connect into it, comma-separated, or `*`.
pub const DOOR_ANNOTATION: &str = "bulkhead.io/allow-tenants";

/// Tenants let in; `None`: any. Empty: none.
pub type Door = Option<BTreeSet<String>>;

/// The label's value, an empty one included; `None`: shared, or tenants are switched off.
pub fn tenant(namespace: &Namespace, settings: &Settings) -> Option<String> {
    namespace.labels.get(settings.tenant_label.as_ref()?).map(ToString::to_string)
}

/// Whom the namespace lets in over its tenant boundary. A shared namespace has no boundary and no door.
pub fn door(namespace: &Namespace, settings: &Settings) -> Door {
    let names = match tenant(namespace, settings) {
        Some(_) => namespace.annotations.get(DOOR_ANNOTATION).map_or("", AsRef::as_ref),
        None => "",
    };
    let names: BTreeSet<String> =
        names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.contains("*") { None } else { Some(names) }
}

pub(super) fn admits(door: &Door, tenant: &str) -> bool {
    door.as_ref().is_none_or(|names| names.contains(tenant))
}
