//! The demo: two throw-away network namespaces joined by a veth pair, three things going wrong
//! between them, and conntracer saying so.
//!
//! Everything lives in file descriptors and threads of this process, so nothing is left behind
//! however it ends. Exit status 3 is conntracer's: it cannot trace here.

#![expect(clippy::print_stderr, reason = "tells on standard error what it does")]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    process::{ChildStdout, ExitCode, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use conntracer_tests::{
    family::Family,
    link::Pair,
    process::Process,
    scenario::{accept_queue::AcceptQueueFull, dead_peer::DeadPeer, lossy_path::LossyPath},
    tracer::{Binary, CANNOT_TRACE},
    wait::{self, SOON},
};
use rustix::process::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// The three findings.
const KINDS: [&str; 3] = ["syn_drop", "half_open", "retransmit_storm"];

/// Longest wait for the hooks to be attached; the verifier is slow on an emulated CPU.
const STARTING: Duration = Duration::from_mins(2);

/// Longest wait for the totals.
const STOPPING: Duration = Duration::from_secs(30);

/// Ports of the server that loses its peer, and of the one whose path is lossy.
const DEAD_PEER_PORT: u16 = 8081;
const LOSSY_PORT: u16 = 8082;

/// Segments to lose: a few seconds of storm.
const LOST_SEGMENTS: u64 = 400;

/// Exit status after a signal, as a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

/// What conntracer has printed so far.
#[derive(Debug, Default)]
struct Screen {
    has_started: bool,
    has_ended: bool,
    kinds: BTreeSet<&'static str>,
}

type Shared = Arc<Mutex<Screen>>;

fn main() -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?
        .block_on(demo())
}

async fn demo() -> Result<ExitCode> {
    let binary = Binary::from_env()
        .context("CONNTRACER_BIN does not name a conntracer; `cargo xtask demo` sets it")?;
    // Before anything can be left behind.
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let pair = Pair::new()?;
    eprintln!(
        "demo: two network namespaces, joined by a veth pair; conntracer looks at one of them"
    );
    let screen = Shared::default();
    let mut command = binary.run(&pair.server);
    command.args(["--format", "text"]).stderr(Stdio::inherit());
    let mut conntracer = Process::spawn(&mut command)?;
    let stdout = conntracer.stdout()?;
    let printer = {
        let screen = Arc::clone(&screen);
        thread::spawn(move || show(stdout, &screen))
    };
    let (done, is_done) = oneshot::channel();
    {
        let screen = Arc::clone(&screen);
        thread::spawn(move || {
            // Nobody listens after a signal, and then nobody needs to know.
            let _ = done.send(wait_started(&screen).and_then(|has_started| {
                if has_started {
                    misbehave(&pair, &screen)
                } else {
                    Ok(())
                }
            }));
        });
    }
    let outcome = tokio::select! {
        result = is_done => Some(result.context("the demo's own thread ended early")?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if !lock(&screen).has_ended {
        // At a terminal Ctrl-C reaches conntracer too; a second signal would cut its totals short.
        if outcome.is_some() {
            conntracer.signal(Signal::INT)?;
        } else {
            conntracer.signal(Signal::TERM)?;
        }
    }
    let (status, _) = conntracer.wait(STOPPING)?;
    printer
        .join()
        .unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
    if status.code() == Some(CANNOT_TRACE) {
        return Ok(ExitCode::from(u8::try_from(CANNOT_TRACE)?));
    }
    let Some(result) = outcome else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    result?;
    ensure!(status.success(), "conntracer ended with {status}");
    eprintln!("demo: everything is removed");
    Ok(ExitCode::SUCCESS)
}

/// Lets go wrong what can, and waits until conntracer has said so.
fn misbehave(pair: &Pair, screen: &Shared) -> Result<()> {
    eprintln!("demo: a server stops accepting, and twenty clients connect");
    let mut full = AcceptQueueFull::within(pair.server.clone(), Family::V4);
    full.provoke()?;
    wait_for(screen, KINDS[0])?;
    // Twenty clients that try again and again would be most of the storm to come.
    full.quiet()?;

    eprintln!("demo: a peer vanishes while the server talks to it");
    let dead_address = Family::V4.veth_listener_on(DEAD_PEER_PORT);
    let mut dead = DeadPeer::across(pair.clone(), Family::V4, dead_address);
    dead.connect()?;
    dead.vanish()?;

    eprintln!("demo: a bulk transfer runs over a path that loses a tenth of its packets");
    let lossy_address = Family::V4.veth_listener_on(LOSSY_PORT);
    let mut lossy = LossyPath::across(pair.clone(), Family::V4, lossy_address);
    lossy.provoke(LOST_SEGMENTS)?;

    let reported = KINDS.iter().try_for_each(|kind| wait_for(screen, kind));
    eprintln!("demo: the path is mended; the server's kernel gives the vanished peer up");
    lossy.mend()?;
    dead.wait_given_up()?;
    dead.quiet()?;
    reported
}

/// Waits until conntracer has reported a finding of this kind.
fn wait_for(screen: &Shared, kind: &str) -> Result<()> {
    wait::until(&format!("conntracer to report {kind}"), SOON, || {
        let screen = lock(screen);
        ensure!(
            !screen.has_ended,
            "conntracer ended without reporting {kind}"
        );
        Ok(screen.kinds.contains(kind).then_some(()))
    })
}

/// Waits for conntracer's first words: false when it ended without any.
fn wait_started(screen: &Shared) -> Result<bool> {
    wait::until("conntracer to attach its hooks", STARTING, || {
        let screen = lock(screen);
        Ok((screen.has_started || screen.has_ended).then_some(screen.has_started))
    })
}

/// Copies what conntracer prints to the terminal, and takes note of it.
fn show(stdout: ChildStdout, screen: &Shared) -> Result<()> {
    let result = copy(stdout, screen);
    lock(screen).has_ended = true;
    result
}

fn copy(stdout: ChildStdout, screen: &Shared) -> Result<()> {
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    while lines
        .read_until(b'\n', &mut line)
        .context("reading from conntracer")?
        > 0
    {
        let mut terminal = std::io::stdout().lock();
        terminal
            .write_all(&line)
            .and_then(|()| terminal.flush())
            .context("writing")?;
        let text = String::from_utf8_lossy(&line);
        let mut screen = lock(screen);
        screen.has_started = true;
        screen.kinds.extend(found(&text));
        line.clear();
    }
    Ok(())
}

/// The finding that a line tells of: it begins with time, severity, id and kind.
fn found(line: &str) -> Option<&'static str> {
    let words: Vec<&str> = line.split_whitespace().take(4).collect();
    let [_, _, id, kind] = words[..] else {
        return None;
    };
    let mut kinds = KINDS.into_iter();
    kinds.find(|known| id.starts_with('#') && *known == kind)
}

/// The lock guards plain flags: they are whole even after a panic elsewhere.
fn lock(screen: &Shared) -> MutexGuard<'_, Screen> {
    screen.lock().unwrap_or_else(PoisonError::into_inner)
}
