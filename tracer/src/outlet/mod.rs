//! What talks to a network: a process of its own, without privileges, which is fed conntracer's JSON lines by a pipe and
//! ends when they do.
//!
//! `conntracer outlet TO`, which nobody types: [`crate::sink::destination`] starts it before anything is attached, and
//! waits for its first line of output, which is [`READY`] or why it cannot serve.

mod confine;
mod lines;
mod metrics;

use std::io::{self, Write as _};

use anyhow::bail;
use rustix::thread::set_name;

use crate::sink::destination::{METRICS, READY};

/// Runs one until its input ends; false where it said why it cannot.
pub(crate) fn outlet(to: &str) -> anyhow::Result<bool> {
    let (word, rest) = to.split_once(':').unwrap_or((to, ""));
    let prepared = match word {
        METRICS => metrics::Server::bind(rest),
        _ => bail!("no process is called `{word}`"),
    };
    let prepared = prepared.and_then(|server| {
        confine::confine()?;
        Ok(server)
    });
    // Otherwise it is called what it was started by: "exe".
    if let Err(error) = set_name(c"conntracer-out") {
        log::debug!("naming itself: {error}");
    }
    match prepared {
        Ok(server) => {
            tell(READY)?;
            server.serve()?;
            Ok(true)
        }
        Err(error) => {
            tell(&format!("{error:#}"))?;
            Ok(false)
        }
    }
}

fn tell(answer: &str) -> io::Result<()> {
    let mut output = io::stdout();
    writeln!(output, "{answer}")?;
    output.flush()
}
