use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    cluster::object::{Key, Kind, ObjectRef},
    source::{Change, Place, Update, manifest::Watcher},
};

struct Edited {
    directory: TempDir,
    watcher: Watcher,
    updates: mpsc::Receiver<Update>,
}

fn policy(name: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\n")
}

impl Edited {
    fn start(files: &[(&str, String)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(directory.path().join(file), text).unwrap();
        }
        let (sender, updates) = mpsc::channel(16);
        let watcher = Watcher::start(directory.path(), sender).unwrap();
        Self { directory, watcher, updates }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    async fn next(&mut self) -> Update {
        timeout(Duration::from_secs(20), self.updates.recv()).await.unwrap().unwrap()
    }

    /// Changes of the next update, as `+name` and `-name`.
    async fn changes(&mut self) -> BTreeSet<String> {
        self.next().await.changes.iter().map(told).collect()
    }

    async fn nothing_happens(&mut self) {
        let update = timeout(Duration::from_millis(400), self.updates.recv()).await;
        assert!(update.is_err(), "{update:?}");
    }
}

fn told(change: &Change) -> String {
    match change {
        Change::Upsert(object) => format!("+{}", object.reference().key.name),
        Change::Delete(reference) => format!("-{}", reference.key.name),
    }
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[tokio::test]
async fn the_first_update_is_the_complete_state() {
    let mut edited = Edited::start(&[
        ("a.yaml", policy("a")),
        ("b.yaml", "kind: Secret".into()),
        ("c.yaml", "x: [".into()),
    ]);
    let update = edited.next().await;
    assert_eq!(update.changes.iter().map(told).collect::<Vec<_>>(), ["+a"]);
    assert_eq!((update.ignored["Secret"], update.problems.len(), update.synced), (1, 1, true));
    edited.nothing_happens().await;
}

#[tokio::test]
async fn an_empty_directory_is_complete_too() {
    let mut edited = Edited::start(&[]);
    assert_eq!(edited.next().await, Update { synced: true, ..Update::default() });
}

#[tokio::test]
async fn edits_arrive_as_what_they_change() {
    let mut edited = Edited::start(&[("a.yaml", policy("a")), ("b.yaml", policy("b"))]);
    edited.next().await;

    fs::write(edited.path("a.yaml"), format!("{}---\n{}", policy("a"), policy("a2"))).unwrap();
    assert_eq!(edited.changes().await, set(["+a2"]));

    // An editor that writes beside and renames over.
    fs::write(edited.path(".b.yaml.swp"), policy("b3")).unwrap();
    fs::rename(edited.path(".b.yaml.swp"), edited.path("b.yaml")).unwrap();
    assert_eq!(edited.changes().await, set(["-b", "+b3"]));

    fs::rename(edited.path("b.yaml"), edited.path("c.yaml")).unwrap();
    edited.nothing_happens().await;
    let origin =
        edited.watcher.origin(&ObjectRef { kind: Kind::NetworkPolicy, key: Key::new("default", "b3") });
    assert_eq!(origin.unwrap().to_string(), format!("{}:1", edited.path("c.yaml").display()));

    fs::remove_file(edited.path("a.yaml")).unwrap();
    assert_eq!(edited.changes().await, set(["-a", "-a2"]));
}

#[tokio::test]
async fn a_relative_name_of_the_directory_is_as_good() {
    let mut edited = Edited::start(&[("a.yaml", policy("a"))]);
    edited.next().await;
    let up: PathBuf = std::env::current_dir().unwrap().ancestors().skip(1).map(|_| "..").collect();
    let relative = up.join(edited.directory.path().strip_prefix("/").unwrap()).join("");
    let (sender, updates) = mpsc::channel(16);
    (edited.watcher, edited.updates) = (Watcher::start(&relative, sender).unwrap(), updates);
    edited.next().await;
    fs::write(edited.path("a.yaml"), policy("b")).unwrap();
    let update = edited.next().await;
    assert_eq!((update.changes.iter().map(told).collect(), update.problems), (set(["-a", "+b"]), vec![]));
}

#[tokio::test]
async fn an_edit_of_several_files_is_one_update() {
    let mut edited = Edited::start(&[]);
    edited.next().await;
    for n in 0..20 {
        fs::write(edited.path(&format!(".{n}.yaml")), policy(&format!("p{n}"))).unwrap();
    }
    // A moment's work, even on a busy machine.
    for n in 0..20 {
        fs::rename(edited.path(&format!(".{n}.yaml")), edited.path(&format!("{n}.yaml"))).unwrap();
    }
    assert_eq!(edited.changes().await.len(), 20);
}

/// Emptied first, filled later: what is between is nobody's intention.
#[tokio::test]
async fn a_file_is_read_when_its_writer_is_done() {
    let mut edited = Edited::start(&[("m.yaml", format!("{}---\n{}", policy("a"), policy("b")))]);
    edited.next().await;
    let mut file = fs::File::create(edited.path("m.yaml")).unwrap();
    for part in [policy("a"), "---\n".into(), policy("c")] {
        tokio::time::sleep(Duration::from_millis(60)).await;
        file.write_all(part.as_bytes()).unwrap();
    }
    drop(file);
    assert_eq!(edited.changes().await, set(["-b", "+c"]));
}

#[tokio::test]
async fn what_was_readable_stays_while_it_is_broken() {
    let both = format!("{}---\n{}", policy("a"), policy("b"));
    let mut edited = Edited::start(&[("m.yaml", both.clone())]);
    edited.next().await;

    fs::write(edited.path("m.yaml"), format!("{}---\n{}: [", policy("a"), policy("b"))).unwrap();
    let update = edited.next().await;
    assert_eq!(update.changes, []);
    let [problem] = &update.problems[..] else { panic!("{update:?}") };
    let place = Place::File { path: edited.path("m.yaml"), line: 8 };
    assert_eq!((&problem.place, problem.effect.contains("stays in force")), (&place, true), "{problem}");

    // A second broken edit keeps what the first kept.
    fs::write(edited.path("m.yaml"), "a: [").unwrap();
    assert_eq!(edited.next().await.changes, []);

    fs::write(edited.path("m.yaml"), policy("a")).unwrap();
    let update = edited.next().await;
    assert_eq!((update.changes.iter().map(told).collect(), update.problems), (set(["-b"]), vec![]));
}

#[tokio::test]
async fn a_broken_pod_keeps_its_last_readable_version() {
    let pod = |labels: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: w, labels: {labels}}}\n");
    let mut edited = Edited::start(&[("m.yaml", pod("{app: a}"))]);
    edited.next().await;
    fs::write(edited.path("m.yaml"), pod("{app: 1}")).unwrap();
    let update = edited.next().await;
    assert_eq!(
        (update.changes, update.problems[0].effect.as_str()),
        (vec![], "its last readable version stays in force")
    );
    fs::write(edited.path("m.yaml"), pod("{app: b}")).unwrap();
    assert_eq!(edited.changes().await, set(["+w"]));
}

