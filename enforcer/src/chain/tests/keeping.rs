//! The keeper on real directories, beside others who write there.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{FLANNEL, SINGLE, entry};
use crate::chain::{
    Directories, Installation, Keeper, Mode, Settings, Status,
    directory::{Directory, PASSING},
    keeper::Chain,
    list::List,
    swap::{Swapped, swap},
};

/// How long the keeper may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);

pub struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Self {
        let node = Self { directory: tempfile::tempdir().expect("tempdir") };
        fs::create_dir(node.conf("")).expect("made");
        fs::create_dir(node.bin()).expect("made");
        fs::write(node.path("source"), "#!plugin").expect("written");
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn conf(&self, name: &str) -> PathBuf {
        self.path("net.d").join(name)
    }

    pub fn bin(&self) -> PathBuf {
        self.path("bin")
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.conf(name), text).expect("written");
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.conf(name)).unwrap_or_default()
    }

    pub fn directories(&self) -> Directories {
        Directories { cni_conf_dir: Some(self.conf("")), cni_bin_dir: Some(self.bin()) }
    }

    fn settings(&self) -> Settings {
        let plugin = Some(self.path("source"));
        let installation =
            Installation { directories: self.directories(), plugin, ..Installation::default() };
        Settings { chain: Mode::Auto, installation }
    }

    pub fn chain(&self) -> Chain {
        Chain::new(Mode::Auto, &self.settings().installation, Path::new("/run/a.sock")).expect("made")
    }

    fn keeper(&self) -> Keeper {
        Keeper::start(&self.settings(), Path::new("/run/a.sock")).expect("started")
    }

    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.conf("")).expect("listed").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn chained(text: &str) -> String {
    List::parse(text).and_then(|list| list.with(&entry())).expect("a list").expect("to be changed")
}

fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn one_look_puts_plugin_and_entry_in_place_and_a_second_writes_nothing() {
    let node = Node::new();
    node.write("10-flannel.conflist", FLANNEL);
    fs::set_permissions(node.conf("10-flannel.conflist"), fs::Permissions::from_mode(0o600)).expect("set");
    let status = node.chain().tend();
    let (conf, bin) = (node.conf(""), node.bin());
    let want = Status {
        directory: conf.display().to_string(),
        plugin: bin.join("bulkhead-cni").display().to_string(),
        kept: true,
        chained: vec!["10-flannel.conflist".into()],
        ..Status::default()
    };
    assert_eq!(status, want);
    assert_eq!(node.text("10-flannel.conflist"), chained(FLANNEL));
    assert_eq!(fs::read_to_string(bin.join("bulkhead-cni")).expect("there"), "#!plugin");
    let look = || {
        [conf.join("10-flannel.conflist"), bin.join("bulkhead-cni")].map(|path| {
            let found = fs::metadata(path).expect("there");
            (found.ino(), found.mode() & 0o7777)
        })
    };
    let before = look();
    assert_eq!([before[0].1, before[1].1], [0o600, 0o755]);
    assert_eq!((node.chain().tend(), look()), (want, before));
    assert_eq!(node.names(), ["10-flannel.conflist"]);
}

#[test]
fn a_newer_plugin_replaces_the_file_and_not_its_content() {
    let node = Node::new();
    let (mut chain, path) = (node.chain(), node.bin().join("bulkhead-cni"));
    chain.tend();
    let running = fs::File::open(&path).expect("there");
    fs::write(node.path("source"), "#!newer").expect("written");
    node.chain().tend();
    assert_eq!(fs::read_to_string(&path).expect("there"), "#!newer");
    assert_eq!(
        std::io::read_to_string(running).expect("read"),
        "#!plugin",
        "a plugin that runs keeps its file"
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
    chain.tend();
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o755);
}

#[test]
fn without_a_plugin_in_place_no_entry_goes_in() {
    let node = Node::new();
    node.write("10-flannel.conflist", FLANNEL);
    fs::remove_file(node.path("source")).expect("removed");
    let status = node.chain().tend();
    assert!(status.failed && status.problems[0].contains("No such file"), "{status:?}");
    assert_eq!(node.text("10-flannel.conflist"), FLANNEL);
}

#[test]
fn when_flannel_writes_its_list_anew_the_entry_is_back_soon() {
    let node = Node::new();
    let keeper = node.keeper();
    assert_eq!(keeper.status().problems, [format!("{}: no CNI configuration yet", node.conf("").display())]);
    // As its init container does: `cp`, in place and in pieces.
    let newer = FLANNEL.replace("0.3.1", "1.0.0");
    for text in [FLANNEL, newer.as_str()] {
        let mut file = fs::File::create(node.conf("10-flannel.conflist")).expect("created");
        for piece in text.as_bytes().chunks(60) {
            file.write_all(piece).expect("written");
            thread::sleep(Duration::from_millis(3));
        }
        drop(file);
        soon("the entry is back", || node.text("10-flannel.conflist") == chained(text));
    }
    // As others do: written aside and renamed; or removed, and made again.
    fs::write(node.conf("aside"), FLANNEL).expect("written");
    fs::rename(node.conf("aside"), node.conf("10-flannel.conflist")).expect("renamed");
    soon("the entry is back", || node.text("10-flannel.conflist") == chained(FLANNEL));
    fs::remove_file(node.conf("10-flannel.conflist")).expect("removed");
    soon("it is gone", || keeper.status().chained.is_empty());
    node.write("10-flannel.conflist", FLANNEL);
    soon("the entry is back", || node.text("10-flannel.conflist") == chained(FLANNEL));
    soon("it is counted", || keeper.status().restored >= 3);
    fs::remove_file(node.bin().join("bulkhead-cni")).expect("removed");
    soon("the plugin is back", || node.bin().join("bulkhead-cni").exists());
}

