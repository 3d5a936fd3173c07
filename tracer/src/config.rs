//! The config file: TOML, every key optional, unknown keys refused.
//!
//! Each table says its keys, defaults and reasons by itself ([`crate::section`]): those of `[detect]` in the rooms of the
//! detectors, the others here. `conntracer config` prints them with the values in effect, and `tracer/conntracer.toml`
//! is that with the defaults. What the command line says wins over the file; that is decided in [`crate::cli`].

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    bounded,
    detect::{self, Thresholds},
    emit::{Emit, Emits},
    plan::{HookMode, Transport},
    section::{Section, section},
    sink::{self, Format, Selection, To, destination::Rotation},
};

/// Where the package puts the file, and where it is looked for when `--config` names none.
pub const DEFAULT_PATH: &str = "/etc/conntracer/conntracer.toml";

/// What the file begins with.
const HEAD: &str = "\
# conntracer's configuration. Every key is optional; what is here is the default. Unknown keys are
# refused. The command line wins over this file. `conntracer config --check FILE` checks a file.
";

/// A config file is a few kB; beyond this it is something else.
const MAX_BYTES: u64 = 1 << 20;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub trace: Trace,
    pub output: Output,
    pub detect: Thresholds,
}

/// The kernel takes whole pages for a ring; the limit keeps a slip of the pen from locking all memory.
const SMALLEST_RING: u32 = 1 << 12;
const LARGEST_RING: u32 = 1 << 30;

section! {
    "trace";
    Trace {
        /// How hooks are attached: auto, fentry, kprobe or tracepoint. auto takes the best that loads, hook by
        /// hook, and says what the others would have seen.
        hooks: HookMode = HookMode::Auto;
        /// How records travel: ringbuf (Linux 5.8), or perf (per-CPU perf ring buffers) where the former is missing.
        transport: Transport = Transport::Ringbuf;
        /// The running kernel's type information; field offsets and drop reasons are read from it.
        btf: PathBuf = PathBuf::from("/sys/kernel/btf/vmlinux");
        /// Connections whose state is kept in the kernel at once, about 200 bytes each: 65,536 take 13 MB. More
        /// connections than this are still counted, as lost.
        max_sockets: u32 = 65_536;
        /// Bytes of the ring that is read in batches, a power of two: 8 MiB are 37,000 of the largest records of single
        /// events between two reads, 10 times a second with --emit. The ring for rare records is apart (512 KiB).
        ring_bytes: u32 = 8 << 20;
        /// What to look for beyond what events tell: keepalive lists established connections that are idle for long and
        /// would not notice that their peer is gone.
        audit: Vec<Audit> = Vec::new();
    }
}

/// What is looked for on demand only, because it costs a look at every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Audit {
    /// Established connections that are idle for long, without keepalive.
    Keepalive,
}

section! {
    "output";
    Output {
        /// auto prints text on a terminal and JSON elsewhere; text, brief (text, one line a change) and json force one.
        format: Format = Format::Auto;
        /// Kinds of lines to print beyond findings and gaps: connect, accept, state, retransmit, syn, reset,
        /// drop, early_drop, connection, failure, probe, seed, stats, all. Each costs a record per event.
        emit: Vec<Emit> = Vec::new();
        /// Further outputs of run and record, any number, each a table of its own like the one below. to: stdout,
        /// file: and a path to append to, journald, syslog (the local socket), syslog:udp:HOST:PORT,
        /// syslog:tcp:HOST:PORT, syslog:tcp-lines:HOST:PORT, or metrics: and a port of the loopback address, or
        /// ADDRESS:PORT, to serve them at (as --metrics). format and emit as above; findings: kinds of findings
        /// it has, all where none is named. A file is renamed to FILE.1 before it has more than rotate_bytes (64 KiB
        /// at least), or is older than rotate_s (60 at least); keep, 5 where it is not set, old ones stay.
        /// [[output.also]]
        /// to = "file:/var/log/conntracer.ndjson"
        /// format = "json"
        /// emit = []
        /// findings = []
        /// rotate_bytes = 104857600
        /// rotate_s = 86400
        /// keep = 5
        #[serde(skip_serializing_if = "Vec::is_empty")]
        also: Vec<Also> = Vec::new();
    }
}

/// `[[output.also]]`: a further output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Also {
    /// As [`To::parse`] reads it.
    pub to: String,
    #[serde(default)]
    pub format: Format,
    #[serde(default)]
    pub emit: Vec<Emit>,
    #[serde(default)]
    pub findings: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
}

/// Below these a file would be renamed at every other line.
const SMALLEST_FILE: u64 = 1 << 16;
const SHORTEST_AGE_S: u64 = 60;
/// Each renaming renames all of them.
const MOST_KEPT: u32 = 1_000;
const KEPT: u32 = 5;

