//! ADDs on their way: each is answered when its pod is known and enforced, or when it is clear that it will not be.

use std::time::{Duration, Instant};

use bulkhead_cni::protocol::{AttachmentId, CniAnswer, Sandbox};
use tokio::sync::oneshot;

use super::{attaching::Begun, node::Node, verbs::NotAdded};
use crate::source::{kubernetes::Fetched, running::Source};

/// How long an ADD waits for its Pod object. The plugin's own deadline (10 s) is longer, so that the
/// answer, not a timeout, says why.
const POD_WAIT: Duration = Duration::from_secs(4);

#[derive(Default)]
pub(super) struct Admission {
    adds: Vec<Add>,
}

struct Add {
    attachment: AttachmentId,
    sandbox: Sandbox,
    since: Instant,
    asked: Asked,
    /// What is known may be behind what is: nothing is decided before the source has been asked.
    doubtful: bool,
    /// Rules are in the kernel; programs are on their way to the interface.
    begun: Option<Begun>,
    answer: oneshot::Sender<CniAnswer>,
}

/// Whether the source was asked for this very pod.
enum Asked {
    No,
    Yes,
    Answered(Result<(), String>),
}

impl Admission {
    pub fn add(
        &mut self,
        attachment: AttachmentId,
        sandbox: Sandbox,
        source: &Source,
        answer: oneshot::Sender<CniAnswer>,
    ) {
        let doubtful = source.is_behind();
        let since = Instant::now();
        self.adds.push(Add { attachment, sandbox, since, asked: Asked::No, doubtful, begun: None, answer });
    }

    /// DEL: what was to be added is not any more.
    pub fn forget(&mut self, attachment: &AttachmentId, node: &Node) {
        for add in self.adds.extract_if(.., |add| add.attachment == *attachment) {
            let message = "the runtime has taken the pod away meanwhile".to_owned();
            add.finish(CniAnswer::TryAgain { message }, node);
        }
    }

    /// Programs have been put on the interface, or not: whoever waits for that is answered.
    pub fn attached(&mut self, node: &mut Node, ifindex: u32, result: &Result<(), String>) {
        let waits = |add: &mut Add| add.begun.as_ref().is_some_and(|begun| begun.ifindex == ifindex);
        for mut add in self.adds.extract_if(.., waits).collect::<Vec<_>>() {
            let begun = add.begun.take().expect("it was there an instant ago");
            let answer = node.finish_add(&add.attachment, begun, result);
            add.finish(answer, node);
        }
    }

    pub fn fetched(&mut self, fetched: &Fetched) {
        for add in &mut self.adds {
            if add.sandbox.pod.as_ref() == Some(&fetched.pod) {
                add.asked = Asked::Answered(fetched.result.clone());
            }
        }
    }

    /// Answers the ADDs that can be answered by now.
    pub fn retry(&mut self, node: &mut Node, source: &Source) {
        for mut add in std::mem::take(&mut self.adds) {
            if let Some(answer) = add.attempt(node, source) {
                add.finish(answer, node);
            } else {
                self.adds.push(add);
            }
        }
    }
}

impl Add {
    fn finish(self, answer: CniAnswer, node: &Node) {
        node.meters.add_answered(code(&answer), self.since.elapsed());
        if self.answer.send(answer).is_err() {
            // The plugin gave up, and the runtime will call DEL.
            tracing::warn!(container = self.attachment.container, "nobody waits for this ADD any more");
        }
    }

    /// `None`: not yet.
    fn attempt(&mut self, node: &mut Node, source: &Source) -> Option<CniAnswer> {
        if self.begun.is_some() {
            return None;
        }
        if self.doubtful && !matches!(self.asked, Asked::Answered(_)) && self.ask(source) {
            return None;
        }
        match node.add(&self.attachment, &self.sandbox) {
            Ok(None) => Some(CniAnswer::Ok),
            Ok(begun) => {
                self.begun = begun;
                None
            }
            Err(NotAdded::Answer(answer)) => Some(answer),
            Err(NotAdded::Unknown(message)) => match &self.asked {
                Asked::Answered(Err(error)) => {
                    Some(CniAnswer::TryAgain { message: format!("{message}: {error}") })
                }
                _ if self.since.elapsed() >= POD_WAIT => Some(CniAnswer::TryAgain { message }),
                _ => {
                    self.ask(source);
                    None
                }
            },
        }
    }

    /// Once; whether an answer is still to come.
    fn ask(&mut self, source: &Source) -> bool {
        if matches!(self.asked, Asked::No)
            && let Some(pod) = &self.sandbox.pod
            && source.fetch(pod)
        {
            self.asked = Asked::Yes;
        }
        matches!(self.asked, Asked::Yes)
    }
}

/// As the plugin reports it to the runtime.
fn code(answer: &CniAnswer) -> u32 {
    match answer {
        CniAnswer::Ok => 0,
        CniAnswer::TryAgain { .. } => 11,
        CniAnswer::Failed { code, .. } => *code,
    }
}
