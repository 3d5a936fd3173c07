//! Servers and clients that people run, in trouble and in health: each fault is told by its cause and by the program's
//! name, and health by nothing.
//!
//! `CONNTRACER_REDIS`, `CONNTRACER_HAPROXY`, `CONNTRACER_IPERF3` and `CONNTRACER_NGINX` name the programs, and
//! `CONNTRACER_LIBRARIES` the directory of what they link to; a test whose program is missing skips.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::{Finding, Status},
    link::Pair,
    netfilter::{Hook, Match, drop_some_at},
    netns::NetNs,
    output::Run,
    process::Process,
    socket::{abort_on_close, connect_without_waiting, tcp},
    wait::{self, EVENTUALLY, SOON},
};
use rustix::process::Signal;
use socket2::Socket;
use tempfile::TempDir;

use crate::{
    nginx::Nginx,
    support::{assert_sound, binary, lacking, trace, trace_by},
};

/// Findings end soon after their trouble, so that ends can be waited for.
const QUICK: &str = "[detect.syn_drop]\nquiet_s = 1\n[detect.connect_failure]\nquiet_s = 2\n\
                     [detect.connection_drop]\nquiet_s = 2\n";

/// A program under test, ended with its value; what it writes goes to a directory of its own.
struct Served {
    process: Process,
    directory: TempDir,
}

impl Served {
    /// Starts it in `netns`; `arguments` are made of its directory.
    fn start(
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
fn program(variable: &str) -> Option<PathBuf> {
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
fn ask(address: SocketAddr, request: &str, end: &str) -> Result<String> {
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

/// redis works on one command for six seconds, and accepts nobody meanwhile. It is healthy before and afterwards: more
/// workers, which redis does not have, are no remedy at any time.
#[test]
fn a_blocked_redis_is_why_its_queue_is_full() {
    const CLIENTS: usize = 16;
    let Some(binary) = binary() else { return };
    let Some(redis) = program("CONNTRACER_REDIS") else {
        return;
    };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = trace_by(&binary, &netns, QUICK, &[]) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let redis = Served::start(&redis, &netns, |_| {
        let text = format!(
            "--bind 127.0.0.1 --port {SERVER_PORT} --tcp-backlog 4 --save --appendonly no \
             --enable-debug-command yes"
        );
        Ok(text.split(' ').map(str::to_owned).collect())
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
    let run = tracer.stop().unwrap();

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
    let Some(mut tracer) = trace_by(&binary, &netns, QUICK, &[]) else {
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
    let run = tracer.stop().unwrap();

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

/// Transfers over a path that loses one packet of a thousand, as many do: nothing to wake anybody for.
#[test]
fn a_transfer_with_little_loss_is_quiet() {
    let Some(binary) = binary() else { return };
    let Some(iperf3) = program("CONNTRACER_IPERF3") else {
        return;
    };
    let pair = Pair::new().unwrap();
    let Some(tracer) = trace(&binary, &pair.client, &[]) else {
        return;
    };
    let server = pair.server.clone();
    server
        .run(|| drop_some_at(Hook::Input, Match::PerMille(1)))
        .unwrap();
    let words =
        |text: &str| -> Result<Vec<String>> { Ok(text.split(' ').map(str::to_owned).collect()) };
    let port = SERVER_PORT.to_string();
    let _serving = Served::start(&iperf3, &server, |_| words(&format!("-s -1 -p {port}"))).unwrap();
    let address: IpAddr = Family::V4.server();
    wait::until("iperf3 to listen", SOON, || {
        let listening = server.run(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp6")?))?;
        Ok(listening
            .contains(&format!(":{SERVER_PORT:04X} "))
            .then_some(()))
    })
    .unwrap();
    let before = pair.client.counters().unwrap();
    // As fast as many a line is: a veth pair alone carries more than a test should.
    let mut sending = Served::start(&iperf3, &pair.client, |_| {
        words(&format!("-c {address} -p {port} -t 6 -P 2 -b 60M"))
    })
    .unwrap();
    let (status, stderr) = sending.process.wait(EVENTUALLY).unwrap();
    assert!(status.success(), "{status}: {stderr}");
    let counted = pair.client.counters().unwrap() - before;
    assert!(counted.retrans_segs > 0, "something was lost: {counted:?}");
    let run = tracer.stop().unwrap();
    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &pair.client);
}

/// nginx reloads under load, and a balancer asks it every now and then whether it lives, by a handshake that a RST ends:
/// nobody is to be woken.
#[test]
fn reloads_and_health_checks_are_quiet() {
    const ROUNDS: usize = 30;
    let Some(binary) = binary() else { return };
    let Some(nginx) = program("CONNTRACER_NGINX") else {
        return;
    };
    let netns = NetNs::new().unwrap();
    let Some(tracer) = trace(&binary, &netns, &[]) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let nginx = Nginx::start(nginx, &netns, address).unwrap();
    for round in 0..ROUNDS {
        if round % 10 == 5 {
            nginx.signal_master(Signal::HUP).unwrap();
        }
        netns
            .run(|| {
                for _ in 0..10 {
                    ask(address, "GET / HTTP/1.0\r\n\r\n", "well")?;
                }
                let check = tcp(Family::V4)?;
                check.connect(&address.into())?;
                abort_on_close(&check)
            })
            .unwrap();
    }
    drop(nginx);
    let run = tracer.stop().unwrap();
    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &netns);
}
