//! Where lines can go. A new destination is a file beside these, and its entry in [`DESTINATIONS`].

mod file;
mod journald;
mod process;
mod rotation;
mod stdout;
mod stream;

use std::{ffi::OsString, fmt, path::Path};

pub use self::{
    process::{OUTLET, READY},
    rotation::Rotation,
    stdout::standard_output,
    stream::{Destination, Stream, reader_is_gone},
};
use crate::emit::{Emit, Emits};

/// Every destination.
const DESTINATIONS: [&Known; 5] = [&STDOUT, &FILE, &JOURNALD, &METRICS_SERVED, &SYSLOG_SENT];

/// Served by a process of conntracer's own, as the next.
pub const METRICS: &str = "metrics";
pub const SYSLOG: &str = "syslog";

static STDOUT: Known = Known {
    open: |to| stdout::open(&to.rest),
    ..Known::named("stdout")
};
static FILE: Known = Known {
    open: |to| file::open(Path::new(&to.rest), to.rotation),
    rotates: true,
    ..Known::named("file")
};
static JOURNALD: Known = Known {
    open: |to| journald::open(&to.rest),
    ..Known::named("journald")
};
static METRICS_SERVED: Known = Known {
    open: |to| process::open(METRICS, &to.rest),
    emits: &[Emit::Stats],
    reads_json: true,
    ..Known::named(METRICS)
};
static SYSLOG_SENT: Known = Known {
    open: |to| process::open(SYSLOG, &to.rest),
    reads_json: true,
    ..Known::named(SYSLOG)
};

/// One of them.
#[derive(Debug)]
struct Known {
    word: &'static str,
    open: fn(&To) -> anyhow::Result<Box<dyn Destination>>,
    /// What it is made of beyond findings.
    emits: &'static [Emit],
    reads_json: bool,
    rotates: bool,
}

impl Known {
    const fn named(word: &'static str) -> Self {
        Self {
            word,
            open: |to| anyhow::bail!("{to} cannot be opened"),
            emits: &[],
            reads_json: false,
            rotates: false,
        }
    }
}

/// Which destination: `stdout`, `file:PATH`, `journald`, `metrics:ADDRESS`, `syslog:RECEIVER`.
#[derive(Clone, Debug)]
pub struct To {
    known: &'static Known,
    /// What comes behind its word and a colon.
    rest: OsString,
    rotation: Rotation,
}

impl To {
    /// What a configuration names.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (word, rest) = text.split_once(':').unwrap_or((text, ""));
        let known = DESTINATIONS.iter().find(|known| known.word == word);
        let known = known.ok_or_else(|| {
            let words = DESTINATIONS.map(|known| known.word);
            format!(
                "nothing is called `{word}`: name one of {}",
                words.join(", ")
            )
        })?;
        Ok(Self::of(known, rest))
    }

    /// A file to append to, or standard output.
    #[must_use]
    pub fn file(path: Option<&Path>) -> Self {
        match path {
            Some(path) => Self::of(&FILE, path),
            None => Self::of(&STDOUT, ""),
        }
    }

    /// Metrics, served at an address.
    #[must_use]
    pub fn metrics(address: &str) -> Self {
        Self::of(&METRICS_SERVED, address)
    }

    fn of(known: &'static Known, rest: impl Into<OsString>) -> Self {
        Self {
            known,
            rest: rest.into(),
            rotation: Rotation::default(),
        }
    }

    /// The same, renamed at a size or an age; none of what is no file.
    #[must_use]
    pub fn rotated(self, rotation: Rotation) -> Option<Self> {
        let can = self.known.rotates || rotation == Rotation::default();
        can.then_some(Self { rotation, ..self })
    }

    /// What it is made of beyond findings.
    #[must_use]
    pub fn needs(&self) -> Emits {
        Emits::of(self.known.emits)
    }

    /// Whether it reads JSON, whatever a person would like.
    #[must_use]
    pub const fn reads_json(&self) -> bool {
        self.known.reads_json
    }

    /// Opens it: before anything is attached, so that a wrong name is said at once.
    pub fn open(&self) -> anyhow::Result<Box<dyn Destination>> {
        (self.known.open)(self)
    }

    #[must_use]
    pub fn is_standard_output(&self) -> bool {
        self.known.word == STDOUT.word
    }
}

impl fmt::Display for To {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.known.word)?;
        if self.rest.is_empty() {
            return Ok(());
        }
        write!(formatter, ":{}", self.rest.display())
    }
}
