//! What the command line and the config file together mean. The command line wins.

use std::{
    env, fs,
    io::{self, IsTerminal},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use anyhow::Context;
use conntracer_common::{filter::emit_bit, record::kind};

use super::{KernelArguments, OutputArguments, RunArguments};
use crate::{
    config::{Audit, Config, Emit, Format},
    event::Body,
    kernel::plan::{HookMode, Transport},
    sink::{Renderer, SharedHost, json::Json, text::Text},
};

/// Which kinds of lines are printed beyond the default ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emits {
    /// Bits of [`emit_bit`].
    records: u32,
    pub stats: bool,
}

impl Emits {
    #[must_use]
    pub fn of(kinds: &[Emit]) -> Self {
        kinds.iter().fold(Self::default(), |emits, kind| Self {
            records: emits.records | record_bits(*kind),
            stats: emits.stats || matches!(kind, Emit::Stats | Emit::All),
        })
    }

    /// What the kernel half is to write to the rings.
    #[must_use]
    pub const fn records(self) -> u32 {
        self.records
    }

    /// Whether an event of this kind is printed. Snapshots, ticks and losses are between the halves;
    /// a loss is told by its gap.
    #[must_use]
    pub const fn prints(self, body: &Body) -> bool {
        let kind = match body {
            Body::Connect(_) => kind::CONNECT,
            Body::Accept(_) => kind::ACCEPT,
            Body::State(_) => kind::STATE,
            // The answer to a poll repeats what its connection's records tell one by one.
            Body::Retransmit(body) if body.is_polled() => return false,
            Body::Retransmit(_) => kind::RETRANSMIT,
            Body::SynAck(_) => kind::SYNACK,
            Body::Syn(_) => kind::SYN,
            Body::Reset(_) => kind::RESET,
            Body::Drop(_) => kind::DROP,
            Body::Refusal(_) => kind::REFUSAL,
            Body::Failure(_) => kind::FAILURE,
            Body::Ending(_) => kind::ENDING,
            Body::Probe(_) => kind::PROBE,
            Body::Seed(_) => kind::SEED,
            Body::Undo(_)
            | Body::Sources(_)
            | Body::Snapshot(_)
            | Body::Tick
            | Body::Loss(_)
            | Body::Netns(_)
            | Body::Seeded(_)
            | Body::Idle(_)
            | Body::Audited(_)
            | Body::HalfClosed(_)
            | Body::Clock(_)
            | Body::Process(_)
            | Body::Holders(_) => {
                return false;
            }
        };
        self.records & emit_bit(kind) != 0
    }
}

const fn record_bits(kind: Emit) -> u32 {
    match kind {
        Emit::Connect => emit_bit(kind::CONNECT),
        Emit::Accept => emit_bit(kind::ACCEPT),
        Emit::State => emit_bit(kind::STATE),
        Emit::Retransmit => emit_bit(kind::RETRANSMIT) | emit_bit(kind::SYNACK),
        Emit::Syn => emit_bit(kind::SYN),
        Emit::Reset => emit_bit(kind::RESET),
        Emit::Drop => emit_bit(kind::DROP),
        Emit::Refusal => emit_bit(kind::REFUSAL),
        Emit::Failure => emit_bit(kind::FAILURE),
        Emit::Connection => emit_bit(kind::ENDING),
        Emit::Probe => emit_bit(kind::PROBE),
        Emit::Seed => emit_bit(kind::SEED),
        Emit::Stats => 0,
        Emit::All => {
            record_bits(Emit::Connect)
                | record_bits(Emit::Accept)
                | record_bits(Emit::State)
                | record_bits(Emit::Retransmit)
                | record_bits(Emit::Syn)
                | record_bits(Emit::Reset)
                | record_bits(Emit::Drop)
                | record_bits(Emit::Refusal)
                | record_bits(Emit::Failure)
                | record_bits(Emit::Connection)
                | record_bits(Emit::Probe)
                | record_bits(Emit::Seed)
        }
    }
}

/// How to look at the kernel, from flags and file.
#[must_use]
pub fn trace(typed: &KernelArguments, config: &Config) -> crate::config::Trace {
    let file = &config.trace;
    let hooks: HookMode = typed.hooks.unwrap_or(file.hooks);
    let transport: Transport = typed.transport.unwrap_or(file.transport);
    crate::config::Trace {
        hooks,
        transport,
        btf: typed.btf.clone().unwrap_or_else(|| file.btf.clone()),
        max_sockets: file.max_sockets,
        ring_bytes: file.ring_bytes,
        audit: file.audit.clone(),
    }
}

