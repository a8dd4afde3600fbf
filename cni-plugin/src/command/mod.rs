//! One file per verb. A command decides what is said; `main` says it.

mod add;
mod check;
mod del;
mod gc;
mod status;
mod version;

use crate::{
    agent::{Agent, AgentError},
    config::NetConf,
    error::CniError,
    previous::PrevResult,
    protocol::{CniAnswer, CniRequest, Sandbox},
    request::{Request, Verb},
    sandbox::Wiring,
};

/// A command that succeeded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output; verbs without a result say nothing.
    pub answer: Option<String>,
    /// For standard error.
    pub warnings: Vec<String>,
}

pub fn run(request: &Request) -> Result<Outcome, CniError> {
    if request.verb == Verb::Version {
        return version::version(request);
    }
    let conf = NetConf::parse(&request.stdin)?;
    match request.verb {
        Verb::Add => add::add(request, &conf),
        Verb::Del => del::del(request, &conf),
        Verb::Check => check::check(request, &conf),
        Verb::Gc => gc::gc(&conf),
        Verb::Status | Verb::Version => status::status(&conf),
    }
}

/// The agent's consent, or the typed reason why there is none.
fn ask(conf: &NetConf, request: &CniRequest) -> Result<(), CniError> {
    let agent = Agent { socket: conf.socket.clone(), limit: conf.timeout };
    match agent.ask(request) {
        Ok(CniAnswer::Ok) => Ok(()),
        Ok(CniAnswer::TryAgain { message }) => Err(CniError::TryAgain { message }),
        Ok(CniAnswer::Failed { code, message }) => Err(CniError::Refused { code, message }),
        Err(error @ AgentError::RequestTooLong) => {
            Err(CniError::Unsupported { field: "request".to_owned(), why: error.to_string() })
        }
        Err(source) if source.is_protocol() => Err(CniError::Protocol { source }),
        Err(source) => Err(CniError::AgentAway { source }),
    }
}

/// What ADD and CHECK tell the agent about the container, and what looked odd on the way.
fn sandbox(
    request: &Request,
    conf: &NetConf,
    previous: &PrevResult,
) -> Result<(Sandbox, Vec<String>), CniError> {
    let netns = request.netns()?;
    let pod = request.pod()?;
    let ifname = request.attachment()?.ifname;
    let attached = previous.attached(&ifname)?;
    let wiring = Wiring::observe(&netns, &ifname)?;
    let mut warnings = Vec::new();
    let mac = mac_text(wiring.mac);
    if let Some(claimed) = attached.mac.filter(|claimed| !claimed.eq_ignore_ascii_case(&mac)) {
        warnings.push(format!(
            "prevResult says {ifname} has MAC {claimed}, the kernel says {mac}; the kernel counts"
        ));
    }
    if !attached.host_interfaces.is_empty() && !attached.host_interfaces.contains(&wiring.host_ifname) {
        let host = &wiring.host_ifname;
        warnings
            .push(format!("prevResult does not list {host}, the host end of {ifname}; the kernel counts"));
    }
    let sandbox = Sandbox {
        network: conf.name.clone(),
        netns,
        host_ifname: wiring.host_ifname,
        host_ifindex: wiring.host_ifindex,
        mac: wiring.mac,
        addresses: attached.addresses,
        pod,
    };
    Ok((sandbox, warnings))
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
