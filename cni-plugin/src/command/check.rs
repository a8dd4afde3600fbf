//! CHECK: is the pod enforced right now?

use crate::{
    command::{Outcome, ask, sandbox},
    config::NetConf,
    error::CniError,
    protocol::CniRequest,
    request::Request,
    version::SpecVersion,
};

/// Looks at the kernel again and has the agent compare. `failurePolicy` plays no part: what cannot be verified is an
/// error.
pub fn check(request: &Request, conf: &NetConf) -> Result<Outcome, CniError> {
    conf.version.knows("CHECK", SpecVersion::V0_4_0)?;
    let attachment = request.attachment()?;
    let previous = conf.previous.as_ref().ok_or(CniError::NotChained)?;
    let (sandbox, warnings) = sandbox(request, conf, previous)?;
    ask(conf, &CniRequest::Check { attachment, sandbox })?;
    Ok(Outcome { answer: None, warnings })
}
