//! ADD: returns when the pod is enforced, and not before.

use crate::{
    command::{Outcome, ask, sandbox},
    config::{FailurePolicy, NetConf},
    error::CniError,
    protocol::CniRequest,
    request::Request,
};

/// Prints prevResult unchanged.
///
/// `failurePolicy: open` forgives an agent that is away, overloaded or of another release. It does not forgive a
/// refusal: that is an answer, and letting the pod start would turn a decision into its opposite.
pub fn add(request: &Request, conf: &NetConf) -> Result<Outcome, CniError> {
    let attachment = request.attachment()?;
    let previous = conf.previous.as_ref().ok_or(CniError::NotChained)?;
    let (sandbox, mut warnings) = sandbox(request, conf, previous)?;
    match (ask(conf, &CniRequest::Add { attachment, sandbox }), conf.failure_policy) {
        (Ok(()), _) => {}
        (Err(error), FailurePolicy::Open) if error.is_absence() => {
            warnings.push(format!(
                "the pod starts without enforcement (failurePolicy: open): {}",
                error.with_causes()
            ));
        }
        (Err(error), _) => return Err(error),
    }
    Ok(Outcome { answer: Some(previous.raw().to_owned()), warnings })
}