#[test]
fn a_directory_that_comes_late_or_again_is_followed() {
    let node = Node::new();
    fs::remove_dir(node.conf("")).expect("removed");
    let keeper = node.keeper();
    assert!(keeper.status().problems[0].contains("cannot be read"), "{:?}", keeper.status());
    for _ in 0..2 {
        fs::create_dir(node.conf("")).expect("made");
        node.write("10-flannel.conflist", FLANNEL);
        soon("the entry is in", || node.text("10-flannel.conflist") == chained(FLANNEL));
        fs::remove_dir_all(node.conf("")).expect("removed");
    }
}

#[test]
fn a_list_behind_a_symbolic_link_is_edited_where_it_is() {
    let node = Node::new();
    fs::write(node.path("real.conflist"), FLANNEL).expect("written");
    symlink(node.path("real.conflist"), node.conf("10-flannel.conflist")).expect("linked");
    node.chain().tend();
    assert!(node.conf("10-flannel.conflist").is_symlink());
    assert_eq!(fs::read_to_string(node.path("real.conflist")).expect("there"), chained(FLANNEL));
}

#[test]
fn a_single_configuration_is_set_aside_and_followed_when_it_is_written_again() {
    let node = Node::new();
    let mut chain = node.chain();
    for text in [SINGLE.to_owned(), SINGLE.replace("true", "false")] {
        node.write("10-flannel.conf", &text);
        let status = chain.tend();
        assert_eq!((status.chained, status.unchained), (vec!["10-flannel.conflist".into()], vec![]));
        assert_eq!(node.names(), ["10-flannel.conf.bulkhead-original", "10-flannel.conflist"]);
        assert_eq!(node.text("10-flannel.conf.bulkhead-original"), text);
        assert!(node.text("10-flannel.conflist").contains(&text));
    }
}

#[test]
fn a_swap_that_comes_too_late_leaves_the_newer_content() {
    let node = Node::new();
    node.write("a.conflist", "newer");
    assert_eq!(swap(&node.conf("a.conflist"), "old", "ours").expect("tried"), Swapped::Changed);
    assert_eq!(node.text("a.conflist"), "newer");
    assert_eq!(swap(&node.conf("a.conflist"), "newer", "ours").expect("tried"), Swapped::Done);
    assert_eq!((node.text("a.conflist"), node.names()), ("ours".into(), vec!["a.conflist".into()]));
    assert_eq!(
        swap(&node.conf("b.conflist"), "old", "ours").expect("tried"),
        Swapped::Changed,
        "gone meanwhile"
    );
}

/// Another installer that reads, inserts and renames, as Istio's and Linkerd's do; it may overwrite us, and never
/// the other way round.
#[test]
fn beside_another_keeper_no_ones_entry_is_lost() {
    let node = Node::new();
    node.write("10-flannel.conflist", FLANNEL);
    let keeper = node.keeper();
    let other = r#"{"type": "istio-cni"}"#;
    for round in 0..40_u64 {
        // Out with everything, as by a restart of flannel, at a time that moves against the keeper's.
        node.write("10-flannel.conflist", FLANNEL);
        thread::sleep(Duration::from_millis(round % 30));
        let mut text = node.text("10-flannel.conflist");
        while List::parse(&text).is_err() {
            text = node.text("10-flannel.conflist");
        }
        let end = text.rfind("\n  ]").expect("the list ends");
        text.insert_str(end, &format!(",\n    {other}"));
        fs::write(node.conf("istio.tmp"), &text).expect("written");
        fs::rename(node.conf("istio.tmp"), node.conf("10-flannel.conflist")).expect("renamed");
        soon("both are in", || {
            let text = node.text("10-flannel.conflist");
            let list = List::parse(&text);
            list.is_ok_and(|l| l.holds_ours() && l.others().eq(["flannel", "portmap", "istio-cni"]))
        });
    }
    drop(keeper);
}

#[test]
fn two_of_us_at_once_put_one_entry_in_and_readers_never_see_a_part() {
    let node = Node::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                let found = Directory::read(&node.conf("")).expect("listed");
                if let Some(Ok(text)) = found.file("10-flannel.conflist").map(|file| &file.text) {
                    assert!(text == FLANNEL || *text == chained(FLANNEL), "{text}");
                    looks += 1;
                }
            }
            looks
        });
        for _ in 0..30 {
            fs::write(node.conf("aside"), FLANNEL).expect("written");
            fs::rename(node.conf("aside"), node.conf("10-flannel.conflist")).expect("renamed");
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| node.chain().tend());
                }
            });
            assert_eq!(node.text("10-flannel.conflist"), chained(FLANNEL));
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().expect("no part was seen") > 0);
    });
    assert_eq!(node.names(), ["10-flannel.conflist"]);
}

#[test]
fn what_a_killed_writer_left_is_removed_after_a_while() {
    let node = Node::new();
    let old = node.conf(&format!(".x{PASSING}"));
    fs::write(&old, "").expect("written");
    let long_ago = std::time::SystemTime::now() - Duration::from_mins(5);
    fs::File::options().write(true).open(&old).and_then(|f| f.set_modified(long_ago)).expect("set");
    fs::write(node.conf(&format!(".y{PASSING}")), "").expect("written");
    node.chain().tend();
    assert_eq!(node.names(), [format!(".y{PASSING}")], "one that is being written stays");
}
