//! A server that people run, stuck under a load that people make: nginx with its workers stopped, and
//! ApacheBench.
//!
//! `CONNTRACER_NGINX` and `CONNTRACER_AB` name the two programs; without them this does not run.

use std::{
    env, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use conntracer_tests::{
    family::Family,
    line::{Finding, Status, Subject},
    netns::NetNs,
    process::Process,
    wait::{self, EVENTUALLY, SOON},
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{assert_said, assert_sound, binary, lacking, missed_of, trace};

const WORKERS: usize = 2;
/// What listen() is asked for; the queue takes one more.
const BACKLOG: u64 = 16;
/// Clients at once: more than the queue takes. A process each, because ab itself adds a client only when
/// an earlier one was answered.
const CLIENTS: usize = 40;
/// Requests of each.
const REQUESTS: u64 = 2;

/// Stopped workers: one finding that names nginx, the limit of its queue and the stall. They go on: every
/// request is answered, and the finding resolves.
#[test]
fn stopped_nginx_workers_are_one_accept_queue_full() {
    let Some(binary) = binary() else { return };
    let (Some(nginx), Some(ab)) = (program("CONNTRACER_NGINX"), program("CONNTRACER_AB")) else {
        return lacking("CONNTRACER_NGINX and CONNTRACER_AB do not name an nginx and an ab");
    };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = trace(&binary, &netns, &[]) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let nginx = Nginx::start(nginx, &netns, address).unwrap();
    nginx.signal_workers(Signal::STOP).unwrap();
    nginx.wait_stopped().unwrap();

    let mut load: Vec<Process> = (0..CLIENTS)
        .map(|_| bench(&ab, &netns, address).unwrap())
        .collect();
    let stuck = tracer
        .wait_for("a finding of the stall", SOON, |finding| {
            is_accept_queue_full(finding) && finding.summary.contains("nothing was accepted for")
        })
        .unwrap();

    nginx.signal_workers(Signal::CONT).unwrap();
    for client in &mut load {
        assert_answered(client);
    }
    tracer
        .wait_for("the end of the finding", EVENTUALLY, |finding| {
            finding.id == stuck.id && finding.status == Status::Resolved
        })
        .unwrap();
    let master = nginx.master();
    drop(nginx);
    let counted = netns.counters().unwrap();
    let run = tracer.stop().unwrap();

    let findings = run.last_of(is_accept_queue_full);
    let [finding] = findings[..] else {
        panic!("one listener, one finding: {run:#?}");
    };
    let owner = finding.owner.as_ref().expect("nginx made the listener");
    assert_eq!((owner.pid, &*owner.comm), (master, "nginx"), "{finding:#?}");
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: netns.inode(),
            local: address
        }
    );
    assert_eq!(stuck.number("max_ack_backlog"), BACKLOG, "{stuck:#?}");
    assert_eq!(stuck.number("peak_ack_backlog"), BACKLOG + 1, "{stuck:#?}");
    assert!(stuck.evidence["since_last_accept_s"].as_f64() >= Some(1.0));
    let refused_acks: u64 = run
        .last_of(|finding| finding.cause == "ack_overflow")
        .iter()
        .map(|finding| finding.number("third_acks_refused"))
        .sum();
    let told = finding.count + refused_acks;
    let missed = missed_of(&run, "ListenOverflows");
    assert!(
        (told..=told + missed).contains(&counted.listen_overflows),
        "{missed} missed: {run:#?}"
    );
    assert_said(&run, "syn_drop");
    assert_sound(&run, &netns);
}

