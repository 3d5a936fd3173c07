//! The loads that the cost of tracing is measured with, in a network namespace of their own.
//!
//! By itself: healthy loopback connections, as fast as possible, each a request and an answer of one byte,
//! closed by the client. Prints one JSON object; run it in pairs, with and without conntracer, and compare
//! `connections_per_second`. With `count`: every load, untraced and traced, in instructions, for a VM whose
//! clock counts them (see [`count`]).

#![expect(clippy::print_stdout, reason = "the result is the output")]

mod count;
mod loads;
mod meter;
mod programs;
mod traced;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use conntracer_tests::family::Family;
use serde_json::json;

use crate::loads::FIRST_PORT;

/// Opens and closes healthy connections and says how fast.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Connections in all.
    #[arg(long, default_value_t = 100_000)]
    connections: u32,
    /// Clients, each with a server of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: u16,
    /// Print the namespace's inode first, and begin when standard input ends: a tracer can be started
    /// that traces nothing else.
    #[arg(long)]
    announce: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Count the instructions of every load where the clock counts them, untraced and traced.
    Count {
        /// The conntracer that traces.
        #[arg(long)]
        conntracer: PathBuf,
        /// How it attaches its hooks.
        #[arg(long)]
        hooks: String,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.verb {
        Some(Verb::Count { conntracer, hooks }) => count::count(&conntracer, &hooks),
        None => churn(&arguments),
    }
}

fn churn(arguments: &Arguments) -> Result<()> {
    let netns = loads::namespace()?;
    if arguments.announce {
        println!("{}", netns.inode());
        io::copy(&mut io::stdin(), &mut io::sink()).context("waiting for the end of stdin")?;
    }
    let share = arguments.connections / u32::from(arguments.threads);
    let cpu_before = cpu_seconds();
    let started = Instant::now();
    netns.run(|| {
        thread::scope(|scope| {
            let loads: Vec<_> = (0..arguments.threads)
                .map(|thread| {
                    let address = SocketAddr::new(Family::V4.loopback(), FIRST_PORT + thread);
                    scope.spawn(move || loads::ask(address, share))
                })
                .collect();
            loads.into_iter().try_for_each(|load| {
                load.join()
                    .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
            })
        })
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let connections = share * u32::from(arguments.threads);
    println!(
        "{}",
        json!({
            "netns": netns.inode(),
            "connections": connections,
            "threads": arguments.threads,
            "seconds": seconds,
            "connections_per_second": f64::from(connections) / seconds,
            "cpu_seconds": cpu_seconds() - cpu_before,
        })
    );
    Ok(())
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default().as_secs_f64()
}
