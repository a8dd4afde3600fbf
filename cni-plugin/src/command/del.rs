//! DEL: never in the way of a pod that goes.

use crate::{
    command::{Outcome, ask},
    config::NetConf,
    error::CniError,
    protocol::CniRequest,
    request::Request,
};

/// Tells the agent. Needs neither namespace nor prevResult, and asks the kernel nothing: they may be gone.
///
/// Whatever the agent says or does not say, DEL succeeds: our programs go with the interface, and the agent finds what
/// it missed when it starts. A failing DEL would keep the plugins before us from releasing interface and address.
pub fn del(request: &Request, conf: &NetConf) -> Result<Outcome, CniError> {
    let attachment = request.attachment()?;
    let warnings = match ask(conf, &CniRequest::Del { attachment }) {
        Ok(()) => vec![],
        Err(error) => vec![format!("the agent cleans up later: {}", error.with_causes())],
    };
    Ok(Outcome { answer: None, warnings })
}