impl Also {
    fn rotation(&self) -> Result<Rotation, String> {
        let least = |key: &str, value: Option<u64>, least: u64| match value {
            Some(value) if value < least => Err(format!(
                "output.also.{key} is {value}, and has to be {least} or more"
            )),
            value => Ok(value),
        };
        let bytes = least("rotate_bytes", self.rotate_bytes, SMALLEST_FILE)?;
        let age = least("rotate_s", self.rotate_s, SHORTEST_AGE_S)?;
        if let Some(keep) = self.keep
            && !(1..=MOST_KEPT).contains(&keep)
        {
            return Err(format!(
                "output.also.keep is {keep}, and has to be 1 to {MOST_KEPT}"
            ));
        }
        if bytes.is_none() && age.is_none() && self.keep.is_none() {
            return Ok(Rotation::default());
        }
        Ok(Rotation {
            bytes,
            age: age.map(Duration::from_secs),
            keep: self.keep.unwrap_or(KEPT),
        })
    }

    /// The output that it asks for; otherwise what is wrong, and the remedy.
    pub fn output(&self) -> Result<sink::Output, String> {
        let kind = |name: &String| {
            let mut kinds = detect::SPECS.iter().map(|spec| spec.kind);
            kinds.find(|kind| kind.name() == name).ok_or_else(|| {
                format!("output.also.findings has {name}: `conntracer explain` lists the findings")
            })
        };
        let to = To::parse(&self.to).map_err(|error| format!("output.also.to: {error}"))?;
        let to = to.rotated(self.rotation()?).ok_or_else(|| {
            format!(
                "output.also: {} is no file, and rotate_bytes, rotate_s and keep are for files",
                self.to
            )
        })?;
        if to.reads_json() && matches!(self.format, Format::Text | Format::Brief) {
            return Err(format!(
                "output.also.format: {} reads JSON: leave the format out",
                self.to
            ));
        }
        Ok(sink::Output {
            selection: Selection {
                emits: Emits::of(&self.emit).and(to.needs()),
                findings: self.findings.iter().map(kind).collect::<Result<_, _>>()?,
            },
            to,
            format: self.format,
            verbose: false,
        })
    }
}

/// Why a config file cannot be used; one sentence with the remedy.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("reading {path}: {source}; name an existing file with --config", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path}:{line}: {message}; `conntracer config` prints every key with its default",
        path = path.display()
    )]
    Parse {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("{path}: {message}", path = path.display())]
    Value { path: PathBuf, message: String },
}

impl Config {
    /// Reads `path`, or the default path, which need not exist.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_PATH);
        match (path, read(path.unwrap_or(default))) {
            (None, Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            (path, Err(source)) => Err(ConfigError::Read {
                path: path.unwrap_or(default).to_owned(),
                source,
            }),
            (path, Ok(text)) => Self::parse(&text, path.unwrap_or(default)),
        }
    }

    /// Parses `text`; `path` is what errors call it.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = 1 + text.get(..start).unwrap_or(text).matches('\n').count();
            let message = error.message().replace('\n', " ");
            let message =
                key_at(text, line).map_or(message.clone(), |key| format!("{key}: {message}"));
            ConfigError::Parse {
                path: path.to_owned(),
                line,
                message,
            }
        })?;
        config.check().map_err(|message| ConfigError::Value {
            path: path.to_owned(),
            message,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.trace.max_sockets == 0 || self.trace.max_sockets > 1 << 24 {
            return Err(format!(
                "trace.max_sockets is {}: set 1 to 16777216",
                self.trace.max_sockets
            ));
        }
        let ring = self.trace.ring_bytes;
        if !ring.is_power_of_two() || !(SMALLEST_RING..=LARGEST_RING).contains(&ring) {
            return Err(format!(
                "trace.ring_bytes is {ring}: set a power of two from {SMALLEST_RING} to {LARGEST_RING}"
            ));
        }
        for also in &self.output.also {
            also.output()?;
        }
        self.detect.check()
    }

    /// The whole file with the values of `self`: every key, and the reason for its default.
    pub fn annotated(&self) -> Result<String, toml::ser::Error> {
        let values = toml::Table::try_from(self)?;
        let comment = |line: &&str| format!("#{line}\n");
        let mut file = HEAD.to_owned();
        for section in sections() {
            let table = section
                .path
                .split('.')
                .try_fold(&values, |table, key| table.get(key)?.as_table());
            file.push('\n');
            file.extend(section.about.iter().map(comment));
            file.extend(["[", section.path, "]\n"]);
            for (key, reason) in section.keys {
                file.extend(reason.iter().map(comment));
                if let Some(value) = table.and_then(|table| table.get(*key)) {
                    file.extend([*key, " = ", &value.to_string(), "\n"]);
                }
            }
        }
        Ok(file)
    }
}

/// Every table of the file, in order.
fn sections() -> impl Iterator<Item = Section> {
    [Trace::SECTION, Output::SECTION]
        .into_iter()
        .chain(detect::sections())
}

fn read(path: &Path) -> io::Result<String> {
    String::from_utf8(bounded::read(path, MAX_BYTES)?).map_err(io::Error::other)
}

