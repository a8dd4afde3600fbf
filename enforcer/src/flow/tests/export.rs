//! Lines reach the file, the file stays small, and a full disk harms nobody.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use serde_json::Value;

use super::*;
use crate::flow::{
    Counters,
    export::{Exporter, FileSettings, Sink, Target},
    record::{Lost, LostSource},
    ring::Item,
};

/// A record of which only the number matters.
fn numbered(number: u64) -> Arc<Item> {
    Arc::new(Item::Lost(wall(0), Lost { source: LostSource::Kernel, num_events_lost: number }))
}

fn numbers(text: &str) -> Vec<u64> {
    let number = |line: &str| -> u64 {
        let line: Value = serde_json::from_str(line).unwrap();
        line["lost_events"]["num_events_lost"].as_str().unwrap().parse().unwrap()
    };
    text.lines().map(number).collect()
}

fn to_file(path: &Path, max_bytes: u64, files: usize) -> Target {
    Target::File(FileSettings { path: path.into(), max_bytes, files })
}

/// Writes the records one by one, so that each is a chunk of its own.
fn export(target: &Target, records: impl Iterator<Item = u64>) -> Arc<Counters> {
    let counters = Arc::new(Counters::default());
    let exporter = Exporter::start(target, "node-a", &counters).unwrap();
    for (sent, number) in records.enumerate() {
        exporter.send(&numbered(number), &counters);
        wait(|| counters.exported.load(Ordering::Relaxed) > sent as u64);
    }
    exporter.stop();
    counters
}

fn wait(done: impl Fn() -> bool) {
    for _ in 0..5000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("did not happen within five seconds");
}

#[test]
fn a_file_is_rotated_and_only_so_many_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    // A line is about 130 bytes: two fill a file.
    export(&to_file(&path, 200, 3), 1..=9);
    let read = |name: &str| numbers(&fs::read_to_string(dir.path().join(name)).unwrap());
    assert_eq!(read("flows.log"), [9]);
    assert_eq!(read("flows.log.1"), [7, 8]);
    assert_eq!(read("flows.log.2"), [5, 6]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn a_burst_is_cut_at_the_size_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    let counters = Arc::new(Counters::default());
    let exporter = Exporter::start(&to_file(&path, 1000, 100), "node-a", &counters).unwrap();
    (0..100).for_each(|number| exporter.send(&numbered(number), &counters));
    exporter.stop();
    let largest = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).max();
    assert!(largest.unwrap() < 1200, "at most one line above the limit: {largest:?}");
    assert_eq!(counters.exported.load(Ordering::Relaxed), 100);
}

#[test]
fn a_single_file_is_emptied_instead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    export(&to_file(&path, 200, 1), 1..=5);
    assert_eq!(numbers(&fs::read_to_string(&path).unwrap()), [5]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_is_continued_after_a_restart_and_a_torn_line_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    let target = to_file(&path, 1 << 20, 3);
    export(&target, 1..=1);
    let mut torn = fs::read_to_string(&path).unwrap();
    torn.push_str(r#"{"flow": {"ti"#);
    fs::write(&path, &torn).unwrap();
    export(&target, 2..=2);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((numbers(lines[0]), lines[1], numbers(lines[2])), (vec![1], r#"{"flow": {"ti"#, vec![2]));
}

#[test]
fn a_log_goes_through_no_link_and_is_not_everybodys_to_read() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("precious"), "precious").unwrap();
    symlink(at("precious"), at("flows.log")).unwrap();
    let start = || Exporter::start(&to_file(&at("flows.log"), 100, 2), "n", &Arc::new(Counters::default()));
    assert!(start().unwrap_err().to_string().contains("flows.log is a symbolic link, which is not followed"));
    fs::remove_file(at("flows.log")).unwrap();
    start().unwrap().stop();
    let mode = fs::metadata(at("flows.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o027, 0, "{mode:o}");
    assert_eq!(fs::read_to_string(at("precious")).unwrap(), "precious");
}

#[test]
fn a_full_disk_is_counted_and_stops_nobody() {
    let counters = Arc::new(Counters::default());
    let exporter = Exporter::start(&to_file(Path::new("/dev/full"), 1000, 3), "node-a", &counters).unwrap();
    exporter.send(&numbered(1), &counters);
    wait(|| counters.export_errors.load(Ordering::Relaxed) > 0);
    // Far more than the queue holds: sending never waits.
    (0..20_000).for_each(|number| exporter.send(&numbered(number), &counters));
    let lost = counters.lost_in_export.load(Ordering::Relaxed);
    assert!((10_000..20_000).contains(&lost), "{lost} were lost");
    assert_eq!(counters.exported.load(Ordering::Relaxed), 0);
    exporter.stop();
    assert!(Path::new("/dev/full").exists());
}

/// Takes a few bytes at a time, and nothing at all while it is full.
struct Miser {
    taken: Arc<std::sync::Mutex<Vec<u8>>>,
    refusals: usize,
}

impl io::Write for Miser {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.refusals > 0 {
            self.refusals -= 1;
            if self.refusals % 2 == 1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let few = bytes.len().min(7);
        self.taken.lock().unwrap().extend_from_slice(&bytes[..few]);
        Ok(few)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Miser {}

#[test]
fn after_a_full_disk_lines_go_on_where_they_were_cut_and_the_loss_is_told() {
    let taken = Arc::default();
    let sink = Miser { taken: Arc::clone(&taken), refusals: 40 };
    let counters = Arc::new(Counters::default());
    let exporter = Exporter::to_sink(sink, "node-a", &counters, 2, Duration::from_millis(5)).unwrap();
    exporter.send(&numbered(1), &counters);
    wait(|| counters.export_errors.load(Ordering::Relaxed) > 0);
    (2..=9).for_each(|number| exporter.send(&numbered(number), &counters));
    wait(|| counters.exported.load(Ordering::Relaxed) >= 4);
    exporter.stop();
    let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
    assert_eq!(numbers(&text), [1, 6, 2, 3], "the loss of six is told before the two that were queued");
    assert_eq!(text.matches("OBSERVER_EVENTS_QUEUE").count(), 1);
    assert_eq!(counters.lost_in_export.load(Ordering::Relaxed), 6);
}
