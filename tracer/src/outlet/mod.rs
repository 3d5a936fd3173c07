//! What talks to a network: a process of its own, without privileges, which is fed conntracer's JSON lines by a pipe and
//! ends when they do.
//!
//! `conntracer outlet TO`, which nobody types: [`crate::sink::destination`] starts it before anything is attached, and
//! waits for its first line of output, which is [`READY`] or why it cannot serve.

mod confine;
mod lines;
mod metrics;
mod syslog;

use std::io::{self, Write as _};

use anyhow::bail;
use rustix::thread::set_name;

use self::{metrics::Server, syslog::Syslog};
use crate::sink::destination::{METRICS, READY, SYSLOG};

/// Runs one until its input ends; false where it said why it cannot.
pub(crate) fn outlet(to: &str) -> anyhow::Result<bool> {
    // Otherwise it is called what it was started by: "exe".
    if let Err(error) = set_name(c"conntracer-out") {
        log::debug!("naming itself: {error}");
    }
    let (word, rest) = to.split_once(':').unwrap_or((to, ""));
    let prepared = Outlet::new(word, rest).and_then(|outlet| {
        confine::confine()?;
        Ok(outlet)
    });
    match prepared {
        Ok(outlet) => {
            ignore_signals();
            tell(READY)?;
            match outlet {
                Outlet::Metrics(server) => server.serve()?,
                Outlet::Syslog(syslog) => syslog.serve()?,
            }
            Ok(true)
        }
        Err(error) => {
            tell(&format!("{error:#}"))?;
            Ok(false)
        }
    }
}

/// What is to be served.
enum Outlet {
    Metrics(Server),
    Syslog(Syslog),
}

impl Outlet {
    /// With what takes privileges done.
    fn new(word: &str, rest: &str) -> anyhow::Result<Self> {
        match word {
            METRICS => Server::bind(rest).map(Self::Metrics),
            SYSLOG => Syslog::new(rest).map(Self::Syslog),
            _ => bail!("no process is called `{word}`"),
        }
    }
}

/// Whoever started this one ends it by the end of its lines; a signal to both would cut the last ones off.
fn ignore_signals() {
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: SIG_IGN is a valid disposition of each of them, and no handler is replaced.
        unsafe {
            libc::signal(number, libc::SIG_IGN);
        }
    }
}

fn tell(answer: &str) -> io::Result<()> {
    let mut output = io::stdout();
    writeln!(output, "{answer}")?;
    output.flush()
}
