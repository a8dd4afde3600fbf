//! The directory as it changes: settled edits become updates.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{self, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as channel},
    thread,
    time::{Duration, Instant, SystemTime},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::sync::mpsc;

use super::{Origin, is_manifest, manifests_in, read_file, store::Store};
use crate::{
    cluster::object::ObjectRef,
    source::{Problem, Update},
};

/// An edit is settled when nothing has happened for this long ..
const QUIET: Duration = Duration::from_millis(20);
/// .. and no file is half written, or when it has gone on for this long.
const LONGEST_EDIT: Duration = Duration::from_millis(500);
/// Everything is looked at again this often, in case the kernel's notifications missed something.
const RESCAN: Duration = Duration::from_secs(5);
/// A file that changed less than this before it was read may change again without a new time stamp.
const RACY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("cannot list the manifests in {directory}")]
    List { directory: PathBuf, source: io::Error },
    #[error("cannot watch {directory}")]
    Watch { directory: PathBuf, source: notify::Error },
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// A watched directory. Its thread ends soon after the receiver of its updates is dropped.
#[derive(Clone, Debug)]
pub struct Watcher {
    store: Arc<Mutex<Store>>,
}

impl Watcher {
    /// Reads the directory and sends the complete state as first update, then one update per settled edit.
    pub fn start(directory: &Path, updates: mpsc::Sender<Update>) -> Result<Self, WatchError> {
        // Notifications carry absolute names: a file must not be known by two.
        let directory = path::absolute(directory)
            .map_err(|source| WatchError::List { directory: directory.to_owned(), source })?;
        // Watch first, then read: an edit in between is seen twice rather than never.
        let (sender, events) = channel::channel();
        let notifier = notifier(&directory, sender.clone())?;
        let store = Arc::new(Mutex::new(Store::default()));
        let mut state = Directory {
            identity: identity(&directory),
            path: directory,
            notifier,
            sender,
            store: Arc::clone(&store),
            read: BTreeMap::new(),
            unlisted: None,
        };
        let first =
            state.rescan().map_err(|source| WatchError::List { directory: state.path.clone(), source })?;
        thread::Builder::new()
            .name("manifests".into())
            .spawn(move || state.run(first, &events, &updates))
            .map_err(WatchError::Thread)?;
        Ok(Self { store })
    }

