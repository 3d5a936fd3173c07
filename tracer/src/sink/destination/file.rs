//! A file that is appended to, and opened anew where it is asked to: after its old one was renamed.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io, mem,
    os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::stream::{Destination, Stream};
use crate::sink::line::Line;

/// No link is followed: root writing into a directory of somebody else must not be led elsewhere.
pub(super) fn open(path: &OsStr) -> anyhow::Result<Box<dyn Destination>> {
    let path = PathBuf::from(path);
    let file = append(&path).with_context(|| format!("opening {} to append to", path.display()))?;
    let is_torn =
        is_torn(&file).with_context(|| format!("reading the end of {}", path.display()))?;
    Ok(Box::new(Appended {
        stream: Stream::new(file),
        path,
        is_torn,
    }))
}

/// See the module.
#[derive(Debug)]
struct Appended {
    path: PathBuf,
    stream: Stream,
    /// Its last line is not whole: it is ended before the first of ours, and not before there is one.
    is_torn: bool,
}

impl Destination for Appended {
    fn write(&mut self, line: &Line, rendered: &[u8]) -> io::Result<()> {
        if mem::take(&mut self.is_torn) {
            self.stream.write(line, b"\n")?;
        }
        self.stream.write(line, rendered)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }

    /// What was handed over before is in the old file, whole; where there is no new one, it goes on in the old one.
    fn reopen(&mut self) -> io::Result<()> {
        self.stream.flush()?;
        match append(&self.path).and_then(|file| Ok((is_torn(&file)?, file))) {
            Ok((is_torn, file)) => {
                self.is_torn = is_torn;
                self.stream = Stream::new(file);
            }
            Err(error) => log::warn!(
                "opening {} anew: {error}; the output goes on in the file that was open",
                self.path.display()
            ),
        }
        Ok(())
    }

    fn file(&self) -> Option<&File> {
        self.stream.file()
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
        let mut output = open(target.as_os_str()).unwrap();
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
        let mut output = open(path.as_os_str()).unwrap();
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
}
