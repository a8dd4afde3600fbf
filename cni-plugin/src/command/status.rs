//! STATUS: can an ADD be served?

use crate::{
    command::{Outcome, ask},
    config::{FailurePolicy, NetConf},
    error::CniError,
    protocol::CniRequest,
    version::SpecVersion,
};

/// Ready when the agent is. Under `failurePolicy: open` an absent agent is a warning, because ADD would succeed: a
/// node must not become unready for what its pods are allowed to start without.
pub fn status(conf: &NetConf) -> Result<Outcome, CniError> {
    conf.version.knows("STATUS", SpecVersion::V1_1_0)?;
    match (ask(conf, &CniRequest::Status), conf.failure_policy) {
        (Ok(()), _) => Ok(Outcome::default()),
        (Err(error), FailurePolicy::Open) if error.is_absence() => {
            let warning =
                format!("not ready, but pods may start (failurePolicy: open): {}", error.with_causes());
            Ok(Outcome { answer: None, warnings: vec![warning] })
        }
        (Err(error), _) if error.is_absence() => Err(CniError::NotAvailable { why: error.with_causes() }),
        (Err(error), _) => Err(error),
    }
}
