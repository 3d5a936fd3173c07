//! The event loop of a live run: wait, drain, poll, judge, print, until something ends it. SIGUSR1 asks how things
//! stand: every open finding is said, then a `stats` line. SIGHUP opens the outputs anew.
//!
//! Generic over [`Source`], so that its tests need no kernel. One thread; each sink has its own.

mod recorder;

use std::{io, time::Duration};

use anyhow::Context;
use conntracer_common::record::{Checkpoint, Header, kind};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use zerocopy::IntoBytes;

pub use self::recorder::Recorder;
use crate::{
    sink::{Line, Lines, Occasion, Reason},
    source::Source,
    watch::Watch,
};

/// Time between two polls of the kernel's maps. What only a poll can tell (a finding's end, a recovery) is
/// told well within a second, and an idle host is woken four times a second: tokio's timer wheel wakes
/// once more on the way to most deadlines beyond 64 ms.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The same while events are streamed: their records wake nobody, and a ring of 1 MiB holds a tenth of
/// a second of 80,000 events.
const STREAM_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two comparisons with the kernel's own counters: a residue is news to nobody within a
/// second, and a host of 1,000 namespaces and 2 CPUs pays 0.2 % of one (measured: 10 µs a namespace).
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
/// Polls that may fail one after another before the run does: 5 s at the longer interval. A map that finds no
/// memory and a CPU that goes offline are over by then.
const MAX_FAILURES: u32 = 10;
/// Time between two `stats` lines.
const STATS_INTERVAL: Duration = Duration::from_secs(10);

/// The signals that ask for something. Made before anything is attached, so that one which comes early
/// is kept.
#[derive(Debug)]
pub struct Signals {
    ends: Ends,
    /// SIGUSR1. Those that come before the first is received are one.
    checkpoint: Signal,
    /// SIGHUP.
    reopen: Signal,
}

/// The signals that ask for an end.
#[derive(Debug)]
struct Ends {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Needs a running tokio runtime.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            ends: Ends {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
            },
            checkpoint: signal(SignalKind::user_defined1())?,
            reopen: signal(SignalKind::hangup())?,
        })
    }
}

impl Ends {
    /// Completes at the first signal, and lets a second one kill at once.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        for number in [libc::SIGINT, libc::SIGTERM] {
            // SAFETY: SIG_DFL is a valid disposition of both, and replaces tokio's handler, which
            // nothing waits for any more.
            unsafe {
                libc::signal(number, libc::SIG_DFL);
            }
        }
    }
}

/// How long a run is, where nobody ends it before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Length {
    /// Without one it goes on.
    pub duration: Option<Duration>,
    /// Polls that it has at least, however slow the machine.
    pub polls: u32,
}

/// Runs until the time is over, a signal comes, or nobody reads the output; then takes what is still
/// in the rings, and prints the totals.
pub async fn run<S: Source>(
    source: &mut S,
    watch: &mut Watch,
    sinks: &mut impl Lines,
    mut recorder: Option<&mut Recorder>,
    length: Length,
    signals: &mut Signals,
) -> anyhow::Result<Reason> {
    let mut failures = Failures::default();
    let reason = until_end(
        source,
        watch,
        sinks,
        recorder.as_deref_mut(),
        &mut failures,
        length,
        signals,
    )
    .await?;
    Step {
        watch,
        sinks,
        recorder,
        failures: &mut failures,
    }
    .poll(source, true)?;
    watch.finish(&mut |line| sinks.push(line));
    let hooks = source
        .accounts()
        .context("reading the eBPF side's counters")?;
    let account = Box::new(watch.account(hooks, sinks.accounts(), failures.all, false));
    sinks.push(Line::Stop { reason, account });
    sinks.flush();
    Ok(reason)
}

async fn until_end<S: Source>(
    source: &mut S,
    watch: &mut Watch,
    sinks: &mut impl Lines,
    mut recorder: Option<&mut Recorder>,
    failures: &mut Failures,
    length: Length,
    signals: &mut Signals,
) -> anyhow::Result<Reason> {
    let streams = watch.emits().records() != 0;
    let mut ticks = interval(if streams {
        STREAM_INTERVAL
    } else {
        POLL_INTERVAL
    });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = length.duration.map(|duration| Instant::now() + duration);
    let mut polls_left = length.polls;
    let mut next_stats = Instant::now() + STATS_INTERVAL;
    let mut next_reconcile = Instant::now() + RECONCILE_INTERVAL;
    let mut more = false;
    // Until the kernel answers: a checkpoint is not made of what an earlier poll told.
    let mut checkpoint_due = false;
    loop {
        let polls = tokio::select! {
            // Ends first: a host so busy that there is always something to read ends, too.
            biased;
            () = signals.ends.received() => return Ok(Reason::Signal),
            () = sleep_until_some(deadline), if polls_left == 0 => return Ok(Reason::Duration),
            () = sinks.failed() => {
                if sinks.are_over() {
                    return Ok(Reason::BrokenPipe);
                }
                false
            }
            _ = signals.checkpoint.recv() => {
                checkpoint_due = true;
                true
            }
            _ = signals.reopen.recv() => {
                sinks.reopen();
                false
            }
            _ = ticks.tick() => true,
            // Not at once: signals are only heard of when the runtime has its turn.
            () = yield_now(), if more => false,
            readable = source.readable() => {
                readable.context("waiting for records")?;
                false
            }
        };
        let step = Step {
            watch,
            sinks,
            recorder: recorder.as_deref_mut(),
            failures,
        };
        if polls {
            polls_left = polls_left.saturating_sub(1);
            let reconciles = Instant::now() >= next_reconcile;
            if reconciles {
                next_reconcile += RECONCILE_INTERVAL;
            }
            if checkpoint_due {
                if let Some(drained) = step.checkpoint(source)? {
                    more = drained;
                    checkpoint_due = !tell_stats(source, watch, sinks, failures, Occasion::Signal)?;
                }
            } else {
                more = step.poll(source, reconciles)?;
            }
            if sinks.are_over() {
                return Ok(Reason::BrokenPipe);
            }
            if watch.emits().stats && Instant::now() >= next_stats {
                next_stats += STATS_INTERVAL;
                tell_stats(source, watch, sinks, failures, Occasion::Interval)?;
            }
        } else {
            more = step.drain(source)?;
        }
        sinks.flush();
    }
}

