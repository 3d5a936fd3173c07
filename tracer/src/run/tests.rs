//! The loop over a source that is no kernel.

use std::{
    fs::{self, File},
    io::BufReader,
    sync::{Arc, PoisonError, RwLock},
};

use conntracer_common::{
    record::{Header, Loss, Tick, kind},
    stats::{HOOKS, HookCounters},
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde_json::Value;
use zerocopy::IntoBytes;

use super::*;
use crate::{
    detect::Thresholds,
    emit::Emits,
    filter::EventFilter,
    recording::Reader,
    sink::{Format, Output, Selection, Sinks, To, WhenFull, destination::Stream, sinks::Opened},
    source::Watched,
    testing,
};

const HOOK: u32 = 5;

/// A signal is the whole process's: who sends one runs alone.
static SIGNALS: RwLock<()> = RwLock::new(());

/// Has one record to drain at its first wake-up, and one more at every poll.
#[derive(Default)]
struct Fake {
    ktime_ns: u64,
    drained: bool,
    polls: u64,
    fails: bool,
    /// Polls that are answered no sooner.
    failing_polls: u64,
    /// Polls during which somebody asks how things stand.
    asked_at: Vec<u64>,
    reconciled: u64,
    drains: u64,
    /// During so many drains more comes.
    busy_drains: u64,
}

impl Source for Fake {
    async fn readable(&self) -> io::Result<()> {
        if self.drained {
            std::future::pending().await
        } else {
            Ok(())
        }
    }

    fn drain(&mut self, feed: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        self.drains += 1;
        if self.fails {
            return Err(io::Error::other("the ring is gone"));
        }
        if !self.drained {
            self.drained = true;
            self.ktime_ns += 1;
            let header = header::<Loss>(kind::LOSS, self.ktime_ns);
            feed(
                Loss {
                    header,
                    lost: 3,
                    hook: HOOK,
                    missed: 0,
                }
                .as_bytes(),
            );
        }
        Ok(self.drains <= self.busy_drains)
    }

    fn poll(
        &mut self,
        _watched: &Watched,
        _half_closed_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        self.polls += 1;
        if self.asked_at.contains(&self.polls) {
            // Handled before it returns, which a signal to the process is not.
            // SAFETY: a number; what handles it was installed by `Signals`.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
        if self.polls <= self.failing_polls {
            return Err(io::Error::other("no memory"));
        }
        self.ktime_ns += 1;
        feed(
            Tick {
                header: header::<Tick>(kind::TICK, self.ktime_ns),
            }
            .as_bytes(),
        );
        Ok(())
    }

    fn reconcile(&mut self, _feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.reconciled += 1;
        Ok(())
    }

    fn accounts(&self) -> io::Result<Vec<(&'static str, HookCounters)>> {
        let lost = HookCounters {
            seen: 3,
            lost: 3,
            ..HookCounters::default()
        };
        Ok(vec![(HOOKS[HOOK as usize], lost)])
    }
}

fn header<R>(kind: u16, ktime_ns: u64) -> Header {
    let size = u16::try_from(size_of::<R>()).unwrap();
    Header {
        ktime_ns,
        kind,
        size,
        cpu: 0,
    }
}

struct Ran {
    reason: anyhow::Result<Reason>,
    lines: Vec<Value>,
    /// Of the recording, which is whole.
    records: u64,
    kept: io::Result<()>,
}

/// Runs until `duration`, on paused time: the clock jumps to the next timer when nothing else is left.
fn run_for(source: &mut Fake, output: Option<File>, duration: Option<Duration>) -> Ran {
    run_recorded(source, output, None, Length { duration, polls: 0 })
}

fn run_within(source: &mut Fake, length: Length) -> Ran {
    run_recorded(source, None, None, length)
}

/// The same, with another file for a recording.
fn run_recorded(
    source: &mut Fake,
    output: Option<File>,
    kept_in: Option<File>,
    length: Length,
) -> Ran {
    // A test that failed leaves nothing half-made there.
    let (_shared, _alone) = if source.asked_at.is_empty() {
        let shared = SIGNALS.read().unwrap_or_else(PoisonError::into_inner);
        (Some(shared), None)
    } else {
        let alone = SIGNALS.write().unwrap_or_else(PoisonError::into_inner);
        (None, Some(alone))
    };
    let directory = tempfile::tempdir().unwrap();
    let (path, recording) = (
        directory.path().join("out"),
        directory.path().join("recording"),
    );
    let host = Arc::new(testing::host());
    let file = output.unwrap_or_else(|| File::create(&path).unwrap());
    let output = Opened {
        output: Output {
            to: To::file(None),
            format: Format::Json,
            selection: Selection::default(),
            verbose: false,
        },
        destination: Box::new(Stream::new(file)),
    };
    let mut recorder = Recorder::new(
        kept_in.unwrap_or_else(|| File::create(&recording).unwrap()),
        &host,
    )
    .unwrap();
    let mut watch = Watch::new(
        Thresholds::default(),
        Arc::clone(&host),
        Emits::default(),
        EventFilter::all(),
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let reason = runtime.block_on(async {
        // The clock jumps for nobody who always has something to do.
        if source.busy_drains == u64::MAX {
            tokio::time::resume();
        }
        let mut sinks = Sinks::spawn(vec![output], &host, WhenFull::Drop).unwrap();
        let mut signals = Signals::install().unwrap();
        let reason = run(
            source,
            &mut watch,
            &mut sinks,
            Some(&mut recorder),
            length,
            &mut signals,
        )
        .await;
        // A reader that is gone is one of the cases.
        drop(sinks.close(None));
        reason
    });
    let lines = fs::read_to_string(&path).unwrap_or_default();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kept = recorder.end();
    let records = if reason.is_ok() && recording.exists() {
        let mut reader = Reader::new(BufReader::new(File::open(&recording).unwrap())).unwrap();
        while reader.next_record().unwrap().is_some() {}
        reader.records()
    } else {
        0
    };
    Ran {
        reason,
        lines,
        records,
        kept,
    }
}

/// A file that takes no more than so much: a disk that fills up.
fn fills(bytes: u64) -> File {
    let file = memfd_create(c"recording", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, bytes).unwrap();
    fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    file.into()
}

#[test]
fn a_recording_that_cannot_be_written_ends_and_tracing_goes_on() {
    let mut source = Fake::default();
    let ran = run_recorded(
        &mut source,
        None,
        Some(fills(16 << 10)),
        Length {
            duration: Some(Duration::from_mins(10)),
            polls: 0,
        },
    );
    assert_eq!(ran.reason.unwrap(), Reason::Duration);
    assert_eq!(ran.lines.last().unwrap()["kind"], "stop");
    let error = ran.kept.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn an_idle_host_is_polled_twice_a_second() {
    let mut source = Fake::default();
    let ran = run_for(&mut source, None, Some(Duration::from_millis(9_900)));
    assert_eq!(ran.reason.unwrap(), Reason::Duration);
    // One at once, one each 500 ms, one at the end.
    assert_eq!(source.polls, 1 + 19 + 1);
}

#[test]
fn a_run_has_the_polls_that_it_needs_however_short_it_is() {
    let mut source = Fake::default();
    let length = Length {
        duration: Some(Duration::from_millis(1)),
        polls: 3,
    };
    let ran = run_within(&mut source, length);
    assert_eq!(ran.reason.unwrap(), Reason::Duration);
    assert_eq!(source.polls, 3 + 1, "and one at the end");
}

#[test]
fn what_came_during_a_drain_is_drained_before_the_next_poll() {
    let mut source = Fake {
        busy_drains: 100,
        ..Fake::default()
    };
    let ran = run_for(&mut source, None, Some(Duration::from_millis(100)));
    assert_eq!(ran.reason.unwrap(), Reason::Duration);
    // One at the end, for each poll has its own.
    assert_eq!((source.drains, source.polls), (101 + 1, 2));
}

#[test]
fn a_source_that_is_never_empty_does_not_outlast_the_run() {
    let mut source = Fake {
        busy_drains: u64::MAX,
        ..Fake::default()
    };
    let ran = run_for(&mut source, None, Some(Duration::from_millis(1)));
    assert_eq!(ran.reason.unwrap(), Reason::Duration);
}

#[test]
fn what_was_lost_is_told_and_accounted_for() {
    let ran = run_for(&mut Fake::default(), None, Some(Duration::from_secs(1)));
    let kinds: Vec<&str> = ran
        .lines
        .iter()
        .filter_map(|line| line["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["gap", "stop"]);
    assert_eq!(ran.lines[0]["lost"], 3);
    assert_eq!(ran.lines[1]["reason"], "duration");
    assert_eq!(ran.lines[1]["hooks"][HOOKS[HOOK as usize]]["lost"], 3);
}

#[test]
fn every_record_is_recorded() {
    let mut source = Fake::default();
    let ran = run_for(&mut source, None, Some(Duration::from_secs(1)));
    assert_eq!(ran.records, source.polls + 1);
}

#[test]
fn a_reader_that_leaves_ends_the_run() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let ran = run_for(&mut Fake::default(), Some(writer.into()), None);
    assert_eq!(ran.reason.unwrap(), Reason::BrokenPipe);
}

#[test]
fn a_poll_may_fail_for_a_while() {
    let mut source = Fake {
        failing_polls: u64::from(MAX_FAILURES),
        ..Fake::default()
    };
    let ran = run_for(&mut source, None, Some(Duration::from_secs(10)));
    assert_eq!(ran.reason.unwrap(), Reason::Duration);
    let stop = ran.lines.last().unwrap();
    assert_eq!(stop["tallies"]["polls_failed"], MAX_FAILURES);
}

fn reasons_of_stats(ran: &Ran) -> Vec<&str> {
    ran.lines
        .iter()
        .filter(|line| line["kind"] == "stats")
        .filter_map(|line| line["reason"].as_str())
        .collect()
}

#[test]
fn who_asks_how_things_stand_is_answered_by_a_poll_of_its_own() {
    let mut source = Fake {
        // While the first poll runs, and while what that asked for is answered: whatever comes before the answer's end
        // may miss what the answer tells, and has one of its own.
        asked_at: vec![1, 2],
        ..Fake::default()
    };
    let ran = run_for(&mut source, None, Some(Duration::from_millis(400)));
    assert_eq!(reasons_of_stats(&ran), ["signal", "signal"]);
    // The first, the two answers, and one at the end; of which all but the first also compare.
    assert_eq!((source.polls, source.reconciled), (4, 3));
    let records = 1 + source.polls + 2;
    assert_eq!(ran.records, records, "a recording holds what was asked");
}

#[test]
fn who_asks_while_the_kernel_does_not_answer_is_answered_later() {
    let mut source = Fake {
        asked_at: vec![1],
        failing_polls: 3,
        ..Fake::default()
    };
    let ran = run_for(&mut source, None, Some(Duration::from_millis(1_700)));
    assert_eq!(reasons_of_stats(&ran), ["signal"]);
    let stats = ran.lines.iter().find(|line| line["kind"] == "stats");
    assert_eq!(stats.unwrap()["tallies"]["polls_failed"], 3);
}

#[test]
fn a_source_that_fails_ends_the_run() {
    let mut source = Fake {
        fails: true,
        ..Fake::default()
    };
    let ran = run_for(&mut source, None, None);
    let error = format!("{:#}", ran.reason.unwrap_err());
    assert_eq!(error, "reading the rings: the ring is gone");
}
