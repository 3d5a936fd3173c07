//! A conntracer that writes to a file, and what it costs in user space.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use conntracer_tests::wait::{self, SOON};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for the hooks to be attached: the verifier is slow on an emulated CPU.
const STARTING: Duration = Duration::from_mins(2);

/// Where it writes, in a file system that is memory.
const OUTPUT: &str = "/tmp/conntracer.json";

/// A conntracer that has attached its hooks; killed when dropped.
pub(crate) struct Tracer {
    child: Child,
    output: Output,
}

impl Tracer {
    pub(crate) fn start(conntracer: &Path, arguments: &[&str]) -> Result<Self> {
        let file = File::create(OUTPUT).with_context(|| format!("creating {OUTPUT}"))?;
        let child = Command::new(conntracer)
            .args(["run", "--format", "json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file)
            .spawn()
            .with_context(|| format!("starting {}", conntracer.display()))?;
        let mut tracer = Self {
            child,
            output: Output::open()?,
        };
        wait::until("conntracer to attach its hooks", STARTING, || {
            if let Some(status) = tracer.child.try_wait().context("waiting for conntracer")? {
                bail!("conntracer ended before it started: {status}");
            }
            Ok((tracer.output.read_on()?.starts > 0).then_some(()))
        })?;
        Ok(tracer)
    }

    /// What it has written so far.
    pub(crate) fn written(&mut self) -> Result<Written> {
        self.output.read_on()
    }

    /// Nanoseconds that its threads were on a CPU, all together.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let mut sum = 0;
        for task in fs::read_dir(&tasks).with_context(|| format!("reading {}", tasks.display()))? {
            let path = task
                .with_context(|| format!("reading {}", tasks.display()))?
                .path()
                .join("schedstat");
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            // Nanoseconds on a CPU come first (Documentation/scheduler/sched-stats.rst).
            let ns: u64 = text
                .split_whitespace()
                .next()
                .and_then(|word| word.parse().ok())
                .with_context(|| format!("{text:?} is no schedstat"))?;
            sum += ns;
        }
        Ok(sum)
    }

    /// Ends it, and gives what it wrote in all.
    pub(crate) fn stop(mut self) -> Result<Written> {
        kill_process(Pid::from_child(&self.child), Signal::INT).context("stopping conntracer")?;
        let status = wait::until("conntracer to end", SOON, || {
            self.child.try_wait().context("waiting for conntracer")
        })?;
        ensure!(status.success(), "conntracer: {status}");
        self.written()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Already gone where all went well.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Lines that were written, of the kinds that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    starts: u64,
    pub(crate) states: u64,
}

impl Written {
    fn line(&mut self, line: &str) {
        // The keys come in this order in every line.
        let Some((_, rest)) = line.split_once(r#""kind":""#) else {
            return;
        };
        match rest.split('"').next() {
            Some("start") => self.starts += 1,
            Some("state") => self.states += 1,
            _ => {}
        }
    }
}

/// The file that it writes to, read as it grows.
struct Output {
    file: BufReader<File>,
    /// The last line, as far as it is written.
    line: String,
    written: Written,
}

impl Output {
    fn open() -> Result<Self> {
        let file = File::open(OUTPUT).with_context(|| format!("opening {OUTPUT}"))?;
        Ok(Self {
            file: BufReader::new(file),
            line: String::new(),
            written: Written::default(),
        })
    }

    fn read_on(&mut self) -> Result<Written> {
        loop {
            self.file
                .read_line(&mut self.line)
                .with_context(|| format!("reading {OUTPUT}"))?;
            if !self.line.ends_with('\n') {
                return Ok(self.written);
            }
            self.written.line(&self.line);
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_by_their_kind() {
        let mut written = Written::default();
        for line in [
            r#"{"schema":1,"time":"","kind":"start"}"#,
            r#"{"schema":1,"time":"","kind":"state","to":"closed"}"#,
            r#"{"schema":1,"time":"","kind":"state","to":"gap"}"#,
            r#"{"schema":1,"time":"","kind":"stats"}"#,
        ] {
            written.line(line);
        }
        let expected = Written {
            starts: 1,
            states: 2,
        };
        assert_eq!(written, expected);
    }
}
