//! Servers and clients that people run, in trouble and in health: each fault is told by its cause and by the program's
//! name, and health by nothing.
//!
//! `CONNTRACER_REDIS`, `CONNTRACER_HAPROXY`, `CONNTRACER_IPERF3` and `CONNTRACER_NGINX` name the programs, and
//! `CONNTRACER_LIBRARIES` the directory of what they link to; a test whose program is missing skips.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::{Finding, Status},
    link::Pair,
    netns::NetNs,
    output::Run,
    process::Process,
    socket::{connect_without_waiting, tcp},
    wait::{self, EVENTUALLY, SOON},
};
use socket2::Socket;
use tempfile::TempDir;

use crate::support::{assert_sound, binary, lacking, watch, watch_quick};

/// A program under test, ended with its value; what it writes goes to a directory of its own.
pub(crate) struct Served {
    pub(crate) process: Process,
    directory: TempDir,
}

impl Served {
    /// Starts it in `netns`; `arguments` are made of its directory.
    pub(crate) fn start(
        program: &Path,
        netns: &NetNs,
        arguments: impl FnOnce(&Path) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let directory = tempfile::tempdir().context("making a temporary directory")?;
        let mut command = Command::new(program);
        command
            .args(arguments(directory.path())?)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(libraries) = env::var_os("CONNTRACER_LIBRARIES") {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        netns.adopt(&mut command);
        Ok(Self {
            process: Process::spawn(&mut command)?,
            directory,
        })
    }

    fn pid(&self) -> u32 {
        self.process.pid().as_raw_nonzero().get().unsigned_abs()
    }
}

/// The program that a variable names; a test without it has skipped.
#[track_caller]
pub(crate) fn program(variable: &str) -> Option<PathBuf> {
    let program = env::var_os(variable).map(PathBuf::from);
    if program.is_none() {
        lacking(&format!("{variable} names no program"));
    }
    program
}

/// The first and the last line of the one finding.
fn first_and_last(run: &Run, is: impl Fn(&Finding) -> bool) -> (&Finding, &Finding) {
    let all: Vec<&Finding> = run.findings().filter(|finding| is(finding)).collect();
    let [first, .., last] = all[..] else {
        panic!("no finding that opened and ended: {run:#?}");
    };
    assert!(all.iter().all(|finding| finding.id == first.id), "{all:#?}");
    assert_eq!(first.status, Status::Open, "{first:#?}");
    assert_eq!(last.status, Status::Resolved, "{last:#?}");
    assert_eq!(
        first.cause, last.cause,
        "the cause that held while it was open"
    );
    (first, last)
}

#[track_caller]
fn assert_names(finding: &Finding, pid: u32, name: &str) {
    let owner = finding.owner.as_ref().expect("a program with a name");
    assert_eq!((owner.pid, &*owner.comm), (pid, name), "{finding:#?}");
}

/// What must not be said, whatever else is.
#[track_caller]
fn assert_never(finding: &Finding, untrue: &[&str]) {
    let said = [&finding.summary]
        .into_iter()
        .chain(&finding.advice)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("\n");
    for words in untrue {
        assert!(!said.contains(words), "{words:?}: {finding:#?}");
    }
}

/// A request of one line, and what is answered until `end`.
pub(crate) fn ask(address: SocketAddr, request: &str, end: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut some = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains(end) {
        let read = stream.read(&mut some)?;
        ensure!(
            read > 0,
            "it ended after {:?}",
            String::from_utf8_lossy(&answer)
        );
        answer.extend(some.iter().take(read));
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The words of a command line.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Whether something listens on the servers' port.
pub(crate) fn is_listening(netns: &NetNs) -> Result<Option<()>> {
    let listening = netns.run(|| {
        let read = |path| fs::read_to_string(path).with_context(|| format!("reading {path}"));
        Ok(read("/proc/thread-self/net/tcp")? + &read("/proc/thread-self/net/tcp6")?)
    })?;
    // Local address, remote address, state 0A.
    let is_listener = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().unwrap_or_default();
        local.ends_with(&format!(":{SERVER_PORT:04X}")) && words.nth(1) == Some("0A")
    };
    Ok(listening.lines().any(is_listener).then_some(()))
}

/// redis works on one command for six seconds, and accepts nobody meanwhile. It is healthy before and afterwards: more
/// workers, which redis does not have, are no remedy at any time. By the usual times: the SYNs come again after two seconds
/// and more, and are of the same finding.
#[test]
fn a_blocked_redis_is_why_its_queue_is_full() {
    const CLIENTS: usize = 16;
    let Some(binary) = binary() else { return };
    let Some(redis) = program("CONNTRACER_REDIS") else {
        return;
    };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let redis = Served::start(&redis, &netns, |_| {
        let text = format!(
            "--bind 127.0.0.1 --port {SERVER_PORT} --tcp-backlog 4 --save --appendonly no \
             --enable-debug-command yes"
        );
        Ok(words(&text))
    })
    .unwrap();
    wait::until("redis to answer", SOON, || {
        Ok(netns.run(|| ask(address, "PING\r\n", "PONG")).ok())
    })
    .unwrap();

    let mut blocking = netns.run(|| Ok(TcpStream::connect(address)?)).unwrap();
    blocking.write_all(b"DEBUG SLEEP 6\r\n").unwrap();
    let clients: Vec<Socket> = netns
        .run(|| {
            (0..CLIENTS)
                .map(|_| {
                    let client = tcp(Family::V4)?;
                    connect_without_waiting(&client, address)?;
                    Ok(client)
                })
                .collect()
        })
        .unwrap();
    let is_queue =
        |finding: &Finding| finding.finding == "syn_drop" && finding.cause == "accept_queue_full";
    tracer
        .wait_for("a finding of the queue", SOON, is_queue)
        .unwrap();
    let over = |finding: &Finding| is_queue(finding) && finding.status == Status::Resolved;
    tracer
        .wait_for("the end of the finding", EVENTUALLY, over)
        .unwrap();
    drop(clients);
    let run = tracer.checkpoint().unwrap();

    let (first, last) = first_and_last(&run, is_queue);
    for finding in [first, last] {
        assert_names(finding, redis.pid(), "redis-server");
        assert_never(finding, &["more workers"]);
    }
    assert_sound(&run, &netns);
}

/// A proxy whose backend is gone: it gives up, asks again, and answers 503. The finding is the proxy's, about the backend,
/// and claims nothing of what it cannot know.
#[test]
fn a_proxy_gives_up_on_a_dead_backend() {
    let Some(binary) = binary() else { return };
    let Some(haproxy) = program("CONNTRACER_HAPROXY") else {
        return;
    };
    let pair = Pair::new().unwrap();
    let netns = pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &netns, &[]) else {
        return;
    };
    let front = Family::V4.loopback_listener();
    let backend = SocketAddr::new(Family::V4.ghost(), SERVER_PORT);
    let haproxy = Served::start(&haproxy, &netns, |directory| {
        let path = directory.join("haproxy.cfg");
        let text = format!(
            "defaults\n mode http\n timeout connect 1200ms\n timeout client 60s\n timeout server 60s\n retries 1\n\
             frontend front\n bind {front}\n default_backend back\nbackend back\n server one {backend}\n"
        );
        fs::write(&path, text)?;
        Ok(vec!["-db".to_owned(), "-f".to_owned(), path.display().to_string()])
    })
    .unwrap();
    let asked = || netns.run(|| ask(front, "GET / HTTP/1.0\r\n\r\n", "</html>"));
    let answer = wait::until("haproxy to answer", EVENTUALLY, || Ok(asked().ok())).unwrap();
    assert!(answer.contains("503"), "{answer}");
    // This test's own attempts came before haproxy listened.
    let is_failure = |finding: &Finding| {
        finding.finding == "connect_failure"
            && finding
                .owner
                .as_ref()
                .is_some_and(|owner| owner.comm == "haproxy")
    };
    let over = |finding: &Finding| is_failure(finding) && finding.status == Status::Resolved;
    tracer
        .wait_for("the end of the finding", EVENTUALLY, over)
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    let (first, last) = first_and_last(&run, is_failure);
    for finding in [first, last] {
        assert_names(finding, haproxy.pid(), "haproxy");
        assert_eq!(finding.cause, "cancelled", "{finding:#?}");
        assert!(
            finding.summary.contains(&backend.to_string()),
            "{finding:#?}"
        );
        // Nobody has answered, whose queue could be full.
        assert_never(finding, &["refused", "its accept queue is full"]);
    }
    assert_sound(&run, &netns);
    drop(haproxy.directory);
}
