//! Keeps plugin and entry in place while the agent runs.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::{
    Directories, Directory, Entry, Installation, Mode, Place, RESCAN, Settings,
    directory::original_of,
    plan::{Step, plan},
    plugin::{PLUGIN, Plugin},
    status::Status,
    swap::{self, Swapped},
};

/// An edit is settled when nothing has happened for this long ..
const QUIET: Duration = Duration::from_millis(20);
/// .. or when it has gone on for this long.
const LONGEST_EDIT: Duration = Duration::from_millis(500);
/// Writes of others that are waited for before the next look is left to the next round.
const TRIES: u32 = 16;

/// The chain of one node, looked after by whoever calls [`Chain::tend`].
#[derive(Debug)]
pub struct Chain {
    directories: Directories,
    mode: Mode,
    entry: Entry,
    plugin: Plugin,
    restored: u64,
    /// The entry has been in place: from then on, what is missing is put back rather than in.
    settled: bool,
}

/// What one look had to write.
#[derive(Clone, Copy, Debug, Default)]
struct Writes {
    entries: u64,
    plugins: u64,
}

impl Chain {
    pub fn new(mode: Mode, installation: &Installation, socket: &Path) -> io::Result<Self> {
        Ok(Self {
            directories: installation.directories.clone(),
            mode,
            entry: Entry::new(installation.failure_policy, socket),
            plugin: Plugin::new(installation.plugin.as_deref())?,
            restored: 0,
            settled: false,
        })
    }

    /// Where it is now: k3s's directories may appear later.
    fn place(&self) -> Place {
        Place::find(&self.directories)
    }

    /// One look, and whatever it takes. The plugin first: an entry without it would fail every pod start.
    pub fn tend(&mut self) -> Status {
        let place = self.place();
        let mut status = Status {
            directory: place.configurations.display().to_string(),
            plugin: place.plugins.join(PLUGIN).display().to_string(),
            kept: self.mode == Mode::Auto,
            ..Status::default()
        };
        let writes = if self.mode == Mode::Auto {
            self.keep(&place, &mut status)
        } else {
            self.look(&place, &mut status);
            Writes::default()
        };
        // The first of each puts in, later ones put back.
        let first = u64::from(!self.settled);
        self.restored += writes.entries.saturating_sub(first) + writes.plugins.saturating_sub(first);
        self.settled |= writes.entries > 0 || !status.chained.is_empty();
        status.restored = self.restored;
        status
    }

    fn look(&self, place: &Place, status: &mut Status) -> Option<Step> {
        match Directory::read(&place.configurations) {
            Ok(directory) => {
                let step = plan(&directory, &self.entry, status);
                if directory.files.is_empty() {
                    let directory = place.configurations.display();
                    status.problems.push(format!("{directory}: no CNI configuration yet"));
                }
                step
            }
            Err(error) => {
                let directory = place.configurations.display();
                status.problems.push(format!("{directory}: the CNI configurations cannot be read: {error}"));
                None
            }
        }
    }

    fn keep(&mut self, place: &Place, status: &mut Status) -> Writes {
        let mut writes = Writes::default();
        match self.plugin.install(&place.plugins) {
            Ok(wrote) => writes.plugins += u64::from(wrote),
            Err(error) => {
                let (from, to) = (self.plugin.source().display(), place.plugins.display());
                status.problems.push(format!("{from} cannot be put into {to}: {error}"));
                status.failed = true;
                // Without a plugin that entry would let no pod start at all.
                if !place.plugins.join(PLUGIN).exists() {
                    self.look(place, status);
                    return writes;
                }
            }
        }
        if writes.plugins > 0 {
            tracing::info!(path = status.plugin, "CNI plugin put in place");
        }
        swap::sweep(&place.configurations);
        swap::sweep(&place.plugins);
        for _ in 0..TRIES {
            let mut seen = Status::default();
            seen.directory.clone_from(&status.directory);
            let step = self.look(place, &mut seen);
            let done = step.as_ref().map(|step| carry_out(step, &place.configurations));
            match done {
                Some(Ok(Swapped::Done)) => {
                    tracing::info!(?step, "CNI configuration chained");
                    writes.entries += 1;
                }
                Some(Ok(Swapped::Changed)) => thread::sleep(QUIET),
                Some(Err(error)) => {
                    seen.problems.push(format!("{}: cannot be written: {error}", status.directory));
                    status.take(seen);
                    status.failed = true;
                    return writes;
                }
                None => {
                    status.take(seen);
                    return writes;
                }
            }
        }
        self.look(place, status);
        writes
    }
}

