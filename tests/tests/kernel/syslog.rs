//! Findings in rsyslog: each field as it reads it, by UDP and by both framings of TCP, and across a restart of it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::Finding,
    netns::NetNs,
    socket::{connect_without_waiting, tcp, wait_error},
    tracer::Tracer,
    wait::{self, EVENTUALLY, SOON},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    programs::{Served, program},
    support::{begun, binary},
};

const PORT: u16 = 5514;

/// What it wrote of each message: how it came, and what it read.
#[derive(Debug)]
struct Message {
    input: String,
    severity: String,
    app: String,
    process: String,
    id: String,
    data: Value,
    text: String,
}

impl Message {
    fn parse(line: &str) -> Result<Self> {
        let (head, text) = line.split_once('|').context("no message")?;
        let mut words = head.splitn(6, ' ').map(str::to_owned);
        let mut word = || words.next().context("too few fields");
        Ok(Self {
            input: word()?,
            severity: word()?,
            app: word()?,
            process: word()?,
            id: word()?,
            data: serde_json::from_str(&word()?).unwrap_or_default(),
            text: text.trim_start_matches('\u{feff}').to_owned(),
        })
    }
}

/// rsyslog in `netns`, which appends what it reads to `log`.
fn rsyslog(program: &Path, netns: &NetNs, log: &Path) -> Served {
    Served::start(program, netns, |directory| {
        let config = directory.join("rsyslog.conf");
        let text = format!(
            "module(load=\"imudp\")\nmodule(load=\"imtcp\")\nmodule(load=\"mmpstrucdata\")\n\
             template(name=\"read\" type=\"list\") {{\n property(name=\"inputname\") constant(value=\" \")\n \
             property(name=\"syslogseverity-text\") constant(value=\" \") property(name=\"app-name\") constant(value=\" \")\n \
             property(name=\"procid\") constant(value=\" \") property(name=\"msgid\") constant(value=\" \")\n \
             property(name=\"$!rfc5424-sd\") constant(value=\"|\") property(name=\"msg\") constant(value=\"\\n\")\n}}\n\
             action(type=\"mmpstrucdata\")\naction(type=\"omfile\" file=\"{}\" template=\"read\")\n\
             input(type=\"imudp\" address=\"127.0.0.1\" port=\"{PORT}\" name=\"udp\")\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{PORT}\" name=\"tcp\")\n",
            log.display()
        );
        fs::write(&config, text)?;
        let modules = env::var("CONNTRACER_LIBRARIES").unwrap_or_default();
        let pid = directory.join("pid");
        Ok([
            "-n",
            "-f",
            &config.display().to_string(),
            "-i",
            &pid.display().to_string(),
            "-M",
            &format!("{modules}/rsyslog:/usr/lib/x86_64-linux-gnu/rsyslog"),
        ]
        .map(str::to_owned)
        .to_vec())
    })
    .unwrap()
}

/// What came by `input` of findings whose cause is `cause`.
fn came(log: &Path, input: &str, cause: &str) -> Result<Vec<Message>> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let mut messages = Vec::new();
    for line in text.lines() {
        let message = Message::parse(line)?;
        let is_it = message.data["conntracer@32473"]["cause"] == *cause;
        if message.input == input && is_it {
            messages.push(message);
        }
    }
    Ok(messages)
}

/// So many attempts at a port where nobody listens.
fn refused(netns: &NetNs, port: u16) {
    for _ in 0..10 {
        let socket = netns
            .run(|| {
                let socket = tcp(Family::V4)?;
                connect_without_waiting(&socket, ([127, 0, 0, 1], port).into())?;
                Ok(socket)
            })
            .unwrap();
        wait_error(&socket, SOON).unwrap();
    }
}

#[test]
fn rsyslog_reads_every_field_and_what_came_while_it_was_away() {
    let Some(binary) = binary() else { return };
    let Some(rsyslogd) = program("CONNTRACER_RSYSLOG") else {
        return;
    };
    let netns = NetNs::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (log, config): (PathBuf, PathBuf) = (
        directory.path().join("log"),
        directory.path().join("conntracer.toml"),
    );
    let mut receiver = rsyslog(&rsyslogd, &netns, &log);
    let to = ["udp", "tcp", "tcp-lines"];
    let outputs = to.map(|to| format!("[[output.also]]\nto = \"syslog:{to}:127.0.0.1:{PORT}\"\n"));
    fs::write(&config, outputs.concat()).unwrap();
    let mut command = binary.run(&netns);
    command.arg("--config").arg(&config);
    netns.adopt(&mut command);
    let Some(mut tracer) = begun(Tracer::of(&mut command)) else {
        return;
    };
    refused(&netns, SERVER_PORT);
    let is_refused = |finding: &Finding| finding.cause == "no_listener";
    let told = tracer
        .wait_for("the finding", EVENTUALLY, is_refused)
        .unwrap();
    // The same by each: two of them by TCP.
    for (input, times) in [("udp", 1), ("tcp", 2)] {
        let messages = wait::until("rsyslog to have it", SOON, || {
            let messages = came(&log, input, "no_listener")?;
            let opened = messages
                .into_iter()
                .filter(|message| message.data["conntracer@32473"]["status"] == "open");
            let opened: Vec<_> = opened.collect();
            Ok((opened.len() == times).then_some(opened))
        })
        .unwrap();
        for message in messages {
            let expected = json!({"conntracer@32473": {
                "finding": "syn_drop",
                "cause": "no_listener",
                "status": "open",
                "severity": "warning",
                "id": told.id.to_string(),
                "incident": told.incident.to_string(),
                "count": told.count.to_string(),
                "scope": "listener",
                "local": format!("127.0.0.1:{SERVER_PORT}"),
                "netns": netns.inode().to_string(),
            }});
            assert_eq!(message.data, expected, "{message:?}");
            assert_eq!(message.severity, "warning", "{message:?}");
            assert_eq!(message.app, "conntracer", "{message:?}");
            assert_eq!(
                message.process,
                tracer.pid().as_raw_nonzero().to_string(),
                "{message:?}"
            );
            assert_eq!(message.id, "syn_drop", "{message:?}");
            let text = format!("syn_drop no_listener open: {}", told.summary);
            assert_eq!(message.text, text, "{message:?}");
        }
    }

    // Killed, and another finding meanwhile: by TCP it waits for the receiver.
    receiver.process.signal(Signal::KILL).unwrap();
    receiver.process.wait(SOON).unwrap();
    fs::remove_file(&log).unwrap();
    let other = SERVER_PORT + 1;
    refused(&netns, other);
    let local = format!("127.0.0.1:{other}");
    let is_other = |finding: &Finding| is_refused(finding) && finding.summary.contains(&local);
    tracer
        .wait_for("the other finding", EVENTUALLY, is_other)
        .unwrap();
    let _again = rsyslog(&rsyslogd, &netns, &log);
    wait::until("what came meanwhile", EVENTUALLY, || {
        let messages = came(&log, "tcp", "no_listener")?;
        let opened = messages.iter().filter(|message| {
            let data = &message.data["conntracer@32473"];
            data["status"] == "open" && data["local"] == *local
        });
        Ok((opened.count() == 2).then_some(()))
    })
    .unwrap();
    tracer.stop().unwrap();
    // What is said last is read by now, too: the processes that sent it have ended.
    wait::until("the end", Duration::from_secs(10), || {
        let text = fs::read_to_string(&log)?;
        let ends = text.lines().filter(|line| line.contains(" stop "));
        Ok((ends.count() == to.len()).then_some(()))
    })
    .unwrap();
}
