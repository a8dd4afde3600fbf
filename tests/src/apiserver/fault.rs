//! What can go wrong between an agent and the API server, and which requests it befalls.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

/// What an agent asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// The first page of a list.
    List,
    /// A later one.
    NextPage,
    Watch,
    /// One object.
    Get,
}

#[derive(Clone, Debug)]
pub enum What {
    /// Refused with this HTTP status.
    Refuse(u16),
    /// The connection breaks after so many bytes of the body.
    Reset(usize),
    /// The body ends properly after so many bytes, wherever that is.
    EndAfter(usize),
    /// So many bytes at a time, with a pause after each.
    Drip(usize, Duration),
    /// No answer at all.
    Hang,
    /// A watch that opens and then tells nothing.
    Silent,
    /// Every event of a watch comes twice.
    Twice,
    /// Each event of a watch that holds this text loses its second half, but not its line end.
    Garble(&'static str),
    /// A watch's next event is followed by word that its version is gone.
    GoneMidway,
    /// A watch without bookmarks.
    NoBookmarks,
}

/// A fault befalls matching requests, all of them or the next few.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Plural; `None`: all.
    pub resource: Option<&'static str>,
    /// `None`: all.
    pub call: Option<Call>,
    pub what: What,
    /// `None`: until it is lifted.
    pub times: Option<u32>,
}

impl Fault {
    pub fn new(what: What) -> Self {
        Self { resource: None, call: None, what, times: None }
    }

    #[must_use]
    pub fn on(mut self, resource: &'static str) -> Self {
        self.resource = Some(resource);
        self
    }

    #[must_use]
    pub fn at(mut self, call: Call) -> Self {
        self.call = Some(call);
        self
    }

    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

/// Shared between a test and the proxy.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    faults: Vec<Fault>,
    /// Accepted instead of any.
    token: Option<String>,
    asked: BTreeMap<(String, Call), u64>,
    /// Requests that were refused for their token.
    unauthorized: u64,
}

impl Faults {
    pub fn add(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Ends all faults but the one about tokens.
    pub fn lift(&self) {
        self.lock().faults.clear();
    }

    /// Only this bearer token is accepted from now on.
    pub fn accept_only(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Requests so far, answered or not.
    pub fn asked(&self, resource: &str, call: Call) -> u64 {
        self.lock().asked.get(&(resource.to_owned(), call)).copied().unwrap_or(0)
    }

    pub fn unauthorized(&self) -> u64 {
        self.lock().unauthorized
    }

    pub(super) fn accepts(&self, authorization: Option<&str>) -> bool {
        let mut inner = self.lock();
        let token = authorization.and_then(|text| text.strip_prefix("Bearer "));
        let accepted = inner.token.as_deref().is_none_or(|accepted| token == Some(accepted));
        inner.unauthorized += u64::from(!accepted);
        accepted
    }

    /// What befalls this request.
    pub(super) fn draw(&self, resource: &str, call: Call) -> Option<What> {
        let mut inner = self.lock();
        *inner.asked.entry((resource.to_owned(), call)).or_default() += 1;
        let befalls = |fault: &Fault| {
            fault.resource.is_none_or(|r| r == resource)
                && fault.call.is_none_or(|c| c == call)
                && fault.times != Some(0)
        };
        let fault = inner.faults.iter_mut().find(|fault| befalls(fault))?;
        fault.times = fault.times.map(|times| times - 1);
        Some(fault.what.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics")
    }
}
