//! Looks at the node now and then.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use nix::net::if_::if_nameindex;

use super::{Signs, packet_filter};
use crate::chain::{Directories, Place, plugin_types};

const EVERY: Duration = Duration::from_secs(30);

/// A thread that looks until this is dropped.
#[derive(Debug)]
pub struct Lookout {
    signs: Arc<Mutex<Signs>>,
    /// Closed when dropped, which ends the thread.
    _end: mpsc::Sender<()>,
}

impl Lookout {
    /// Looks once before it returns. `bpffs` is our directory; others' pins are beside it.
    pub fn start(directories: &Directories, bpffs: &Path) -> io::Result<Self> {
        let (directories, beside) = (directories.clone(), bpffs.parent().unwrap_or(bpffs).to_owned());
        let signs = Arc::new(Mutex::new(look(&directories, &beside)));
        let (end, ended) = mpsc::channel::<()>();
        let shared = Arc::clone(&signs);
        thread::Builder::new().name("others".into()).spawn(move || {
            while ended.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                let seen = look(&directories, &beside);
                *shared.lock().unwrap_or_else(PoisonError::into_inner) = seen;
            }
        })?;
        Ok(Self { signs, _end: end })
    }

    pub fn signs(&self) -> Signs {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What cannot be seen (no right, no such file) shows nobody.
fn look(directories: &Directories, bpffs: &Path) -> Signs {
    let interfaces = if_nameindex()
        .map(|list| list.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect());
    Signs {
        interfaces: interfaces.unwrap_or_default(),
        chains: packet_filter::chains().unwrap_or_default(),
        plugins: plugin_types(&Place::find(directories).configurations),
        pins: names_in(bpffs).chain(names_in(&bpffs.join("tc/globals"))).collect(),
        processes: processes(),
        ..Signs::default()
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn names_in(directory: &Path) -> impl Iterator<Item = String> {
    entries(directory).filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
}

fn processes() -> BTreeSet<String> {
    let is_process = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    let names = entries(Path::new("/proc")).filter(is_process);
    names.filter_map(|path| Some(fs::read_to_string(path.join("comm")).ok()?.trim().to_owned())).collect()
}