/// Whether idle connections are looked for, by flag or else by the file.
#[must_use]
pub fn audits_keepalive(typed: &RunArguments, config: &Config) -> bool {
    let audits = if typed.audit.is_empty() {
        &config.trace.audit
    } else {
        &typed.audit
    };
    audits.contains(&Audit::Keepalive)
}

/// Kinds to print, from flags or else the file.
#[must_use]
pub fn emits(typed: &OutputArguments, config: &Config) -> Emits {
    Emits::of(if typed.emit.is_empty() {
        &config.output.emit
    } else {
        &typed.emit
    })
}

/// Where output goes and how it is written.
#[derive(Debug)]
pub struct Destination {
    pub file: fs::File,
    format: Format,
}

impl Destination {
    /// Opens it: before anything is attached, so that a wrong name is said at once.
    pub fn open(typed: &OutputArguments, config: &Config) -> anyhow::Result<Self> {
        let file = match &typed.output {
            Some(path) => append(path)?,
            None => standard_output().context("opening standard output")?,
        };
        let format = resolve(
            typed.format.unwrap_or(config.output.format),
            file.is_terminal(),
        );
        Ok(Self { file, format })
    }

    /// The renderer for this destination.
    #[must_use]
    pub fn renderer(&self, host: SharedHost) -> Renderer {
        match self.format {
            Format::Json => Renderer::Json(Json::new(host)),
            Format::Text | Format::Auto => {
                let terminal = self.file.is_terminal();
                Renderer::Text(Text::new(
                    host,
                    terminal && wants_colour(|name| env::var_os(name)),
                ))
            }
        }
    }
}

/// `auto` settled: text where a person reads.
#[must_use]
pub const fn resolve(format: Format, terminal: bool) -> Format {
    match (format, terminal) {
        (Format::Auto, true) => Format::Text,
        (Format::Auto, false) => Format::Json,
        (chosen, _) => chosen,
    }
}

/// A second descriptor of standard output: `io::stdout` would buffer by lines under our batches.
pub fn standard_output() -> io::Result<fs::File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Opens a file to append to. No link is followed: root writing into a directory of somebody else
/// must not be led elsewhere.
fn append(path: &Path) -> anyhow::Result<fs::File> {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(named_link)
        .with_context(|| format!("opening {} to append to", path.display()))
}

/// Creates a file that must not exist. `O_EXCL` follows no link either.
pub fn create_new(path: &Path) -> anyhow::Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path)
        .with_context(|| {
            format!(
                "creating {}: name a file that does not exist yet",
                path.display()
            )
        })
}

fn named_link(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::ELOOP) {
        io::Error::other("it is a symbolic link, which conntracer does not follow")
    } else {
        error
    }
}

/// <https://no-color.org>: any value that is not empty forbids colour.
fn wants_colour(environment: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    environment("NO_COLOR").is_none_or(|value| value.is_empty())
        && environment("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_command_line_wins() {
        let mut config = Config::default();
        config.output.emit = vec![Emit::Reset];
        config.trace.hooks = HookMode::Kprobe;
        let mut typed = OutputArguments::default();
        assert_eq!(emits(&typed, &config), Emits::of(&[Emit::Reset]));
        typed.emit = vec![Emit::Drop, Emit::Stats];
        assert_eq!(
            emits(&typed, &config),
            Emits::of(&[Emit::Drop, Emit::Stats])
        );
        let mut kernel = KernelArguments::default();
        assert_eq!(trace(&kernel, &config).hooks, HookMode::Kprobe);
        kernel.hooks = Some(HookMode::Fentry);
        assert_eq!(trace(&kernel, &config).hooks, HookMode::Fentry);
    }

    #[test]
    fn output_follows_no_link_and_appends() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("link");
        fs::write(&target, "kept\n").unwrap();
        symlink(&target, &link).unwrap();
        assert!(format!("{:#}", append(&link).unwrap_err()).contains("symbolic link"));
        io::Write::write_all(&mut append(&target).unwrap(), b"more\n").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept\nmore\n");
        assert!(create_new(&target).is_err());
        assert!(create_new(&link).is_err());
    }

    #[test]
    fn colour_can_be_forbidden() {
        let environment = |set: &'static [(&str, &str)]| {
            move |name: &str| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).into())
            }
        };
        assert!(wants_colour(environment(&[])));
        assert!(wants_colour(environment(&[("NO_COLOR", "")])));
        assert!(!wants_colour(environment(&[("NO_COLOR", "1")])));
        assert!(!wants_colour(environment(&[("TERM", "dumb")])));
    }
}
