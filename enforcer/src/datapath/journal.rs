//! The file that keeps [`Numbers`] over a restart: a picture of all of them in its first line, then one line
//! for each change, so that saving costs what changed. When the changes have outgrown the picture, a new
//! file takes the place of the old one.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::numbers::Numbers;
use crate::private::write_atomically;

/// Changes below this many bytes are never worth a new picture.
const ROOM: u64 = 1 << 16;

#[derive(Debug, thiserror::Error)]
pub enum NumbersError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is not a table of numbers; remove it, and the pins beside it, to start afresh")]
    Decode { path: PathBuf, source: serde_json::Error },
}

#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// `None`: the next save writes a new picture.
    file: Option<fs::File>,
    /// Some numbers are in no file: a save has failed.
    behind: bool,
    /// Bytes.
    picture: u64,
    changes: u64,
}

impl Journal {
    /// The numbers in the file; an absent file holds none.
    pub fn open(path: &Path) -> Result<(Self, Numbers), NumbersError> {
        let mut journal = Self { path: path.into(), file: None, behind: false, picture: 0, changes: 0 };
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((journal, Numbers::default())),
            Err(source) => return Err(NumbersError::Read { path: path.into(), source }),
        };
        let decode = |source| NumbersError::Decode { path: path.into(), source };
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let picture = lines.next().unwrap_or_default();
        let mut numbers: Numbers = serde_json::from_slice(picture).map_err(decode)?;
        for line in lines {
            if line.last() != Some(&b'\n') {
                // Torn by the end of an agent that was about to use these numbers: the kernel has none of them.
                return Ok((journal, numbers));
            }
            numbers.replay(serde_json::from_slice(line).map_err(decode)?);
        }
        if text.last() == Some(&b'\n') {
            journal.file = Some(journal.append_to()?);
            journal.picture = length(picture);
            journal.changes = length(&text) - journal.picture;
        }
        Ok((journal, numbers))
    }

    /// Must come before the first map write that uses a new number. No fsync: a crash of the machine takes
    /// the maps (bpffs is memory) along with the numbers.
    pub fn save(&mut self, numbers: &mut Numbers) -> Result<(), NumbersError> {
        let changes = numbers.take_changes();
        if changes.is_none() && !self.behind {
            return Ok(());
        }
        let line = line(&changes);
        let saved = match &mut self.file {
            Some(file) if self.changes + length(&line) <= self.picture.max(ROOM) => file
                .write_all(&line)
                .map_err(|source| NumbersError::Write { path: self.path.clone(), source })
                .inspect(|()| self.changes += length(&line)),
            _ => self.paint(numbers),
        };
        self.behind = saved.is_err();
        if self.behind {
            self.file = None;
        }
        saved
    }

    fn paint(&mut self, numbers: &Numbers) -> Result<(), NumbersError> {
        let picture = line(numbers);
        write_atomically(&self.path, &picture)
            .map_err(|source| NumbersError::Write { path: self.path.clone(), source })?;
        self.file = Some(self.append_to()?);
        (self.picture, self.changes) = (length(&picture), 0);
        Ok(())
    }

    fn append_to(&self) -> Result<fs::File, NumbersError> {
        let file = OpenOptions::new().append(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&self.path);
        file.map_err(|source| NumbersError::Write { path: self.path.clone(), source })
    }
}

fn line(value: &impl serde::Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("numbers are plain data");
    line.push(b'\n');
    line
}

