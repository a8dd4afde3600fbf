//! A file of bounded size: `flows.log`, `flows.log.1` (the newest before it), `flows.log.2`, ...
//!
//! Written here because the crates for it discard lines when the file cannot be opened, or panic when a
//! file they rotate is not there.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use nix::{errno::Errno, fcntl::OFlag};

use super::export::{FileSettings, Sink};

#[derive(Debug)]
pub struct RotatedFile {
    settings: FileSettings,
    file: File,
    size: u64,
}

impl RotatedFile {
    /// Appends to a file that exists; a line that a crash has cut short is ended first.
    pub fn open(settings: FileSettings) -> io::Result<Self> {
        let (file, size) = open(&settings)?;
        Ok(Self { settings, file, size })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let oldest = self.settings.files.max(1) - 1;
        if oldest == 0 {
            self.file.set_len(0)?;
        }
        for number in (0..oldest).rev() {
            match fs::rename(self.path(number), self.path(number + 1)) {
                // Somebody has tidied up: that number is free.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        (self.file, self.size) = open(&self.settings)?;
        Ok(())
    }

    fn path(&self, number: usize) -> PathBuf {
        let mut path = OsString::from(&self.settings.path);
        if number > 0 {
            path.push(format!(".{number}"));
        }
        path.into()
    }
}

fn open(settings: &FileSettings) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    // Who talks to whom is not everybody's to read; and whoever may write beside the log must not choose where it goes.
    let options = options.create(true).read(true).append(true).mode(0o640);
    let mut file = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(&settings.path).map_err(|error| {
        let path = settings.path.display();
        match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            Errno::ELOOP => io::Error::other(format!("{path} is a symbolic link, which is not followed")),
            _ => io::Error::new(error.kind(), format!("{path}: {error}")),
        }
    })?;
    let mut size = file.metadata()?.len();
    if size > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}

impl Write for RotatedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.size += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Sink for RotatedFile {
    fn room(&self) -> usize {
        usize::try_from(self.settings.max_bytes.saturating_sub(self.size)).unwrap_or(usize::MAX)
    }

    fn finish_chunk(&mut self) -> io::Result<()> {
        if self.size >= self.settings.max_bytes { self.rotate() } else { Ok(()) }
    }
}
