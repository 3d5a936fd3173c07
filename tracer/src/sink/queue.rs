//! A bounded queue between the pipeline and one writer thread.
//!
//! The pipeline never waits: lines are collected while records are drained and handed over once a
//! batch, under one lock and with one wake-up. What does not fit is counted. Events may fill only part
//! of the queue, so that a flood of them leaves room for findings. The writer renders, so that a
//! slow formatter or reader costs the pipeline nothing either.

use std::{
    fs::File,
    io::{self, Write},
    mem,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::Notify;

use super::{Line, Renderer};
use crate::count::Grow;

/// Events that may wait: about 16 MB, or what a busy host makes in half a second of a stuck reader.
const BULK_LINES: usize = 65_536;
/// What findings, gaps and totals may take beyond that.
const RESERVED_LINES: usize = 4_096;
/// Lines collected before they are handed over in the middle of a drain.
const BATCH_LINES: usize = 4_096;
/// Rendered text is written when it reaches this, so that a batch of 65,536 lines never becomes one
/// buffer of 30 MB.
const WRITE_BYTES: usize = 64 << 10;

/// Lines that a full queue or a failed output refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub events: u64,
    /// Findings, gaps and totals.
    pub others: u64,
}

/// What happens to lines when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// They are counted: a live pipeline must keep up with the kernel.
    Refuse,
    /// They wait: a replay has nothing to keep up with, and loses nothing.
    Wait,
}

/// The pipeline's end of a sink.
#[derive(Debug)]
pub struct Sink {
    when_full: WhenFull,
    shared: Arc<Shared>,
    batch: Vec<Line>,
    /// A second handle on the output, to ask whether anybody still reads it.
    output: OwnedFd,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The writer waits here for lines, [`Sink::close`] for the end.
    changed: Condvar,
    failed: Notify,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    refused: Refused,
    closing: bool,
    finished: bool,
    failure: Option<io::Error>,
}

impl Shared {
    /// A poisoned lock means the writer panicked between two whole updates; the state is still true.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    /// Starts the writer thread over `output`.
    pub fn spawn(output: File, renderer: Renderer, when_full: WhenFull) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let handle = output.as_fd().try_clone_to_owned()?;
        let theirs = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("conntracer-sink".to_owned())
            .spawn(move || write_lines(&theirs, output, renderer))?;
        Ok(Self {
            when_full,
            shared,
            batch: Vec::new(),
            output: handle,
            writer: Some(writer),
        })
    }

    /// Takes one line; it reaches the writer with the next [`Sink::flush`].
    pub fn push(&mut self, line: Line) {
        self.batch.push(line);
        if self.batch.len() >= BATCH_LINES {
            self.flush();
        }
    }

    /// Hands over what was collected.
    pub fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut state = self.shared.lock();
        while self.when_full == WhenFull::Wait
            && state.lines.len() >= BULK_LINES - BATCH_LINES
            && !state.finished
        {
            state = self
                .shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        for line in self.batch.drain(..) {
            let bound = if line.is_bulk() {
                BULK_LINES
            } else {
                BULK_LINES + RESERVED_LINES
            };
            let refused = state.failure.is_some() || state.lines.len() >= bound;
            match (refused, line.is_bulk()) {
                (false, _) => state.lines.push(line),
                (true, true) => state.refused.events.grow(1),
                (true, false) => state.refused.others.grow(1),
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// What was refused so far.
    #[must_use]
    pub fn refused(&self) -> Refused {
        self.shared.lock().refused
    }

    /// Completes when the output failed; at once if it already did. Cancel-safe.
    pub async fn failed(&self) {
        self.shared.failed.notified().await;
    }

    /// Whether the reader of a pipe or socket is gone. Asked between lines, so that `| head -1` ends
    /// conntracer although nothing more is written.
    #[must_use]
    pub fn reader_is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.output, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut fds, Some(&now)), Ok(1..)) && fds[0].revents().intersects(PollFlags::ERR)
    }

    /// Hands over the rest and waits until it is written, at most `patience` where one is given: a
    /// reader that stopped reading then does not keep conntracer from ending.
    pub fn close(mut self, patience: Option<Duration>) -> io::Result<()> {
        self.flush();
        let mut state = self.shared.lock();
        state.closing = true;
        self.shared.changed.notify_all();
        let start = Instant::now();
        while !state.finished {
            let Some(patience) = patience else {
                state = self
                    .shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nobody read the output for {} s", patience.as_secs()),
                ));
            }
            let wait = self.shared.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        let failure = state.failure.take();
        drop(state);
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            return Err(io::Error::other("the writer of the output panicked"));
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Says that the writer is done, also when it panics: [`Sink::close`] waits for it.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.lock().finished = true;
        self.0.changed.notify_all();
    }
}

fn write_lines(shared: &Shared, mut output: File, mut renderer: Renderer) {
    let _finish = Finish(shared);
    let mut lines = Vec::new();
    let mut bytes = Vec::with_capacity(WRITE_BYTES);
    loop {
        let mut state = shared.lock();
        while state.lines.is_empty() && !state.closing {
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.lines.is_empty() {
            return;
        }
        mem::swap(&mut state.lines, &mut lines);
        drop(state);
        shared.changed.notify_all();

        let written = write_batch(&mut output, &mut renderer, &lines, &mut bytes);
        lines.clear();
        if let Err(error) = written {
            let mut state = shared.lock();
            state.failure = Some(error);
            state.lines.clear();
            drop(state);
            shared.failed.notify_one();
            return;
        }
    }
}

fn write_batch(
    output: &mut File,
    renderer: &mut Renderer,
    lines: &[Line],
    bytes: &mut Vec<u8>,
) -> io::Result<()> {
    for line in lines {
        renderer.render(line, bytes);
        if bytes.len() >= WRITE_BYTES {
            write_fully(output, bytes)?;
            bytes.clear();
        }
    }
    write_fully(output, bytes)?;
    bytes.clear();
    Ok(())
}

/// `write_all` that also takes an output which another process made non-blocking.
fn write_fully(output: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(output, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