/// The key on a line, with its section: what a wrong value's message alone does not say.
fn key_at(text: &str, line: usize) -> Option<String> {
    let (key, _) = text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
    let section = text.lines().take(line).filter_map(|line| {
        let line = line.trim();
        line.starts_with('[').then(|| line.trim_matches(['[', ']']))
    });
    let key = key.trim();
    Some(
        section
            .last()
            .map_or_else(|| key.to_owned(), |section| format!("{section}.{key}")),
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::testing::generated;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("test.toml"))
    }

    /// `UPDATE_GENERATED=1 cargo test` writes it.
    #[test]
    fn the_default_file_is_what_the_tables_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/conntracer.toml");
        let file = Config::default().annotated().unwrap();
        assert_eq!(parse(&file).unwrap(), Config::default());
        generated(Path::new(path), &file);
    }

    #[test]
    fn every_key_has_its_reason_in_the_file() {
        fn keys(prefix: &str, table: &toml::Table, into: &mut Vec<String>) {
            for (key, value) in table {
                match value {
                    toml::Value::Table(table) => keys(&format!("{prefix}{key}."), table, into),
                    _ => into.push(format!("{prefix}{key}")),
                }
            }
        }
        let (mut written, mut known) = (Vec::new(), Vec::new());
        let file = Config::default().annotated().unwrap();
        keys("", &file.parse().unwrap(), &mut written);
        keys(
            "",
            &toml::Table::try_from(Config::default()).unwrap(),
            &mut known,
        );
        written.sort();
        known.sort();
        assert_eq!(written, known);
    }

    #[test]
    fn annotated_prints_what_is_in_effect_and_reads_back() {
        let mut config = Config::default();
        config.detect.half_open.timeouts = 7;
        config.output.emit = vec![Emit::Reset, Emit::Drop];
        config.trace.transport = Transport::Perf;
        let text = config.annotated().unwrap();
        assert!(text.contains("timeouts = 7"), "{text}");
        assert_eq!(parse(&text).unwrap(), config);
    }

    #[test]
    fn further_outputs_are_as_the_file_describes_them() {
        let file = Config::default().annotated().unwrap();
        let example = file.lines().skip_while(|line| *line != "# [[output.also]]");
        let example = example.map_while(|line| line.strip_prefix("# "));
        let example = example.collect::<Vec<_>>().join("\n");
        let config = parse(&[&*example; 2].join("\n")).unwrap();
        assert_eq!(config.output.also.len(), 2);
        assert_eq!(parse(&config.annotated().unwrap()).unwrap(), config);
    }

    #[rstest]
    #[case::unknown_key(
        "[trace]\nhoks = \"auto\"\n",
        "test.toml:2: trace.hoks: unknown field `hoks`"
    )]
    #[case::wrong_type(
        "\n\n[detect.half_open]\ntimeouts = \"x\"\n",
        "test.toml:4: detect.half_open.timeouts: "
    )]
    #[case::wrong_word(
        "[output]\nformat = \"xml\"\n",
        "test.toml:2: output.format: unknown variant `xml`"
    )]
    #[case::syntax("[trace\n", "test.toml:1: ")]
    #[case::unknown_key_of_a_further_output(
        "[[output.also]]\nto = \"stdout\"\nfrom = 1\n",
        "test.toml:3: output.also.from: unknown field `from`"
    )]
    #[case::no_destination(
        "[[output.also]]\nto = \"printer\"\n",
        "output.also.to: nothing is called `printer`: name one of stdout, file, journald, metrics, syslog"
    )]
    #[case::small_file(
        "[[output.also]]\nto = \"file:/f\"\nrotate_bytes = 10\n",
        "output.also.rotate_bytes is 10, and has to be 65536 or more"
    )]
    #[case::none_kept(
        "[[output.also]]\nto = \"file:/f\"\nrotate_s = 60\nkeep = 0\n",
        "output.also.keep is 0, and has to be 1 to 1000"
    )]
    #[case::no_file_to_rename(
        "[[output.also]]\nto = \"journald\"\nrotate_s = 60\n",
        "journald is no file"
    )]
    #[case::text_for_a_program(
        "[[output.also]]\nto = \"metrics:1\"\nformat = \"text\"\n",
        "metrics:1 reads JSON"
    )]
    #[case::no_finding(
        "[[output.also]]\nto = \"stdout\"\nfindings = [\"rain\"]\n",
        "output.also.findings has rain: "
    )]
    #[case::senseless("[trace]\nmax_sockets = 0\n", "trace.max_sockets is 0")]
    #[case::no_power_of_two("[trace]\nring_bytes = 100000\n", "trace.ring_bytes is 100000")]
    #[case::share(
        "[detect.retransmit_storm]\nratio = 1.5\n",
        "detect.retransmit_storm.ratio is 1.5"
    )]
    fn errors_name_file_line_and_key(#[case] text: &str, #[case] expected: &str) {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