fn bench(ab: &Path, netns: &NetNs, address: SocketAddr) -> Result<Process> {
    let mut command = Command::new(ab);
    command
        .args(["-n", &REQUESTS.to_string(), "-c", "1"])
        // Seconds of silence it puts up with.
        .args(["-s", "600"])
        .arg(format!("http://{address}/"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    netns.adopt(&mut command);
    Process::spawn(&mut command)
}

#[track_caller]
fn assert_answered(client: &mut Process) {
    let mut report = client.stdout().unwrap();
    let (status, stderr) = client.wait(EVENTUALLY).unwrap();
    let mut text = String::new();
    report.read_to_string(&mut text).unwrap();
    assert!(status.success(), "{status}: {stderr}\n{text}");
    let answered = text
        .lines()
        .find_map(|line| line.strip_prefix("Complete requests:"))
        .and_then(|number| number.trim().parse().ok());
    assert_eq!(answered, Some(REQUESTS), "{text}");
}

fn is_accept_queue_full(finding: &Finding) -> bool {
    finding.finding == "syn_drop" && finding.cause == "accept_queue_full"
}

fn program(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from)
}

/// An nginx in the foreground, everything it writes in a directory of its own. Ended when dropped.
pub(crate) struct Nginx {
    process: Process,
    workers: Vec<Pid>,
    _directory: TempDir,
}

impl Nginx {
    /// Starts it in `netns`, and waits until it answers.
    pub(crate) fn start(program: PathBuf, netns: &NetNs, address: SocketAddr) -> Result<Self> {
        Self::start_by(program, netns, address, "")
    }

    /// The same with a listener for each worker.
    pub(crate) fn start_reuseport(
        program: PathBuf,
        netns: &NetNs,
        address: SocketAddr,
    ) -> Result<Self> {
        Self::start_by(program, netns, address, " reuseport")
    }

    fn start_by(
        program: PathBuf,
        netns: &NetNs,
        address: SocketAddr,
        options: &str,
    ) -> Result<Self> {
        let directory = tempfile::tempdir().context("making a temporary directory")?;
        let path = directory.path();
        let config = path.join("nginx.conf");
        fs::write(
            &config,
            config_text(&path.display().to_string(), address, options),
        )?;
        let mut command = Command::new(program);
        command
            .arg("-p")
            .arg(path)
            .arg("-c")
            .arg(&config)
            .arg("-e")
            .arg(path.join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        netns.adopt(&mut command);
        let process = Process::spawn(&mut command)?;
        let mut nginx = Self {
            process,
            workers: Vec::new(),
            _directory: directory,
        };
        let master = nginx.master();
        nginx.workers = wait::until("nginx to start its workers", SOON, || {
            let workers = children(master)?;
            Ok((workers.len() == WORKERS).then_some(workers))
        })?;
        wait::until("nginx to answer", SOON, || {
            Ok(netns.run(|| ask(address)).ok())
        })?;
        Ok(nginx)
    }

    fn master(&self) -> u32 {
        self.process.pid().as_raw_nonzero().get().unsigned_abs()
    }

    pub(crate) fn signal_master(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    pub(crate) fn signal_workers(&self, signal: Signal) -> Result<()> {
        self.workers.iter().try_for_each(|worker| {
            kill_process(*worker, signal)
                .with_context(|| format!("sending {signal:?} to a worker of nginx"))
        })
    }

    pub(crate) fn wait_stopped(&self) -> Result<()> {
        wait::until("the workers of nginx to stop", SOON, || {
            let stopped = self.workers.iter().all(|worker| {
                let stat = fs::read_to_string(format!("/proc/{}/stat", worker.as_raw_nonzero()));
                stat.is_ok_and(|stat| stat.contains(") T "))
            });
            Ok(stopped.then_some(()))
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers, and those that are stopped would keep it waiting. Each fails only
        // where there is nothing left to end.
        let _ = self.signal_workers(Signal::CONT);
        let _ = self.process.signal(Signal::TERM);
        let _ = self.process.wait(SOON);
    }
}

fn config_text(directory: &str, address: SocketAddr, options: &str) -> String {
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {directory}/{name};\n"))
        .collect::<Vec<_>>()
        .concat();
    format!(
        "daemon off;\nuser root root;\nworker_processes {WORKERS};\npid {directory}/pid;\n\
         error_log {directory}/error.log;\nevents {{ worker_connections 512; }}\n\
         http {{\n  access_log off;\n{paths}  server {{\n    listen {address} backlog={BACKLOG}{options};\n    \
         location / {{ return 200 \"well\\n\"; }}\n  }}\n}}\n"
    )
}

/// The processes that `parent` started.
fn children(parent: u32) -> Result<Vec<Pid>> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    text.split_whitespace()
        .map(|pid| Pid::from_raw(pid.parse()?).context("a process id that is 0"))
        .collect()
}

/// One request, answered.
fn ask(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    anyhow::ensure!(answer.ends_with("well\n"), "nginx answers {answer:?}");
    Ok(())
}
