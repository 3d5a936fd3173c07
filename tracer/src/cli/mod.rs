//! The command line: what was typed ([`Arguments`]) and where it leads.
//!
//! Not here: what the flags resolve to ([`conditions`], [`settings`]) and what the commands do
//! ([`crate::command`]).

pub mod conditions;
pub mod duration;
pub mod settings;
mod value;
mod word;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

#[cfg(any(test, fuzzing))]
pub(crate) use self::value::fuzz;
use self::value::{Cidr, Listening};
use crate::{
    config::Audit,
    emit::Emit,
    plan::{HookMode, Transport},
    sink::{Format, destination::OUTLET},
};

/// Says which TCP connections of this host fail, since when, whose they are, why, and what to change.
#[derive(Debug, Parser)]
#[command(
    name = "conntracer",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Exit status: 0 ran; 1 findings, with --fail-on-finding; 2 wrong usage or config; 3 cannot trace here."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArguments,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace, and print what is found (the default).
    Run(RunArguments),
    /// Say what is wrong at this moment, after a look at the kernel and a second of events.
    Now(NowArguments),
    /// Show what this kernel offers and what each detector can therefore see.
    Doctor(DoctorArguments),
    /// Trace, and also keep every record in FILE for `replay`.
    Record(RecordArguments),
    /// Judge a recording again; needs no root.
    Replay(ReplayArguments),
    /// Summarise a recording or a file of JSON output.
    Report(ReportArguments),
    /// Explain a finding or a cause, such as `syn_drop` or `accept_queue_full`.
    Explain {
        /// Without it, the words that can be explained are listed.
        #[arg(value_parser = word::Words, hide_possible_values = true)]
        word: Option<String>,
    },
    /// Print the configuration in effect, or check a file.
    Config(ConfigArguments),
    /// Print a completion script.
    Completions { shell: Shell },
    /// What serves a network, fed by a running conntracer.
    #[command(name = OUTLET, hide = true)]
    Outlet { to: String },
}

#[derive(Clone, Debug, Default, Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub kernel: KernelArguments,
    #[command(flatten)]
    pub filter: FilterArguments,
    #[command(flatten)]
    pub output: OutputArguments,
    /// Also look for what no event tells, at intervals.
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub audit: Vec<Audit>,
    /// Stop after this time, such as 30s, 5m or 1h30m.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub duration: Option<Duration>,
    /// Serve metrics for Prometheus: at a port of the loopback address, or at ADDRESS:PORT.
    ///
    /// At http://ADDRESS:PORT/metrics, as text or OpenMetrics. A process without privileges serves them, fed by this one.
    #[arg(long, value_name = "[ADDR:]PORT")]
    pub metrics: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing is wrong; 1 something is; 2 wrong usage or config; 3 cannot trace here."
)]
pub struct NowArguments {
    #[command(flatten)]
    pub kernel: KernelArguments,
    /// How to print it [default: text on a terminal, JSON elsewhere].
    #[arg(long, value_enum, default_value = "auto", hide_default_value = true)]
    pub format: Format,
    /// How long to listen to events [default: 1.25s].
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub duration: Option<Duration>,
    #[command(flatten)]
    pub common: CommonArguments,
    #[command(flatten)]
    pub filter: FilterArguments,
}

#[derive(Debug, Args)]
pub struct RecordArguments {
    /// Where to keep the records; must not exist yet.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub run: RunArguments,
}

#[derive(Debug, Args)]
pub struct ReplayArguments {
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub filter: FilterArguments,
    #[command(flatten)]
    pub output: OutputArguments,
}

#[derive(Debug, Args)]
pub struct ReportArguments {
    /// A recording, or JSON output of conntracer.
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// How to print it.
    #[arg(long, value_enum, default_value = "text", conflicts_with = "html")]
    pub format: ReportFormat,
    /// Write one page for a browser to OUT instead, which must not exist yet.
    #[arg(long, value_name = "OUT", value_hint = ValueHint::FilePath)]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub common: CommonArguments,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// One screen for people.
    Text,
    /// One object, the incidents in order.
    Json,
}

#[derive(Debug, Args)]
pub struct DoctorArguments {
    #[command(flatten)]
    pub kernel: KernelArguments,
    /// How to print it.
    #[arg(long, value_enum, default_value = "auto")]
    pub format: Format,
    #[command(flatten)]
    pub common: CommonArguments,
}