impl Status {
    fn take(&mut self, seen: Self) {
        (self.chained, self.unchained, self.unused) = (seen.chained, seen.unchained, seen.unused);
        self.problems.extend(seen.problems);
    }
}

fn carry_out(step: &Step, directory: &Path) -> io::Result<Swapped> {
    match step {
        Step::Edit { file, old, new } => swap::swap(&directory.join(file), old, new),
        Step::Convert { single, text, list, old, new } => {
            let (single_path, list) = (directory.join(single), directory.join(list));
            let written = match old {
                Some(old) => swap::swap(&list, old, new)?,
                None => swap::create(&list, new.as_bytes(), fs::metadata(&single_path).ok().as_ref())?,
            };
            // The list was made from this text; a newer one is for the next round.
            if written == Swapped::Changed || fs::read(&single_path)? != text.as_bytes() {
                return Ok(Swapped::Changed);
            }
            let original = original_of(directory, single);
            fs::rename(&single_path, &original)?;
            if fs::read(&original)? != text.as_bytes() {
                fs::rename(&original, &single_path)?; // written in this very moment
                return Ok(Swapped::Changed);
            }
            Ok(Swapped::Done)
        }
    }
}

/// A thread that tends the chain until this is dropped.
#[derive(Debug)]
pub struct Keeper {
    status: Arc<Mutex<Status>>,
    end: mpsc::Sender<Event>,
}

enum Event {
    Notified,
    End,
}

impl Keeper {
    /// Tends the chain once before it returns.
    pub fn start(settings: &Settings, socket: &Path) -> io::Result<Self> {
        let mut chain = Chain::new(settings.chain, &settings.installation, socket)?;
        let (end, events) = mpsc::channel();
        let mut watch = Watch { notifier: None, identity: None, events: end.clone() };
        // Watch first, then read: a change in between is seen twice rather than never.
        watch.follow(&chain.place().configurations);
        let status = Arc::new(Mutex::new(chain.tend()));
        let shared = Arc::clone(&status);
        thread::Builder::new()
            .name("cni-chain".into())
            .spawn(move || run(&mut chain, &mut watch, &events, &shared))?;
        Ok(Self { status, end })
    }

    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.end.send(Event::End); // it may have ended
    }
}

fn run(chain: &mut Chain, watch: &mut Watch, events: &mpsc::Receiver<Event>, shared: &Mutex<Status>) {
    let mut known = Vec::new();
    loop {
        match events.recv_timeout(RESCAN) {
            Ok(Event::Notified) if settle(events) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        watch.follow(&chain.place().configurations);
        let status = chain.tend();
        for problem in status.problems.iter().filter(|problem| !known.contains(*problem)) {
            tracing::warn!(problem, "CNI chain");
        }
        known.clone_from(&status.problems);
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// Waits until the edit that has begun is over; false: it is time to end.
fn settle(events: &mpsc::Receiver<Event>) -> bool {
    let end = Instant::now() + LONGEST_EDIT;
    loop {
        match events.recv_timeout(QUIET.min(end.saturating_duration_since(Instant::now()))) {
            Ok(Event::Notified) => {}
            Ok(Event::End) => return false,
            Err(_) => return true,
        }
    }
}

/// The notifications about the directory that has the name now.
struct Watch {
    notifier: Option<RecommendedWatcher>,
    identity: Option<(u64, u64)>,
    events: mpsc::Sender<Event>,
}

impl Watch {
    fn follow(&mut self, directory: &Path) {
        let now = fs::metadata(directory).ok().map(|found| (found.dev(), found.ino()));
        if now == self.identity && self.notifier.is_some() {
            return;
        }
        (self.notifier, self.identity) = (None, now);
        if now.is_none() {
            return; // it may come
        }
        match self.notifier(directory) {
            Ok(notifier) => self.notifier = Some(notifier),
            Err(error) => tracing::warn!(%error, "CNI configurations are only looked at every few seconds"),
        }
    }

    fn notifier(&self, directory: &Path) -> notify::Result<RecommendedWatcher> {
        let events = self.events.clone();
        let mut notifier = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the directory, as we do ourselves, is no change.
            if event.map_or(true, |event| !event.kind.is_access() || event.kind == WRITTEN) {
                let _ = events.send(Event::Notified);
            }
        })?;
        notifier.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(notifier)
    }
}

/// A file that is written in place is empty or cut off until its writer closes it.
const WRITTEN: notify::EventKind =
    notify::EventKind::Access(notify::event::AccessKind::Close(notify::event::AccessMode::Write));
