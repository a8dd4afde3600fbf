//! GC: the runtime says which attachments exist; the agent drops the rest.

use crate::{
    command::{Outcome, ask},
    config::NetConf,
    error::CniError,
    protocol::CniRequest,
    version::SpecVersion,
};

/// A configuration without the list is refused: taking it for an empty one would drop every pod's enforcement.
pub fn gc(conf: &NetConf) -> Result<Outcome, CniError> {
    conf.version.knows("GC", SpecVersion::V1_1_0)?;
    let valid = conf.valid_attachments.clone().ok_or_else(|| {
        CniError::config("cni.dev/valid-attachments", "missing; GC cannot tell what is stale")
    })?;
    ask(conf, &CniRequest::Gc { network: conf.name.clone(), valid })?;
    Ok(Outcome::default())
}
