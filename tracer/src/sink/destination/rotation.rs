//! When a file is renamed, and how many old ones stay: `log` becomes `log.1`, that one `log.2`, and so on.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

/// Never, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Before a line that would make it larger.
    pub bytes: Option<u64>,
    /// Before the first line after that.
    pub age: Option<Duration>,
    /// Old files that stay; one at least.
    pub keep: u32,
}

impl Rotation {
    /// Whether a file is renamed before it has `bytes`, at an age: where none is set, nobody looks at a clock for each line.
    pub(super) fn is_due(self, bytes: u64, age: impl FnOnce() -> Duration) -> bool {
        self.bytes.is_some_and(|most| bytes > most) || self.age.is_some_and(|most| age() >= most)
    }

    /// The oldest is replaced by the one before it.
    pub(super) fn rename(self, path: &Path) -> io::Result<()> {
        for older in (1..self.keep).rev() {
            match fs::rename(numbered(path, older), numbered(path, older + 1)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        fs::rename(path, numbered(path, 1))
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}
