//! A file that is appended to, and opened anew where it is asked to: after its old one was renamed. It renames it itself
//! where a size or an age is set.

use std::{
    fs::{self, File, OpenOptions},
    io, mem,
    os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context;

use super::{
    rotation::Rotation,
    stream::{Destination, Stream},
};
use crate::sink::line::Line;

/// No link is followed: root writing into a directory of somebody else must not be led elsewhere.
pub(super) fn open(path: &Path, rotation: Rotation) -> anyhow::Result<Box<dyn Destination>> {
    let path = PathBuf::from(path);
    let opened =
        Opened::new(&path).with_context(|| format!("opening {} to append to", path.display()))?;
    Ok(Box::new(Appended {
        path,
        rotation,
        opened,
    }))
}

/// See the module.
#[derive(Debug)]
struct Appended {
    path: PathBuf,
    rotation: Rotation,
    opened: Opened,
}

/// The file of now.
#[derive(Debug)]
struct Opened {
    stream: Stream,
    /// Its last line is not whole: it is ended before the first of ours, and not before there is one.
    is_torn: bool,
    size: u64,
    /// When it was made, as far as its file system knows.
    since: SystemTime,
}

impl Opened {
    fn new(path: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let (found, now) = (file.metadata()?, SystemTime::now());
        Ok(Self {
            is_torn: is_torn(&file)?,
            size: found.len(),
            since: found.created().unwrap_or(now),
            stream: Stream::new(file),
        })
    }

    fn write(&mut self, line: &Line, rendered: &[u8]) -> io::Result<()> {
        if mem::take(&mut self.is_torn) {
            self.stream.write(line, b"\n")?;
            self.size = self.size.saturating_add(1);
        }
        self.size = self.size.saturating_add(length(rendered));
        self.stream.write(line, rendered)
    }

    fn age(&self) -> Duration {
        // None of a clock that was set back.
        self.since.elapsed().unwrap_or_default()
    }
}

fn length(rendered: &[u8]) -> u64 {
    u64::try_from(rendered.len()).unwrap_or(u64::MAX)
}

impl Destination for Appended {
    fn write(&mut self, line: &Line, rendered: &[u8]) -> io::Result<()> {
        let after = self.opened.size.saturating_add(length(rendered));
        if self.opened.size > 0 && self.rotation.is_due(after, || self.opened.age()) {
            self.rotate()?;
        }
        self.opened.write(line, rendered)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.opened.stream.flush()
    }

    /// What was handed over before is in the old file, whole; where there is no new one, it goes on in the old one.
    fn reopen(&mut self) -> io::Result<()> {
        self.flush()?;
        match Opened::new(&self.path) {
            Ok(opened) => self.opened = opened,
            Err(error) => log::warn!(
                "opening {} anew: {error}; the output goes on in the file that was open",
                self.path.display()
            ),
        }
        Ok(())
    }

    fn file(&self) -> Option<&File> {
        self.opened.stream.file()
    }
}

impl Appended {
    /// Whole lines are in the old file; where it cannot be renamed, it goes on in it until it is due again.
    fn rotate(&mut self) -> io::Result<()> {
        self.flush()?;
        match self.rotation.rename(&self.path) {
            Ok(()) => self.reopen(),
            Err(error) => {
                log::warn!(
                    "renaming {}: {error}; the output goes on in it",
                    self.path.display()
                );
                (self.opened.size, self.opened.since) = (0, SystemTime::now());
                Ok(())
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    let is_fifo = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    let mut options = OpenOptions::new();
    options.append(true);
    if is_fifo {
        // Without its reader, open() would wait for one.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    } else {
        options
            .read(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW);
    }
    options.open(path).map_err(said)
}

/// Whether the last line of what is there is half a one, of a writer that was killed: it would spoil the next.
fn is_torn(file: &File) -> io::Result<bool> {
    let found = file.metadata()?;
    if !found.is_file() || found.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.read_exact_at(&mut last, found.len() - 1)?;
    Ok(last != *b"\n")
}

fn said(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ELOOP) => {
            io::Error::other("it is a symbolic link, which conntracer does not follow")
        }
        Some(libc::ENXIO) => {
            io::Error::other("it is a FIFO that nobody reads: start its reader first")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::time::Ktime;

    const LINE: Line = Line::Start { time: Ktime(0) };

    #[test]
    fn output_follows_no_link_and_appends() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("link");
        fs::write(&target, "kept\n").unwrap();
        symlink(&target, &link).unwrap();
        let refused = append(&link).unwrap_err().to_string();
        assert!(refused.contains("symbolic link"), "{refused}");
        append(&target).unwrap().write_all(b"more\n").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept\nmore\n");
    }

    #[test]
    fn a_last_line_that_is_not_whole_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "{\"schema\":1,\"ti").unwrap();
        let mut output = open(&target, Rotation::default()).unwrap();
        assert_eq!(
            fs::read_to_string(&target).unwrap(),
            "{\"schema\":1,\"ti",
            "nothing is written that nobody asked for"
        );
        for line in [b"next\n", b"more\n"] {
            output.write(&LINE, line).unwrap();
        }
        output.flush().unwrap();
        assert_eq!(
            fs::read_to_string(&target).unwrap(),
            "{\"schema\":1,\"ti\nnext\nmore\n"
        );
    }

    #[test]
    fn a_fifo_without_a_reader_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        let refused = append(&fifo).unwrap_err().to_string();
        assert!(refused.contains("nobody reads"), "{refused}");
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&fifo)
            .unwrap();
        append(&fifo).unwrap();
        drop(reader);
    }

    /// logrotate's way: the file is renamed, and then the signal comes.
    #[test]
    fn a_file_that_was_renamed_is_left_and_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut output = open(&path, Rotation::default()).unwrap();
        output.write(&LINE, b"one\n").unwrap();
        fs::rename(&path, &old).unwrap();
        output.write(&LINE, b"two\n").unwrap();
        output.reopen().unwrap();
        output.write(&LINE, b"three\n").unwrap();
        output.flush().unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");

        // No place for a new one: it goes on.
        fs::rename(directory.path(), directory.path().with_extension("away")).unwrap();
        output.reopen().unwrap();
        output.write(&LINE, b"four\n").unwrap();
        output.flush().unwrap();
        let away = directory.path().with_extension("away");
        assert_eq!(
            fs::read_to_string(away.join("log")).unwrap(),
            "three\nfour\n"
        );
        fs::rename(away, directory.path()).unwrap();
    }

    /// So many lines of ten bytes, and what is in each file then, the newest first.
    fn rotated(rotation: Rotation, lines: u32) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut output = open(&path, rotation).unwrap();
        for line in 0..lines {
            output
                .write(&LINE, format!("line {line:04}\n").as_bytes())
                .unwrap();
        }
        output.flush().unwrap();
        let names = ["log", "log.1", "log.2", "log.3"].map(|name| directory.path().join(name));
        let there = names.iter().filter(|path| path.exists());
        there
            .map(|path| fs::read_to_string(path).unwrap())
            .collect()
    }

    #[test]
    fn a_file_that_is_large_enough_is_renamed_between_two_lines() {
        let rotation = Rotation {
            bytes: Some(35),
            age: None,
            keep: 2,
        };
        let files = rotated(rotation, 11);
        let all = |lines: std::ops::Range<u32>| {
            let lines: Vec<_> = lines.map(|line| format!("line {line:04}\n")).collect();
            lines.concat()
        };
        assert_eq!(files, [all(9..11), all(6..9), all(3..6)], "the oldest went");
        assert_eq!(rotated(rotation, 3), [all(0..3)]);
        // A line that is longer than a whole file is in one of its own.
        let short = Rotation {
            bytes: Some(5),
            ..rotation
        };
        assert_eq!(rotated(short, 3), [all(2..3), all(1..2), all(0..1)]);
    }

    #[test]
    fn a_file_that_is_old_enough_is_renamed() {
        let rotation = Rotation {
            bytes: None,
            age: Some(Duration::ZERO),
            keep: 1,
        };
        assert_eq!(rotated(rotation, 3), ["line 0002\n", "line 0001\n"]);
        assert_eq!(rotated(Rotation::default(), 3).len(), 1);
    }

    #[test]
    fn one_that_cannot_be_renamed_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let rotation = Rotation {
            bytes: Some(10),
            age: None,
            keep: 1,
        };
        let mut output = open(&path, rotation).unwrap();
        // A directory is not replaced by a file.
        fs::create_dir(directory.path().join("log.1")).unwrap();
        for line in [&b"one\n"[..], b"and two\n", b"three\n"] {
            output.write(&LINE, line).unwrap();
        }
        output.flush().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\nand two\nthree\n");
    }
}
