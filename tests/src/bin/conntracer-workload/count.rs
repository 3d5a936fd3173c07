//! `count`: the instructions of every load, untraced and traced, in one boot of a VM.
//!
//! The VM's clock goes by instructions, one a nanosecond (QEMU's `-icount shift=0`), and it has one CPU: the time
//! that a load takes is the number of instructions that the machine executed meanwhile. Each figure is a line on
//! standard output; what is made of them is the caller's:
//!
//! ```text
//! cost untraced LOAD UNITS INSTRUCTIONS
//! cost traced LOAD UNITS INSTRUCTIONS INSTRUCTIONS-OF-USER-SPACE
//! cost program LOAD UNITS NAME RUNS INSTRUCTIONS
//! ```
//!
//! A unit of a load is a connection, an attempt, a retransmitted segment or a streamed line. What conntracer does in
//! user space meanwhile is told apart: it follows the time and the findings, not the units.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use conntracer_tests::{
    family::Family,
    netns::NetNs,
    scenario::short_lives::{Close, LISTENER_CHANGES},
    wait::{self, EVENTUALLY},
};

use crate::{
    loads::{self, Done, FIRST_PORT},
    meter::Meter,
    programs,
    traced::Tracer,
};

/// Repetitions of each load, after one that warms up and does not count.
const ROUNDS: u32 = 5;

/// A load: its name, and how often it happens in a round.
struct Load {
    name: &'static str,
    size: u32,
    act: fn(Meter<'_>, SocketAddr, u32) -> Result<Done>,
    /// Its listener's, so that no connection of one meets what another left in TIME_WAIT.
    port: u16,
}

const CONNECTION: Load = Load {
    name: "connection",
    size: 1000,
    act: loads::connect,
    port: FIRST_PORT,
};

const LOADS: [Load; 3] = [
    CONNECTION,
    Load {
        name: "overflow",
        size: 2000,
        act: loads::overflow,
        port: FIRST_PORT + 1,
    },
    Load {
        name: "retransmit",
        size: 20,
        act: loads::retransmit,
        port: FIRST_PORT + 2,
    },
];

/// The same connections where every change of state is streamed: a unit is a line.
const LINE: Load = Load {
    name: "line",
    act: |meter, address, connections| {
        let done = loads::connect(meter, address, connections)?;
        Ok(Done {
            units: lines(connections),
            ..done
        })
    },
    ..CONNECTION
};

/// State changes of so many connections and their listener.
const fn lines(connections: u32) -> u64 {
    connections as u64 * Close::Fin.changes().len() as u64 + LISTENER_CHANGES.len() as u64
}

impl Load {
    fn run(&self, netns: &NetNs, tracer: Option<&Tracer>) -> Result<Done> {
        let address = SocketAddr::new(Family::V4.loopback(), self.port);
        netns
            .run(|| (self.act)(Meter(tracer), address, self.size))
            .with_context(|| format!("load {}", self.name))
    }
}

pub(crate) fn count(conntracer: &Path, hooks: &str) -> Result<()> {
    let netns = loads::namespace()?;
    // A sender that is kept from its CPU for two ticks, as by a conntracer that has a finding to tell, would send a tail
    // loss probe (tcp_schedule_loss_probe): a segment more than were lost.
    netns.set_sysctl("net/ipv4/tcp_early_retrans", "0")?;
    for load in LOADS.into_iter().chain([LINE]) {
        load.run(&netns, None)?;
        for _ in 0..ROUNDS {
            let Done { units, spent } = load.run(&netns, None)?;
            println!("cost untraced {} {units} {}", load.name, spent.load);
        }
    }
    wait_forgotten(&netns)?;
    let tracer = Tracer::start(conntracer, &["--hooks", hooks])?;
    for load in LOADS {
        load.run(&netns, Some(&tracer))?;
        for _ in 0..ROUNDS {
            say_traced(&load, load.run(&netns, Some(&tracer))?);
        }
    }
    programs::count(true)?;
    for load in LOADS {
        count_programs(&netns, &load)?;
    }
    programs::count(false)?;
    tracer.stop()?;

    wait_forgotten(&netns)?;
    let mut tracer = Tracer::start(conntracer, &["--hooks", hooks, "--emit", "state"])?;
    stream(&netns, &mut tracer)?;
    programs::count(true)?;
    count_programs(&netns, &LINE)?;
    programs::count(false)?;
    let written = tracer.stop()?.states;
    // The rounds, one before them, and that of the programs.
    let changed = u64::from(ROUNDS + 2) * lines(LINE.size);
    ensure!(
        written == changed,
        "{written} lines of {changed} changes of state"
    );
    Ok(())
}

/// Waits until nothing is left of the connections before: what is in TIME_WAIT lengthens the kernel's lists.
fn wait_forgotten(netns: &NetNs) -> Result<()> {
    wait::until("TIME_WAIT to end", EVENTUALLY, || {
        let sockstat = netns.run(|| {
            fs::read_to_string("/proc/thread-self/net/sockstat").context("reading sockstat")
        })?;
        let left = in_time_wait(&sockstat).context("sockstat says nothing of TIME_WAIT")?;
        Ok((left == 0).then_some(()))
    })
}

/// Sockets in TIME_WAIT, by a line such as `TCP: inuse 2 orphan 0 tw 3 alloc 4 mem 1`.
fn in_time_wait(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find(|line| line.starts_with("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == "tw")?;
    words.next()?.parse().ok()
}

/// The instructions of each program. Counting takes some 65 of each run itself.
fn count_programs(netns: &NetNs, load: &Load) -> Result<()> {
    let before = programs::read()?;
    let done = load.run(netns, None)?;
    for (name, ran) in programs::between(&before, programs::read()?) {
        println!(
            "cost program {} {} {name} {} {}",
            load.name, done.units, ran.runs, ran.ns
        );
    }
    Ok(())
}

/// Streams connections; user space counts until every line is written.
fn stream(netns: &NetNs, tracer: &mut Tracer) -> Result<()> {
    let mut expected = 0;
    for round in 0..=ROUNDS {
        let before = tracer.cpu_ns()?;
        let mut done = LINE.run(netns, Some(tracer))?;
        expected += done.units;
        wait::until("all lines to be written", EVENTUALLY, || {
            Ok((tracer.written()?.states >= expected).then_some(()))
        })?;
        done.spent.user = tracer.cpu_ns()?.saturating_sub(before);
        if round > 0 {
            say_traced(&LINE, done);
        }
    }
    Ok(())
}

fn say_traced(load: &Load, Done { units, spent }: Done) {
    println!(
        "cost traced {} {units} {} {}",
        load.name, spent.load, spent.user
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_in_time_wait_are_counted_by_the_kernel() {
        let text =
            "sockets: used 9\nTCP: inuse 2 orphan 0 tw 31 alloc 4 mem 1\nUDP: inuse 0 mem 0\n";
        assert_eq!(in_time_wait(text), Some(31));
        assert_eq!(in_time_wait("UDP: inuse 0\n"), None);
    }

    #[test]
    fn a_connection_closed_by_fin_is_ten_lines_and_its_listener_two() {
        assert_eq!(lines(100), 1002);
    }
}