/// Whether the kernel let it.
fn tell_stats<S: Source>(
    source: &S,
    watch: &Watch,
    sinks: &mut impl Lines,
    failures: &mut Failures,
    occasion: Occasion,
) -> anyhow::Result<bool> {
    let hooks = source
        .accounts()
        .context("reading the eBPF side's counters");
    let Some(hooks) = failures.forgive(hooks)? else {
        return Ok(false);
    };
    let asked = occasion == Occasion::Signal;
    let account = Box::new(watch.account(hooks, sinks.accounts(), failures.all, asked));
    sinks.push(Line::Stats { occasion, account });
    Ok(true)
}

async fn sleep_until_some(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Polls that failed, in a row and in all.
#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    all: u64,
}

impl Failures {
    /// Counts a failure, and passes on the one that is too many.
    fn forgive<T>(&mut self, polled: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match polled {
            Ok(told) => {
                self.in_a_row = 0;
                Ok(Some(told))
            }
            Err(error) => {
                self.in_a_row += 1;
                self.all += 1;
                if self.in_a_row > MAX_FAILURES {
                    return Err(error);
                }
                log::warn!("{error:#}; the next poll tries again");
                Ok(None)
            }
        }
    }
}

/// One turn of the loop: records go to the recording, then through the pipeline.
struct Step<'a, L> {
    watch: &'a mut Watch,
    sinks: &'a mut L,
    recorder: Option<&'a mut Recorder>,
    failures: &'a mut Failures,
}

impl<L: Lines> Step<'_, L> {
    /// Says whether more is in the rings.
    fn drain<S: Source>(mut self, source: &mut S) -> anyhow::Result<bool> {
        let drained = self.read(source);
        Ok(self.failures.forgive(drained)?.unwrap_or(false))
    }

    /// The same, with what the maps and the kernel's counters tell.
    fn poll<S: Source>(mut self, source: &mut S, reconciles: bool) -> anyhow::Result<bool> {
        let polled = self.ask(source, reconciles);
        Ok(self.failures.forgive(polled)?.unwrap_or(false))
    }

    /// The same, and every open finding is said; `None` where the kernel did not answer. What asks for it is a record
    /// of its own, so that a recording holds it.
    fn checkpoint<S: Source>(mut self, source: &mut S) -> anyhow::Result<Option<bool>> {
        let polled = self.ask(source, true).inspect(|_| {
            let checkpoint = Checkpoint {
                header: Header {
                    ktime_ns: self.watch.now().0,
                    kind: kind::CHECKPOINT,
                    size: size_of::<Checkpoint>().try_into().unwrap_or(u16::MAX),
                    cpu: u32::MAX,
                },
            };
            self.take(checkpoint.as_bytes());
        });
        self.failures.forgive(polled)
    }

    fn read<S: Source>(&mut self, source: &mut S) -> anyhow::Result<bool> {
        source
            .drain(&mut |record| self.take(record))
            .context("reading the rings")
    }

    fn ask<S: Source>(&mut self, source: &mut S, reconciles: bool) -> anyhow::Result<bool> {
        let more = self.read(source)?;
        let watched = self.watch.watched();
        let half_closed_ns = self.watch.half_closed_ns();
        source
            .poll(&watched, half_closed_ns, &mut |record| self.take(record))
            .context("polling the kernel's maps")?;
        if reconciles {
            source
                .reconcile(&mut |record| self.take(record))
                .context("reading the kernel's counters")?;
        }
        Ok(more)
    }

    fn take(&mut self, record: &[u8]) {
        let kept = self.watch.feed(record, &mut |line| self.sinks.push(line));
        if let Some(recorder) = &mut self.recorder
            && kept
        {
            recorder.keep(record);
        }
    }
}

#[cfg(test)]
mod tests;
