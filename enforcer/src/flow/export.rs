//! JSON lines to stdout or a file, from a thread of its own: nothing that happens to the output, a full
//! disk or a stuck pipe, reaches back further than the queue in between.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    Counters,
    clock::Timestamp,
    record::{Lost, LostSource},
    ring::{Item, json},
    rotate::RotatedFile,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    #[default]
    None,
    Stdout,
    File(FileSettings),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSettings {
    pub path: PathBuf,
    /// The file is rotated when it has reached this size.
    pub max_bytes: u64,
    /// Files that exist at most, the current one included; at least 1.
    pub files: usize,
}

/// Records that wait for the writer at most: above it they are counted as lost.
const QUEUE: usize = 8192;
/// Lines are handed to the system in pieces of about this size.
const CHUNK_BYTES: usize = 64 * 1024;
const RETRY: Duration = Duration::from_secs(1);

/// Where lines go. A sink takes bytes in order; it may take only some of them.
pub trait Sink: Write + Send + 'static {
    /// Bytes that may still come before [`Sink::finish_chunk`] should be called.
    fn room(&self) -> usize {
        usize::MAX
    }
    /// All lines so far are complete: the time to rotate.
    fn finish_chunk(&mut self) -> io::Result<()> {
        self.flush()
    }
}

impl Sink for File {}

#[derive(Debug, Default)]
pub struct Exporter {
    queue: Option<SyncSender<Arc<Item>>>,
    lost: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

impl Exporter {
    pub fn start(target: &Target, node_name: &str, counters: &Arc<Counters>) -> io::Result<Self> {
        match target {
            Target::None => Ok(Self::default()),
            Target::Stdout => {
                // Not through std's line buffer, which would take lines that the output then refuses.
                let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                Self::to_sink(stdout, node_name, counters, QUEUE, RETRY)
            }
            Target::File(settings) => {
                let file = RotatedFile::open(settings.clone())?;
                Self::to_sink(file, node_name, counters, QUEUE, RETRY)
            }
        }
    }

    pub(super) fn to_sink(
        sink: impl Sink,
        node_name: &str,
        counters: &Arc<Counters>,
        queue: usize,
        retry: Duration,
    ) -> io::Result<Self> {
        let (sender, items) = sync_channel(queue);
        let lost = Arc::new(AtomicU64::new(0));
        let stopping = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            sink,
            node_name: node_name.into(),
            counters: Arc::clone(counters),
            lost: Arc::clone(&lost),
            stopping: Arc::clone(&stopping),
            retry,
            chunk: Vec::new(),
            lines: 0,
            failing: false,
        };
        let thread = thread::Builder::new().name("flow-export".into()).spawn(move || writer.run(&items))?;
        Ok(Self { queue: Some(sender), lost, stopping, writer: Some(thread) })
    }

    /// Never waits: what the queue cannot take is counted, and told in the output once there is room.
    pub fn send(&self, item: &Arc<Item>, counters: &Counters) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Arc::clone(item)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            counters.lost_in_export.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what is queued, as far as the output takes it, and ends the thread. Blocks as long as the
    /// output blocks.
    pub fn stop(mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _panicked = writer.join();
        }
    }
}

struct Writer<S> {
    sink: S,
    node_name: String,
    counters: Arc<Counters>,
    /// Since the last line that told of it.
    lost: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    retry: Duration,
    /// Whole lines, less what the sink has already taken.
    chunk: Vec<u8>,
    /// Lines in `chunk` when it was complete.
    lines: u64,
    failing: bool,
}

impl<S: Sink> Writer<S> {
    fn run(mut self, items: &Receiver<Arc<Item>>) {
        loop {
            match items.recv_timeout(self.retry) {
                Ok(item) => self.collect(&item, items),
                Err(RecvTimeoutError::Timeout) => self.tell_lost(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while !self.write() {
                if self.stopping.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(self.retry);
            }
        }
        self.tell_lost();
        let _ended = self.write();
    }

    fn collect(&mut self, first: &Item, items: &Receiver<Arc<Item>>) {
        self.tell_lost();
        self.line(first);
        let limit = CHUNK_BYTES.min(self.sink.room());
        while self.chunk.len() < limit {
            let Ok(item) = items.try_recv() else { break };
            self.line(&item);
        }
    }

    fn tell_lost(&mut self) {
        let num_events_lost = self.lost.swap(0, Ordering::Relaxed);
        if num_events_lost > 0 {
            let lost = Lost { source: LostSource::Exporter, num_events_lost };
            self.line(&Item::Lost(Timestamp::now(), lost));
        }
    }

    fn line(&mut self, item: &Item) {
        self.chunk.extend_from_slice(json(&item.line(&self.node_name)).as_bytes());
        self.chunk.push(b'\n');
        self.lines += 1;
    }

    /// Whether the chunk is out. What the sink has taken is never sent again.
    fn write(&mut self) -> bool {
        if self.chunk.is_empty() {
            return true;
        }
        while !self.chunk.is_empty() {
            match self.sink.write(&self.chunk) {
                Ok(0) => return self.failed(&io::ErrorKind::WriteZero.into()),
                Ok(taken) => drop(self.chunk.drain(..taken)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.failed(&error),
            }
        }
        self.counters.exported.fetch_add(std::mem::take(&mut self.lines), Ordering::Relaxed);
        if let Err(error) = self.sink.finish_chunk() {
            // The lines are out; a file that cannot be rotated grows on rather than losing records.
            self.failed(&error);
        } else if std::mem::take(&mut self.failing) {
            tracing::info!("flow log is being written again");
        }
        true
    }

    fn failed(&mut self, error: &io::Error) -> bool {
        self.counters.export_errors.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(%error, "flow log cannot be written, will be retried");
        }
        false
    }
}