#[tokio::test]
async fn an_object_of_two_files_outlives_one_of_them() {
    let mut edited = Edited::start(&[("a.yaml", policy("p")), ("b.yaml", policy("p"))]);
    let update = edited.next().await;
    assert_eq!((update.changes.len(), update.problems.len()), (1, 1));
    fs::remove_file(edited.path("a.yaml")).unwrap();
    let update = edited.next().await;
    assert_eq!((update.changes, update.problems), (vec![], vec![]));
}

/// A `ConfigMap`'s volume: the files are links into `..data`, itself a link that is replaced.
#[tokio::test]
async fn a_swapped_link_is_one_edit() {
    let mut edited = Edited::start(&[]);
    edited.next().await;
    let version = |name: &str, a: &str, b: &str| {
        fs::create_dir(edited.directory.path().join(name)).unwrap();
        fs::write(edited.directory.path().join(name).join("a.yaml"), a).unwrap();
        fs::write(edited.directory.path().join(name).join("b.yaml"), b).unwrap();
    };
    version("..1", &policy("a1"), &policy("b"));
    version("..2", &policy("a2"), &policy("b"));
    symlink("..1", edited.path("..data")).unwrap();
    for file in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(file), edited.path(file)).unwrap();
    }
    assert_eq!(edited.changes().await, set(["+a1", "+b"]));
    symlink("..2", edited.path("..data_tmp")).unwrap();
    fs::rename(edited.path("..data_tmp"), edited.path("..data")).unwrap();
    assert_eq!(edited.changes().await, set(["-a1", "+a2"]));
}

#[tokio::test]
async fn a_directory_that_goes_away_takes_nothing_with_it() {
    let mut edited = Edited::start(&[("a.yaml", policy("a"))]);
    edited.next().await;
    let away = edited.directory.path().with_extension("away");
    fs::rename(edited.directory.path(), &away).unwrap();
    let update = edited.next().await;
    assert_eq!((update.changes, update.problems.len()), (vec![], 1));

    fs::create_dir(edited.directory.path()).unwrap();
    fs::write(edited.path("b.yaml"), policy("b")).unwrap();
    let update = edited.next().await;
    fs::remove_dir_all(&away).unwrap();
    assert_eq!((update.changes.iter().map(told).collect(), update.problems), (set(["-a", "+b"]), vec![]));
    fs::write(edited.path("c.yaml"), policy("c")).unwrap();
    assert_eq!(edited.changes().await, set(["+c"]));
}
