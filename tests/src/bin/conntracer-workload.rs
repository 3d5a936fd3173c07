//! The load that the cost of tracing is measured with: healthy loopback connections, as fast as
//! possible, in a network namespace of its own.
//!
//! Each connection is a request and an answer of one byte, closed by the client. Prints one JSON
//! object; run it in pairs, with and without conntracer, and compare `connections_per_second`.

#![expect(clippy::print_stdout, reason = "the result is the output")]

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use conntracer_tests::{family::Family, netns::NetNs, scenario::healthy, socket::listen};
use serde_json::json;

/// First port of the listeners, one a thread. Below the range the clients get theirs from.
const FIRST_PORT: u16 = 1025;

/// With TIME_WAIT for a second at least, this is how many connections a second one listener can
/// take: as many as there are.
const CLIENT_PORTS: &str = "2048 65535";

/// A client never has more than one connection open, so its listener never queues more.
const BACKLOG: i32 = 16;

/// Opens and closes healthy connections and says how fast.
#[derive(Debug, Parser)]
struct Arguments {
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

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let netns = NetNs::new()?;
    netns.set_sysctl("net/ipv4/ip_local_port_range", CLIENT_PORTS)?;
    netns.set_sysctl("net/ipv4/tcp_tw_reuse", "1")?;
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
                    scope.spawn(move || load(address, share))
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

/// `connections` of one client to one server.
fn load(address: SocketAddr, connections: u32) -> Result<()> {
    let listener = listen(Family::V4, address, BACKLOG)?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| healthy::serve(&listener, connections));
        (0..connections)
            .try_for_each(|_| healthy::ask(Family::V4, address))
            .context("as the client")?;
        serving
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
            .context("as the server")
    })
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default().as_secs_f64()
}
