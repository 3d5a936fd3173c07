//! Metrics over HTTP: what a scraper reads is what the lines say, and whoever serves it has no privileges.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use conntracer_tests::{
    family::Family,
    netns::NetNs,
    proc_net,
    scenario::accept_queue::AcceptQueueFull,
    tracer::Tracer,
    wait::{self, EVENTUALLY, SOON},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{binary, is_syn_drop, trace};

/// The process that serves what `tracer` tells, and where.
fn server(tracer: &Tracer) -> Result<(Pid, SocketAddr)> {
    const LISTEN: u8 = 10;
    let parent = tracer.pid().as_raw_nonzero();
    let mut children = String::new();
    for task in fs::read_dir(format!("/proc/{parent}/task"))? {
        children += &fs::read_to_string(task?.path().join("children"))?;
    }
    let child = children.split_whitespace().next().context("no child")?;
    let held = proc_net::held(child.parse()?)?;
    let sockets = proc_net::sockets()?;
    let listener = sockets
        .iter()
        .find(|socket| socket.state == LISTEN && held.contains(&socket.inode))
        .context("it does not listen")?;
    Ok((
        Pid::from_raw(child.parse()?).context("a process id that is 0")?,
        listener.local,
    ))
}

/// The head of an answer and its body.
fn get(address: SocketAddr, path: &str, accept: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.0\r\nAccept: {accept}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Every series, by its name and labels as they are written.
fn series(text: &str) -> Result<BTreeMap<String, f64>> {
    let mut series = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').context("a line without a value")?;
        let before = series.insert(name.to_owned(), value.parse()?);
        ensure!(before.is_none(), "{name} stands there twice");
    }
    Ok(series)
}

fn scrape(address: SocketAddr) -> Result<BTreeMap<String, f64>> {
    let (head, body) = get(address, "/metrics", "*/*")?;
    ensure!(head.starts_with("HTTP/1.0 200"), "{head}");
    series(&body)
}

const OPEN: &str = r#"conntracer_findings_open{finding="syn_drop",cause="accept_queue_full"}"#;
const EVENTS: &str =
    r#"conntracer_finding_events_total{finding="syn_drop",cause="accept_queue_full"}"#;

#[test]
#[expect(clippy::float_cmp, reason = "counts below 2^53 are exact")]
fn a_scraper_reads_what_the_lines_say_from_a_process_without_privileges() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = trace(&binary, &netns, &["--metrics", "0"]) else {
        return;
    };
    let (pid, address) = server(&tracer).unwrap();
    assert!(address.ip().is_loopback(), "{address}");
    let before = scrape(address).unwrap();
    assert_eq!((before[OPEN], before[EVENTS]), (0.0, 0.0));
    assert!(before.len() < 500, "{} series", before.len());

    let mut scenario = AcceptQueueFull::within(netns, Family::V4);
    scenario.provoke().unwrap();
    tracer
        .wait_for("the finding", EVENTUALLY, is_syn_drop)
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    let findings = run.last_of(is_syn_drop);
    let [finding] = findings[..] else {
        panic!("{findings:#?}")
    };
    // What the tracer wrote to its pipes at one time is not read at one time.
    let now = wait::until("the last line to be read", SOON, || {
        let now = scrape(address)?;
        Ok((now[r#"conntracer_hook_seen_total{hook="syn"}"#] > 0.0).then_some(now))
    })
    .unwrap();
    assert_eq!(now[OPEN], 1.0);
    #[expect(clippy::cast_precision_loss, reason = "a float is what is served")]
    let number = |count: u64| count as f64;
    assert_eq!(now[EVENTS], number(finding.count), "{finding:#?}");
    for (hook, account) in &run.totals.hooks {
        let of = |what| now[&format!("conntracer_hook_{what}_total{{hook=\"{hook}\"}}")];
        assert_eq!(of("seen"), number(account.seen), "{hook}");
        assert_eq!(of("lost"), number(account.lost), "{hook}");
    }
    assert!(now["process_cpu_seconds_total"] > 0.0);
    let (head, body) = get(address, "/metrics", "application/openmetrics-text").unwrap();
    assert!(head.contains("application/openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"));
    assert_eq!(series(&body).unwrap().len(), now.len());
    let (head, _) = get(address, "/", "*/*").unwrap();
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    let (head, _) = get(address, "/other", "*/*").unwrap();
    assert!(head.starts_with("HTTP/1.0 404"), "{head}");

    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "Groups:\t ",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.lines().any(|said| said == line), "{line}: {status}");
    }
    let run = tracer.stop().unwrap();
    assert!(!run.last_of(is_syn_drop).is_empty());
    assert!(TcpStream::connect(address).is_err(), "it ended, too");
}

#[test]
fn metrics_that_are_killed_end_no_tracing() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = trace(&binary, &netns, &["--metrics", "0"]) else {
        return;
    };
    let (pid, _) = server(&tracer).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let mut scenario = AcceptQueueFull::within(netns, Family::V4);
    scenario.provoke().unwrap();
    tracer
        .wait_for("the finding", EVENTUALLY, is_syn_drop)
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    assert_eq!(run.last_of(is_syn_drop).len(), 1);
    // Whoever runs it is told in the end, too.
    let said = format!("{:#}", tracer.stop().unwrap_err());
    assert!(said.contains("its process ended with signal: 9"), "{said}");
    assert!(said.contains("metrics:0"), "{said}");
}