    /// Where the object in force is described.
    pub fn origin(&self, object: &ObjectRef) -> Option<Origin> {
        lock(&self.store).origin(object)
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

type Events = channel::Sender<notify::Result<notify::Event>>;

fn notifier(directory: &Path, events: Events) -> Result<RecommendedWatcher, WatchError> {
    let failed = |source| WatchError::Watch { directory: directory.to_owned(), source };
    let mut notifier = notify::recommended_watcher(events).map_err(failed)?;
    notifier.watch(directory, RecursiveMode::NonRecursive).map_err(failed)?;
    Ok(notifier)
}

struct Directory {
    path: PathBuf,
    /// Of the directory itself: another one may take its place.
    identity: Option<(u64, u64)>,
    notifier: RecommendedWatcher,
    sender: Events,
    store: Arc<Mutex<Store>>,
    /// Which state of each file has been read; `None`: it may have changed since.
    read: BTreeMap<PathBuf, Option<Fingerprint>>,
    /// Why the directory cannot be listed.
    unlisted: Option<Problem>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: SystemTime,
}

/// What to look at again.
#[derive(Debug, PartialEq, Eq)]
enum Dirty {
    Files(BTreeSet<PathBuf>),
    Everything,
}

impl Directory {
    fn run(
        mut self,
        first: Update,
        events: &channel::Receiver<notify::Result<notify::Event>>,
        updates: &mpsc::Sender<Update>,
    ) {
        let mut last = first.clone();
        if updates.blocking_send(first).is_err() {
            return;
        }
        let mut next_rescan = Instant::now() + RESCAN;
        while !updates.is_closed() {
            let dirty = match events.recv_timeout(next_rescan.saturating_duration_since(Instant::now())) {
                Ok(event) => settle(&self.path, &event, events),
                Err(_) => Dirty::Everything,
            };
            let update = match dirty {
                Dirty::Files(files) if files.is_empty() => continue,
                Dirty::Files(files) => self.reread(files),
                Dirty::Everything => {
                    next_rescan = Instant::now() + RESCAN;
                    self.follow();
                    self.rescan().unwrap_or_else(|error| self.keep(&error))
                }
            };
            let news = !update.changes.is_empty()
                || update.problems != last.problems
                || update.ignored != last.ignored;
            if news {
                last = Update { changes: Vec::new(), ..update.clone() };
                if updates.blocking_send(update).is_err() {
                    return;
                }
            }
        }
    }

    /// Watches the directory that has the name now.
    fn follow(&mut self) {
        let now = identity(&self.path);
        if now.is_some() && now != self.identity {
            match notifier(&self.path, self.sender.clone()) {
                Ok(notifier) => (self.notifier, self.identity) = (notifier, now),
                Err(error) => tracing::warn!(%error, "manifests are only looked at every few seconds"),
            }
        }
    }

    /// Looks at every file, and reads those that differ from what was read.
    fn rescan(&mut self) -> io::Result<Update> {
        let present = manifests_in(&self.path)?;
        self.unlisted = None;
        let gone: Vec<PathBuf> =
            self.read.keys().filter(|file| present.binary_search(file).is_err()).cloned().collect();
        let changed = present.into_iter().filter(|file| match self.read.get(file) {
            Some(Some(read)) => fingerprint(file).as_ref() != Some(read),
            _ => true,
        });
        let files: BTreeSet<PathBuf> = changed.chain(gone).collect();
        Ok(self.reread(files))
    }

    fn reread(&mut self, files: BTreeSet<PathBuf>) -> Update {
        let contents: Vec<_> = files
            .into_iter()
            .map(|file| {
                if fs::symlink_metadata(&file).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                    self.read.remove(&file);
                    return (file, None);
                }
                // Taken before reading: a later change differs from it.
                let state = fingerprint(&file).filter(Fingerprint::is_settled);
                let content = read_file(&file);
                self.read.insert(file.clone(), state);
                (file, Some(content))
            })
            .collect();
        let update = lock(&self.store).update(contents);
        self.complete(update)
    }

    /// Fail static: a directory that cannot be listed has not lost its files.
    fn keep(&mut self, error: &io::Error) -> Update {
        let mut problem = Problem::of_file(&self.path, format!("cannot list the directory: {error}"));
        problem.effect = "what was read before stays in force".into();
        self.unlisted = Some(problem);
        let update = lock(&self.store).update([]);
        self.complete(update)
    }

    fn complete(&self, mut update: Update) -> Update {
        update.problems.extend(self.unlisted.clone());
        update
    }
}

/// Waits until the edit that begins with `event` is over.
fn settle(
    directory: &Path,
    event: &notify::Result<notify::Event>,
    events: &channel::Receiver<notify::Result<notify::Event>>,
) -> Dirty {
    let end = Instant::now() + LONGEST_EDIT;
    let (mut dirty, mut half_written) = (Dirty::Files(BTreeSet::new()), BTreeSet::new());
    let mut note = |event: &notify::Result<notify::Event>| {
        dirty.note(directory, event);
        note_writer(&mut half_written, event);
        if half_written.is_empty() { QUIET } else { LONGEST_EDIT }
    };
    let mut wait = note(event);
    while let Ok(event) = events.recv_timeout(wait.min(end.saturating_duration_since(Instant::now()))) {
        wait = note(&event);
    }
    dirty
}

/// A file that is written in place is empty or cut off until its writer closes it.
fn note_writer(half_written: &mut BTreeSet<PathBuf>, event: &notify::Result<notify::Event>) {
    let Ok(event) = event else { return };
    for path in event.paths.iter().filter(|path| is_manifest(path)) {
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => _ = half_written.insert(path.clone()),
            EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) | WRITTEN => {
                _ = half_written.remove(path);
            }
            _ => {}
        }
    }
}

const WRITTEN: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));

impl Dirty {
    fn note(&mut self, directory: &Path, event: &notify::Result<notify::Event>) {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            // Notifications were lost.
            _ => return *self = Self::Everything,
        };
        if event.kind.is_access() && event.kind != WRITTEN {
            return;
        }
        if event.paths.iter().any(|path| leads_to_manifests(path, directory)) {
            return *self = Self::Everything;
        }
        if let Self::Files(files) = self {
            files.extend(event.paths.iter().filter(|path| is_manifest(path)).cloned());
        }
    }
}

/// No manifest by its name, but manifests may be links through it (as in a `ConfigMap`'s volume, by `..data`),
/// or it is the directory itself. Other files, such as an editor's, are of no interest.
fn leads_to_manifests(path: &Path, directory: &Path) -> bool {
    let is_way = || fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink() || m.is_dir());
    path.parent() != Some(directory) || (!is_manifest(path) && is_way())
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory).ok().map(|m| (m.dev(), m.ino()))
}

fn fingerprint(file: &Path) -> Option<Fingerprint> {
    let metadata = fs::metadata(file).ok()?;
    Some(Fingerprint {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: metadata.modified().ok()?,
    })
}

impl Fingerprint {
    fn is_settled(&self) -> bool {
        SystemTime::now().duration_since(self.modified).is_ok_and(|age| age > RACY)
    }
}
