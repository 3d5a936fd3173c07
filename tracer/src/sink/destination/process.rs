//! A process of conntracer's own that serves a network, fed JSON lines by a pipe: the tracer itself talks to nobody.
//!
//! It is started before anything is attached, and gives up all privileges before it says that it is ready.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufRead as _, BufReader},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, bail};

use super::stream::{Destination, Stream};
use crate::sink::line::Line;

/// What conntracer is called with to be that process.
pub const OUTLET: &str = "outlet";
/// What it says when it serves.
pub const READY: &str = "ready";

/// Starts one that is called `word`.
pub(super) fn open(word: &str, rest: &OsStr) -> anyhow::Result<Box<dyn Destination>> {
    let mut to = OsString::from(word);
    to.push(":");
    to.push(rest);
    let mut child = Command::new("/proc/self/exe")
        .arg(OUTLET)
        .arg(to)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A terminal's ^C is for the tracer, which ends this one.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting the process that serves {word}"))?;
    let mut answer = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output)
            .read_line(&mut answer)
            .context("reading its answer")?;
    }
    let answer = answer.trim_end();
    if answer != READY {
        let status = child.wait().context("waiting for its end")?;
        if answer.is_empty() {
            bail!("the process that serves {word} ended with {status}");
        }
        bail!("{answer}");
    }
    let input = child.stdin.take().context("it has no input")?;
    Ok(Box::new(Outlet {
        stream: Some(Stream::new(File::from(OwnedFd::from(input)))),
        child,
    }))
}

/// The pipe to it.
#[derive(Debug)]
struct Outlet {
    /// None at the end only.
    stream: Option<Stream>,
    child: Child,
}

impl Outlet {
    fn stream(&mut self) -> io::Result<&mut Stream> {
        self.stream
            .as_mut()
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// A pipe that broke says less than how the process ended.
    fn said(&mut self, written: io::Result<()>) -> io::Result<()> {
        let Err(error) = written else { return Ok(()) };
        Err(match self.child.try_wait() {
            Ok(Some(status)) => io::Error::other(format!("its process ended with {status}")),
            _ => error,
        })
    }
}

impl Destination for Outlet {
    fn write(&mut self, line: &Line, rendered: &[u8]) -> io::Result<()> {
        let written = self.stream()?.write(line, rendered);
        self.said(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.stream()?.flush();
        self.said(flushed)
    }
}

impl Drop for Outlet {
    /// It ends with its input.
    fn drop(&mut self) {
        drop(self.stream.take());
        if let Err(error) = self.child.wait() {
            log::warn!("waiting for the end of an output's process: {error}");
        }
    }
}