fn length(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::model::{Grant, Identity, PodIdentity, Scope};

    fn pod(namespace: &str) -> Arc<Identity> {
        Arc::new(Identity::Pod(PodIdentity {
            namespace: namespace.into(),
            labels: [("app".into(), "web".into())].into(),
            namespace_labels: [].into(),
            ports: [].into(),
            tenant: None,
            door: None,
        }))
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("numbers.json");
        (directory, path)
    }

    fn scope(key: &str) -> Scope {
        Scope { label_keys: [key.to_owned()].into(), ..Scope::default() }
    }

    #[test]
    fn numbers_keep_their_meaning_over_a_restart() {
        let (_directory, path) = directory();
        let (mut journal, mut before) = Journal::open(&path).expect("opened");
        let web = before.identity(&pod("web"));
        journal.save(&mut before).expect("a picture");
        let db = before.identity(&pod("db"));
        let grant = before.grants.number_of(Grant::NotIsolated);
        before.enter(&scope("app"));
        before.enter(&scope("tier"));
        let generation = before.next_generation();
        journal.save(&mut before).expect("a change");
        before.leave(&scope("app"));
        before.forget_peer(web);
        journal.save(&mut before).expect("another change");

        let (_, mut after) = Journal::open(&path).expect("loaded");
        assert_eq!((after.identities.get(&pod("db")), after.identities.get(&pod("web"))), (Some(db), None));
        assert_eq!(after.grants.number_of(Grant::NotIsolated), grant);
        assert_eq!(after.scope, scope("tier"));
        assert!(after.identity(&pod("new")) > db, "a new identity gets a new number");
        assert!(after.next_generation() > generation, "no generation is given twice");
    }

    #[test]
    fn saving_costs_what_changed_and_the_file_stays_in_proportion() {
        let (_directory, path) = directory();
        let (mut journal, mut numbers) = Journal::open(&path).expect("opened");
        for number in 0..2000 {
            numbers.identity(&pod(&format!("namespace-{number}")));
        }
        journal.save(&mut numbers).expect("a picture");
        let picture = fs::metadata(&path).expect("a file").len();
        let mut longest = picture;
        for number in 0..4000 {
            let new = numbers.identity(&pod(&format!("other-{number}")));
            journal.save(&mut numbers).expect("a change");
            numbers.forget_peer(new);
            longest = longest.max(fs::metadata(&path).expect("a file").len());
        }
        assert!(longest < 3 * picture, "{longest} bytes of a picture of {picture}");
        let (_, after) = Journal::open(&path).expect("loaded");
        assert_eq!(after.identities.iter().count(), 2001, "the last one has not been told as forgotten");
    }

    #[test]
    fn a_line_that_was_never_finished_is_none() {
        let (_directory, path) = directory();
        let (mut journal, mut numbers) = Journal::open(&path).expect("opened");
        let web = numbers.identity(&pod("web"));
        journal.save(&mut numbers).expect("saved");
        let mut file = OpenOptions::new().append(true).open(&path).expect("opened");
        file.write_all(br#"{"identities":{"new":[[300,"#).expect("torn");

        let (mut journal, mut numbers) = Journal::open(&path).expect("loaded");
        assert_eq!(numbers.identities.get(&pod("web")), Some(web));
        let db = numbers.identity(&pod("db"));
        journal.save(&mut numbers).expect("saved");
        let (_, numbers) = Journal::open(&path).expect("loaded");
        assert_eq!(numbers.identities.get(&pod("db")), Some(db));
    }

    #[test]
    fn what_could_not_be_saved_is_saved_the_next_time() {
        let (directory, path) = directory();
        let away = directory.path().join("away");
        let (mut journal, mut numbers) = Journal::open(&away.join("numbers.json")).expect("opened");
        let web = numbers.identity(&pod("web"));
        journal.save(&mut numbers).expect_err("there is no such directory");
        fs::create_dir(&away).expect("made");
        journal.save(&mut numbers).expect("saved");
        fs::rename(away.join("numbers.json"), &path).expect("moved");
        let (_, numbers) = Journal::open(&path).expect("loaded");
        assert_eq!(numbers.identities.get(&pod("web")), Some(web));
    }

    #[test]
    fn a_file_of_before_there_were_changes_is_read() {
        let (_directory, path) = directory();
        let mut numbers = Numbers::default();
        let web = numbers.identity(&pod("web"));
        fs::write(&path, serde_json::to_vec(&numbers).expect("json")).expect("written");
        let (mut journal, mut numbers) = Journal::open(&path).expect("loaded");
        let db = numbers.identity(&pod("db"));
        journal.save(&mut numbers).expect("saved");
        let (_, numbers) = Journal::open(&path).expect("loaded");
        assert_eq!(
            (numbers.identities.get(&pod("web")), numbers.identities.get(&pod("db"))),
            (Some(web), Some(db))
        );
    }

    #[test]
    fn a_file_that_is_no_table_is_an_error_that_names_it() {
        let (_directory, path) = directory();
        fs::write(&path, "{]").expect("written");
        let error = Journal::open(&path).expect_err("not a table");
        assert!(error.to_string().contains("numbers.json"), "{error}");
    }
}