#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// Only say whether FILE is right.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "config")]
    pub check: Option<PathBuf>,
    #[command(flatten)]
    pub common: CommonArguments,
}

/// Flags that every tracing command has.
#[derive(Clone, Debug, Default, Args)]
pub struct CommonArguments {
    /// Configuration file [default: /etc/conntracer/conntracer.toml, where it exists].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Say more about conntracer itself on stderr; twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How to look at the kernel.
#[derive(Clone, Debug, Default, Args)]
pub struct KernelArguments {
    /// How hooks are attached [default: auto].
    #[arg(long, value_enum, value_name = "MODE")]
    pub hooks: Option<HookMode>,
    /// How records travel [default: ringbuf].
    #[arg(long, value_enum, value_name = "KIND")]
    pub transport: Option<Transport>,
    /// The running kernel's BTF [default: /sys/kernel/btf/vmlinux].
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub btf: Option<PathBuf>,
}

/// What to print and where. A heading holds for all that follows.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = None)]
pub struct OutputArguments {
    /// Text, JSON, or text on a terminal and JSON elsewhere [default: auto].
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Also print events of these kinds, separated by commas.
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    pub emit: Vec<Emit>,
    /// Append the output to FILE, which may not be a symbolic link.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Exit with 1 when anything was found.
    #[arg(long)]
    pub fail_on_finding: bool,
    #[command(flatten)]
    pub common: CommonArguments,
}

/// Which sockets. Conditions of different flags must all hold; of several values of one flag, any will do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Filters: any value of a flag will do, all flags given must hold")]
pub struct FilterArguments {
    /// Network namespace: inode number, name, path, `pid:N`, or `self`; up to eight.
    #[arg(long, value_name = "NETNS")]
    pub netns: Vec<String>,
    /// Local or remote port; up to eight, separated by commas.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Vec<u16>,
    /// Local port; up to eight.
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub lport: Vec<u16>,
    /// Remote port; up to eight. A listener has none, and passes.
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub rport: Vec<u16>,
    /// Local or remote address, such as 10.0.0.0/8 or 2001:db8::1; up to eight.
    ///
    /// A listener has no remote address, and passes.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = value::parse_cidr)]
    pub addr: Vec<Cidr>,
    /// Listener and the connections that came in there, as `ss -ltn` shows it; up to eight.
    ///
    /// PORT alone, or *:PORT, is any listener at that port; with an address it is the one bound to that very
    /// address, 0.0.0.0 and [::] included. A connection belongs to it when its local end is that address, or any
    /// address for 0.0.0.0 (IPv4) and [::] (both), and this host did not open it. An IPv4-mapped address is the
    /// IPv4 address.
    #[arg(long, value_name = "[ADDR:]PORT", value_delimiter = ',', value_parser = value::parse_listener)]
    pub listener: Vec<Listening>,
    /// Owning process.
    ///
    /// The owner of a connection is the process that called connect() or accept(); until a connection is
    /// accepted it is its listener's, and a listener is the process's that called listen(). Of sockets older than
    /// conntracer it is the first process that holds them. Sockets whose owner is not known are left out and
    /// counted (records_owner_unknown); so is what has no owner, as SYNs to a port where nobody listens.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Vec<u32>,
    /// Name of the owning process, exactly as `ps -o comm` shows it (15 bytes at most).
    ///
    /// The owner as for --pid, by the name it had when it became the owner.
    #[arg(long, value_delimiter = ',', value_parser = value::parse_comm)]
    pub comm: Vec<String>,
    /// Control group of the owning process, as a path below /sys/fs/cgroup; with all groups below it.
    ///
    /// The owner as for --pid, by the group it was in when it became the owner. A group that does not exist yet
    /// is waited for.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<PathBuf>,
    /// Container of the owning process: the first characters of its id, or of its name in `machinectl`.
    ///
    /// Told by the control group, as for --cgroup: Docker, containerd, CRI-O, Podman, BuildKit, and
    /// systemd-nspawn. One that does not exist yet is waited for.
    #[arg(long, value_name = "ID", value_delimiter = ',', value_parser = value::parse_container)]
    pub container: Vec<String>,
}
