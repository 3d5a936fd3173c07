//! What the tracer itself takes, from /proc, under the names that every client library has for it.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Pid, getppid},
};

use super::exposition::{Text, Type};
use crate::owner::stat::Stat;

/// The tracer: whoever started this process.
#[derive(Debug)]
pub(super) struct Process {
    pid: Option<Pid>,
    ticks_per_second: u64,
    page_bytes: u64,
}

/// Of /proc/PID/stat, in ticks, bytes and pages.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    cpu_ticks: u64,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Process {
    /// While this one may still read its own /proc/self/auxv, which tells the units: up to Linux 6.3 nothing else does, and
    /// who gave up its user may not.
    pub(super) fn parent() -> Self {
        Self {
            pid: getppid(),
            ticks_per_second: clock_ticks_per_second(),
            page_bytes: u64::try_from(page_size()).unwrap_or(4096),
        }
    }

    /// Nothing where it cannot be read: /proc may be hidden.
    pub(super) fn tell(&self, text: &mut Text) {
        let stat = self.pid.and_then(|pid| {
            let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
            Usage::parse(&fs::read(path).ok()?)
        });
        let Some(stat) = stat else { return };
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds: a scraper reads floats"
        )]
        let seconds = |ticks: u64| ticks as f64 / self.ticks_per_second as f64;
        text.family(
            "process_cpu_seconds",
            Type::Counter,
            "CPU time of the tracer, in user space and in the kernel.",
        );
        text.sample(&[], seconds(stat.cpu_ticks));
        text.family(
            "process_resident_memory_bytes",
            Type::Gauge,
            "Memory of the tracer in RAM; maps and rings of eBPF are not in it.",
        );
        text.sample(&[], stat.resident_pages.saturating_mul(self.page_bytes));
        text.family(
            "process_virtual_memory_bytes",
            Type::Gauge,
            "Address space of the tracer.",
        );
        text.sample(&[], stat.virtual_bytes);
        if let Some(booted) = booted() {
            text.family(
                "process_start_time_seconds",
                Type::Gauge,
                "When the tracer started, in seconds since 1970.",
            );
            text.sample(&[], booted + seconds(stat.started_ticks));
        }
    }
}

/// When the machine started, in seconds since 1970.
fn booted() -> Option<f64> {
    let up = fs::read_to_string("/proc/uptime").ok()?;
    let up: f64 = up.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.as_secs_f64() - up)
}

impl Usage {
    fn parse(text: &[u8]) -> Option<Self> {
        let stat = Stat::split(text)?;
        Some(Self {
            cpu_ticks: stat.number(14)?.saturating_add(stat.number(15)?),
            started_ticks: stat.number(22)?,
            virtual_bytes: stat.number(23)?,
            resident_pages: stat.number(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_is_no_field() {
        let text = b"42 (a) R 1) S 1 42 42 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 777 10240 25 18446744073709551615";
        assert_eq!(
            Usage::parse(text),
            Some(Usage {
                cpu_ticks: 42,
                started_ticks: 777,
                virtual_bytes: 10_240,
                resident_pages: 25,
            })
        );
        assert_eq!(Usage::parse(b"42 (a"), None);
    }
}
