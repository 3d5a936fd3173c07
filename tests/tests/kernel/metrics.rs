//! Metrics over HTTP: what a scraper reads is what the lines say, whoever serves it has no privileges, and by Prometheus
//! and the rules of the package a fault is an alert.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
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

use crate::{
    programs::{Served, program},
    support::{begun, binary, is_syn_drop, trace},
};

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

/// The files that the package has for Prometheus.
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer/prometheus");

/// What a program says of its input, which it must like.
fn asked(program: &Path, arguments: &[&str], input: &str) -> Result<()> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(RULES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("starting it")?;
    child
        .stdin
        .take()
        .context("it has no input")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    ensure!(output.status.success(), "{arguments:?}: {}", said.concat());
    // A lint that it does not like is said, and no failure.
    ensure!(!said[1].contains("error"), "{arguments:?}: {}", said[1]);
    Ok(())
}

/// The body of the first request that has `word` in it, of somebody who is told `200` each time.
fn told(listener: &TcpListener, word: &str) -> Result<String> {
    listener.set_nonblocking(true)?;
    loop {
        let mut stream = wait::until("a request", EVENTUALLY, || match listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(SOON))?;
        let (mut request, mut some) = (Vec::new(), [0; 4096]);
        let body = loop {
            let read = stream.read(&mut some)?;
            ensure!(read > 0, "half a request");
            request.extend(&some[..read]);
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.context("a request without a length")? {
                break body.to_owned();
            }
        };
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        if body.contains(word) {
            return Ok(body);
        }
    }
}

/// A fault on a host reaches whoever is on call: by Prometheus, the rules of the package, and Alertmanager.
#[test]
fn a_fault_reaches_alertmanager_by_prometheus_within_half_a_minute() {
    const LIMIT: Duration = Duration::from_secs(30);
    let Some(binary) = binary() else { return };
    let (Some(prometheus), Some(promtool), Some(alertmanager)) = (
        program("CONNTRACER_PROMETHEUS"),
        program("CONNTRACER_PROMTOOL"),
        program("CONNTRACER_ALERTMANAGER"),
    ) else {
        return;
    };
    asked(&promtool, &["check", "rules", "conntracer.rules.yml"], "").unwrap();
    asked(
        &promtool,
        &["test", "rules", "conntracer.rules.test.yml"],
        "",
    )
    .unwrap();

    // All of it in a namespace of its own, where every port is free.
    let netns = NetNs::new().unwrap();
    let on_call = netns
        .run(|| Ok(TcpListener::bind("127.0.0.1:9100")?))
        .unwrap();
    let mut command = binary.run(&netns);
    command.args(["--metrics", "9752"]);
    netns.adopt(&mut command);
    let Some(mut tracer) = begun(Tracer::of(&mut command)) else {
        return;
    };
    let metrics = SocketAddr::from(([127, 0, 0, 1], 9752));
    let (_, text) = netns.run(|| get(metrics, "/metrics", "*/*")).unwrap();
    asked(&promtool, &["check", "metrics"], &text).unwrap();

    let pager = Served::start(Path::new("unshare"), &netns, |directory| {
        let config = directory.join("alertmanager.yml");
        fs::write(
            &config,
            "route: {receiver: pager, group_wait: 0s, group_interval: 1s}\n\
             receivers: [{name: pager, webhook_configs: [{url: 'http://127.0.0.1:9100/'}]}]\n",
        )?;
        // It looks for its templates there, and is unpacked elsewhere.
        let share = alertmanager
            .parent()
            .context("no directory")?
            .join("../share");
        let here = "mount --bind \"$0\" /usr/share && exec \"$@\"";
        let unshare = ["--mount", "sh", "-c", here].map(str::to_owned);
        let of = [share, alertmanager.clone()].map(|path| path.display().to_string());
        Ok([unshare.as_slice(), &of]
            .concat()
            .into_iter()
            .chain([
                format!("--config.file={}", config.display()),
                format!("--storage.path={}", directory.display()),
                "--web.listen-address=127.0.0.1:9093".to_owned(),
                "--cluster.listen-address=".to_owned(),
            ])
            .collect())
    })
    .unwrap();
    let scraper = Served::start(&prometheus, &netns, |directory| {
        let config = directory.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{RULES}/conntracer.rules.yml']\n\
             alerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:9093']}}]}}]}}\n\
             scrape_configs: [{{job_name: conntracer, static_configs: [{{targets: ['{metrics}']}}]}}]\n"
        );
        fs::write(&config, text)?;
        Ok(vec![
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", directory.display()),
            "--web.listen-address=127.0.0.1:9090".to_owned(),
        ])
    })
    .unwrap();
    let web = SocketAddr::from(([127, 0, 0, 1], 9090));
    let query = |expression: &str| {
        netns.run(|| get(web, &format!("/api/v1/query?query={expression}"), "*/*"))
    };
    wait::until("Prometheus to have scraped", EVENTUALLY, || {
        let answer = query("up").ok();
        Ok(answer
            .filter(|(_, body)| body.contains(",\"1\"]"))
            .map(drop))
    })
    .unwrap();

    let mut scenario = AcceptQueueFull::within(netns.clone(), Family::V4);
    scenario.provoke().unwrap();
    let since = Instant::now();
    let told = told(&on_call, "ConntracerAcceptQueueFull").unwrap();
    assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
    assert!(told.contains("\"status\":\"firing\""), "{told}");
    assert!(told.contains("\"instance\":\"127.0.0.1:9752\""), "{told}");
    drop((pager, scraper));
    tracer.checkpoint().unwrap();
    tracer.stop().unwrap();
}
