//! Where lines can go. A new destination is a file beside these, and its line in [`DESTINATIONS`].

mod file;
mod journald;
mod process;
mod stdout;
mod stream;

use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
};

pub use self::{
    process::{OUTLET, READY},
    stdout::standard_output,
    stream::{Destination, Stream, reader_is_gone},
};
use crate::emit::{Emit, Emits};

/// By which word each is named, and what opens it, given what comes behind the word and a colon.
const DESTINATIONS: &[(&str, Open)] = &[
    (STDOUT, stdout::open),
    (FILE, file::open),
    (JOURNALD, journald::open),
    (METRICS, |address| process::open(METRICS, address)),
    (SYSLOG, |receiver| process::open(SYSLOG, receiver)),
];

const STDOUT: &str = "stdout";
const FILE: &str = "file";
const JOURNALD: &str = "journald";
/// Served by a process of conntracer's own, as the next.
pub const METRICS: &str = "metrics";
pub const SYSLOG: &str = "syslog";

type Open = fn(&OsStr) -> anyhow::Result<Box<dyn Destination>>;

/// Which destination: `stdout`, `file:PATH`, `journald`, `metrics:ADDRESS`, `syslog:RECEIVER`.
#[derive(Clone, Debug)]
pub struct To {
    word: &'static str,
    rest: OsString,
    open: Open,
}

impl To {
    /// What a configuration names.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (word, rest) = text.split_once(':').unwrap_or((text, ""));
        Self::of(word, rest).ok_or_else(|| {
            let known: Vec<&str> = DESTINATIONS.iter().map(|(word, _)| *word).collect();
            format!(
                "nothing is called `{word}`: name one of {}",
                known.join(", ")
            )
        })
    }

    /// A file to append to, or standard output.
    #[must_use]
    pub fn file(path: Option<&Path>) -> Self {
        match path {
            Some(path) => Self {
                word: FILE,
                rest: path.into(),
                open: file::open,
            },
            None => Self {
                word: STDOUT,
                rest: OsString::new(),
                open: stdout::open,
            },
        }
    }

    /// Metrics, served at an address.
    #[must_use]
    pub fn metrics(address: &str) -> Self {
        Self {
            word: METRICS,
            rest: address.into(),
            open: |address| process::open(METRICS, address),
        }
    }

    /// What it is made of beyond findings.
    #[must_use]
    pub fn needs(&self) -> Emits {
        if self.word == METRICS {
            Emits::of(&[Emit::Stats])
        } else {
            Emits::default()
        }
    }

    /// Whether it reads JSON, whatever a person would like.
    #[must_use]
    pub fn is_for_programs(&self) -> bool {
        [METRICS, SYSLOG].contains(&self.word)
    }

    fn of(word: &str, rest: &str) -> Option<Self> {
        let (word, open) = DESTINATIONS.iter().find(|(known, _)| *known == word)?;
        Some(Self {
            word,
            rest: rest.into(),
            open: *open,
        })
    }

    /// Opens it: before anything is attached, so that a wrong name is said at once.
    pub fn open(&self) -> anyhow::Result<Box<dyn Destination>> {
        (self.open)(&self.rest)
    }

    #[must_use]
    pub fn is_standard_output(&self) -> bool {
        self.word == STDOUT
    }
}

impl fmt::Display for To {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word)?;
        if self.rest.is_empty() {
            return Ok(());
        }
        write!(formatter, ":{}", self.rest.display())
    }
}
