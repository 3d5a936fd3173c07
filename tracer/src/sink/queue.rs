//! A bounded queue between the pipeline and one writer thread.
//!
//! The pipeline never waits: lines are collected while records are drained and handed over once a
//! batch, under one lock and with one wake-up. What does not fit is counted. Events may fill only part
//! of the queue, so that a flood of them leaves room for findings. What was lost is told in the stream itself, where it
//! would have stood ([`super::missed`]). The writer renders, so that a
//! slow formatter or reader costs the pipeline nothing either.

use std::{
    io, mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{destination::Destination, format::Renderer, line::Line, missed::Missed};
use crate::count::Grow;

/// Events that may wait: about 16 MB, or what a busy host makes in half a second of a stuck reader.
const BULK_LINES: usize = 65_536;
/// What findings, gaps and totals may take beyond that.
const RESERVED_LINES: usize = 4_096;
/// Lines collected before they are handed over in the middle of a drain.
const BATCH_LINES: usize = 4_096;

/// Lines that found a full queue or a failed destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub events: u64,
    /// Findings, gaps and totals.
    pub others: u64,
}

impl Lost {
    fn count(&mut self, line: &Line) {
        if line.is_bulk() {
            self.events.grow(1);
        } else {
            self.others.grow(1);
        }
    }
}

/// What happens to lines when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// They are counted: a live pipeline must keep up with the kernel.
    Drop,
    /// They wait: a replay has nothing to keep up with, and loses nothing.
    Wait,
}

/// The pipeline's end of the queue.
#[derive(Debug)]
pub(super) struct Queue {
    when_full: WhenFull,
    shared: Arc<Shared>,
    batch: Vec<Line>,
    writer: JoinHandle<()>,
    /// What was written when the last was handed over.
    written: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The writer waits here for lines, [`Queue::close`] for the end.
    changed: Condvar,
    /// Lines that the destination has taken.
    written: AtomicU64,
    /// Of all sinks.
    failed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    lost: Lost,
    /// Lost since the writer took what there was, and not told yet.
    missed: Option<Missed>,
    closing: bool,
    /// What is written from here on goes to a destination that is opened anew.
    reopens: bool,
    finished: bool,
    failure: Option<io::Error>,
}

impl State {
    fn lose(&mut self, line: Line) {
        self.lost.count(&line);
        match &mut self.missed {
            Some(missed) => missed.add(line),
            None => self.missed = Some(Missed::of(line)),
        }
    }

    /// What waits. Behind the lines that there was room for stands what there was none for; nothing stands behind the last
    /// line of all.
    fn take(&mut self, sink: &str, into: &mut Vec<Line>) {
        mem::swap(&mut self.lines, into);
        let Some(missed) = self.missed.take() else {
            return;
        };
        let last = into.pop_if(|line| matches!(line, Line::Stop { .. }));
        into.extend(missed.told(sink));
        into.extend(last);
    }
}

impl Shared {
    /// A poisoned lock means the writer panicked between two whole updates; the state is still true.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Starts the writer thread over `destination`, which is called `sink`; it tells `failed` when it fails.
    pub(super) fn spawn(
        sink: String,
        destination: Box<dyn Destination>,
        renderer: Renderer,
        when_full: WhenFull,
        failed: Arc<Notify>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            written: AtomicU64::new(0),
            failed,
        });
        let theirs = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("conntracer-sink".to_owned())
            .spawn(move || {
                // Behind the destination's own end, which may take a while.
                let _finish = Finish(&theirs);
                write_lines(&theirs, &sink, destination, renderer);
            })?;
        Ok(Self {
            when_full,
            shared,
            batch: Vec::new(),
            writer,
            written: 0,
        })
    }

    /// Takes one line; it reaches the writer with the next [`Queue::flush`].
    pub(super) fn push(&mut self, line: Line) {
        self.batch.push(line);
        if self.batch.len() >= BATCH_LINES {
            self.flush();
        }
    }

    /// Hands over what was collected.
    pub(super) fn flush(&mut self) {
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
            if state.failure.is_some() {
                state.lost.count(&line);
            } else if state.lines.len() < bound || line.is_needed() {
                state.lines.push(line);
            } else {
                state.lose(line);
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// The destination is opened anew, behind the lines that were handed over.
    pub(super) fn reopen(&mut self) {
        self.flush();
        self.shared.lock().reopens = true;
        self.shared.changed.notify_all();
    }

    /// What was lost so far.
    pub(super) fn lost(&self) -> Lost {
        self.shared.lock().lost
    }

    /// Why the destination takes no more.
    pub(super) fn failure(&self) -> Option<io::Error> {
        let state = self.shared.lock();
        let error = state.failure.as_ref()?;
        Some(match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(error.kind(), error.to_string()),
        })
    }

    /// Hands over the rest; nothing follows.
    pub(super) fn end(&mut self) {
        self.flush();
        self.written = self.shared.written.load(Relaxed);
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
    }

    /// Waits until the rest is written; where `patience` is given, for as long from `start` on, or from when more was
    /// found to be written: a slow reader reads, too.
    pub(super) fn close(self, start: Instant, patience: Option<Duration>) -> io::Result<()> {
        let (mut start, mut before) = (start, self.written);
        let mut state = self.shared.lock();
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
                let written = self.shared.written.load(Relaxed);
                if written != before {
                    (start, before) = (Instant::now(), written);
                    continue;
                }
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
        if self.writer.join().is_err() {
            return Err(io::Error::other("the writer of the output panicked"));
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Says that the writer is done, also when it panics: [`Queue::close`] waits for it.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.lock().finished = true;
        self.0.changed.notify_all();
    }
}

fn write_lines(
    shared: &Shared,
    sink: &str,
    mut destination: Box<dyn Destination>,
    mut renderer: Renderer,
) {
    let mut lines = Vec::new();
    let mut bytes = Vec::new();
    loop {
        let mut state = shared.lock();
        while state.lines.is_empty() && !state.closing && !state.reopens {
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.lines.is_empty() && !state.reopens {
            return;
        }
        let reopens = mem::take(&mut state.reopens);
        state.take(sink, &mut lines);
        drop(state);
        shared.changed.notify_all();

        let written = lines.iter().try_for_each(|line| {
            bytes.clear();
            renderer.render(line, &mut bytes);
            if bytes.is_empty() {
                return Ok(());
            }
            destination.write(line, &bytes)?;
            shared.written.fetch_add(1, Relaxed);
            Ok(())
        });
        let written = written.and_then(|()| destination.flush());
        let written = written.and_then(|()| {
            if reopens {
                destination.reopen()
            } else {
                Ok(())
            }
        });
        if let Err(error) = written {
            let mut state = shared.lock();
            state.failure = Some(error);
            // Nobody knows what of the batch went out.
            lines.append(&mut state.lines);
            for line in &lines {
                state.lost.count(line);
            }
            drop(state);
            shared.failed.notify_one();
            return;
        }
        lines.clear();
    }
}
