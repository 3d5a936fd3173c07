//! What VMs are to run, and how their init is told.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::kernel::Line;

/// The hook modes of conntracer that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Hooks {
    Auto,
    Kprobe,
    Tracepoint,
    /// Each of the three in turn.
    All,
}

impl Hooks {
    pub(crate) fn modes(self) -> &'static [&'static str] {
        match self {
            Self::Auto => &["auto"],
            Self::Kprobe => &["kprobe"],
            Self::Tracepoint => &["tracepoint"],
            Self::All => &["auto", "kprobe", "tracepoint"],
        }
    }
}

/// How records leave the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    Ringbuf,
    Perf,
}

/// What one VM is booted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) line: &'static Line,
    pub(crate) hooks: &'static str,
    pub(crate) transport: Transport,
    /// Each test has a conntracer of its own.
    pub(crate) is_unshared: bool,
    /// Arguments of the test harness; all tests when there are none.
    pub(crate) filters: Vec<String>,
}

impl Setup {
    /// All tests, as conntracer runs by default but for the hook mode.
    pub(crate) fn of(line: &'static Line, hooks: &'static str) -> Self {
        Self {
            line,
            hooks,
            transport: Transport::Ringbuf,
            is_unshared: false,
            filters: Vec::new(),
        }
    }

    /// What tells it from others of its kernel: `auto`, `kprobe-perf`, `auto-unshared`.
    pub(crate) fn name(&self) -> String {
        let transport = match self.transport {
            Transport::Ringbuf => "",
            Transport::Perf => "-perf",
        };
        let unshared = if self.is_unshared { "-unshared" } else { "" };
        format!("{}{transport}{unshared}", self.hooks)
    }

    /// The init's parameters for the tests. A kernel's command line has no quoting that the init would undo.
    pub(super) fn parameters(&self) -> Result<String> {
        if let Some(filter) = self
            .filters
            .iter()
            .find(|filter| filter.contains(|c: char| c.is_whitespace() || c == '"' || c == ','))
        {
            bail!(
                "{filter:?} cannot travel on a kernel command line: it has a space, quote or comma"
            );
        }
        let transport = match self.transport {
            Transport::Ringbuf => "ringbuf",
            Transport::Perf => "perf",
        };
        let mut parameters = format!(
            "conntracer.run=tests conntracer.hooks={} conntracer.transport={transport}",
            self.hooks
        );
        if self.is_unshared {
            parameters.push_str(" conntracer.unshared=1");
        }
        if !self.filters.is_empty() {
            parameters.push_str(" conntracer.filter=");
            parameters.push_str(&self.filters.join(","));
        }
        Ok(parameters)
    }
}

/// VMs, and how they are run.
pub(crate) struct Plan {
    pub(crate) setups: Vec<Setup>,
    /// VMs at a time.
    pub(crate) jobs: usize,
    pub(crate) timeout: Duration,
    /// Keep each VM's initramfs beside its log.
    pub(crate) keep: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::LINES;

    fn setup(filters: &[&str]) -> Setup {
        Setup {
            filters: filters.iter().map(|&filter| filter.to_owned()).collect(),
            ..Setup::of(&LINES[0], "kprobe")
        }
    }

    #[test]
    fn only_plain_words_travel_on_the_command_line() {
        assert_eq!(
            setup(&["syn_drop", "--skip", "_v6"]).parameters().unwrap(),
            "conntracer.run=tests conntracer.hooks=kprobe conntracer.transport=ringbuf \
             conntracer.filter=syn_drop,--skip,_v6"
        );
        assert!(setup(&["a b"]).parameters().is_err());
        assert!(setup(&["a,b"]).parameters().is_err());
    }

    #[test]
    fn what_is_not_the_default_is_told_and_named() {
        let setup = Setup {
            transport: Transport::Perf,
            is_unshared: true,
            ..setup(&[])
        };
        assert_eq!(
            setup.parameters().unwrap(),
            "conntracer.run=tests conntracer.hooks=kprobe conntracer.transport=perf \
             conntracer.unshared=1"
        );
        assert_eq!(setup.name(), "kprobe-perf-unshared");
        assert_eq!(Setup::of(&LINES[0], "auto").name(), "auto");
    }
}
