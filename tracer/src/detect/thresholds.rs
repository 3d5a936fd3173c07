//! Every number a detector judges by, with its default and the reason for it: the `[detect]` table of
//! the config file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The `[detect]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    pub syn_drop: SynDrop,
    pub half_open: HalfOpen,
    pub retransmit_storm: RetransmitStorm,
    pub send_stall: SendStall,
    pub connect_failure: ConnectFailure,
    pub connection_drop: ConnectionDrop,
    pub limits: Limits,
}

/// `[detect.syn_drop]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SynDrop {
    /// A listener that dropped nothing for so long has recovered. Default 10 s: a refused client
    /// comes back after 1, 2 and 4 s, so a queue that is still full shows itself within 10.
    pub quiet_s: u64,
    /// Opens the causes before a listener (`no_listener`, `filtered` …) at so many SYNs to one address
    /// and port. Default 3: a stray probe sends one, and a client that wants in repeats its own twice
    /// within 3 s.
    pub refused_syns: u64,
    /// Addresses and ports of one namespace, refused for one cause and fewer times each, from which on
    /// they are one finding. Default 16: more than the ports of one misconfigured client, and what the
    /// slowest port scan reaches in seconds. A port that is refused as often as so many of the others
    /// has its own finding.
    pub scan_ports: u64,
}

impl Default for SynDrop {
    fn default() -> Self {
        Self {
            quiet_s: 10,
            refused_syns: 3,
            scan_ports: 16,
        }
    }
}

/// `[detect.half_open]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HalfOpen {
    /// Opens `handshake` when one request's SYN-ACK was repeated so often. Default 2: the first
    /// repeat (after 1 s) is one lost packet, the second (3 s) takes two losses in a row.
    pub synack_repeats: u8,
    /// Opens `handshake` when so many requests of one listener needed a repeat within 4 s. Default 5:
    /// what one lost burst of a handful of clients does not reach.
    pub synack_requests: u64,
    /// Distinct sources of SYNs in trouble from which on it reads like a flood of forged addresses.
    /// Default 64: more than the clients one broken path usually has within a SYN-ACK's 63 s.
    pub flood_sources: u64,
    /// Share of completed handshakes below which it does. Default 0.1: forged addresses complete none,
    /// and a flood that is not ten times the real clients needs no finding of its own.
    pub flood_completed: f64,
    /// Opens `dead_peer` at so many consecutive retransmission timeouts. Default 3, `tcp_retries1`:
    /// where the kernel itself starts to doubt the path; on a LAN that is 1.4 s of silence.
    pub timeouts: u8,
    /// Opens `dead_peer` at so many unanswered keepalive or window probes. Default 2: a live peer
    /// answers each, so that the count never passes 1 unless a probe or its answer was lost.
    pub probes: u8,
    /// Age from which CLOSE_WAIT and FIN_WAIT2 count. Default 60 s, `tcp_fin_timeout`: the kernel's
    /// own patience with a FIN_WAIT2 that nobody owns any more.
    pub half_closed_after_s: u64,
    /// Opens `half_closed` at so many sockets of one process. Default 1: a minute in CLOSE_WAIT is a
    /// close() that was forgotten, be it once.
    pub half_closed_sockets: u64,
    /// Half-closed sockets gained in a minute from which on it reads like a leak. Default 3: one slow
    /// peer holds one socket.
    pub leak_per_minute: u64,
    /// With `--audit keepalive`: how long an established connection must have been idle. Default 900 s:
    /// servers and load balancers close what is idle for 1 to 10 minutes, so that what is left is meant to
    /// stay, or was forgotten.
    pub idle_after_s: u64,
}

impl Default for HalfOpen {
    fn default() -> Self {
        Self {
            synack_repeats: 2,
            synack_requests: 5,
            flood_sources: 64,
            flood_completed: 0.1,
            timeouts: 3,
            probes: 2,
            half_closed_after_s: 60,
            half_closed_sockets: 1,
            leak_per_minute: 3,
            idle_after_s: 900,
        }
    }
}

/// `[detect.retransmit_storm]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetransmitStorm {
    /// Retransmitted segments a second, over the last 3 s, from which on one connection storms.
    /// Default 5: RTO backoff alone stays below 2, so a peer that is merely gone is not a storm.
    pub connection_per_s: f64,
    /// The same for all connections to one remote address. Default 10: two storming connections.
    pub remote_per_s: f64,
    /// The same for a network (/24, /48), a listener, a process, a network namespace and the whole host.
    /// Default 50: below it, a busy server's ordinary internet losses.
    pub host_per_s: f64,
    /// A storm is at least so many times what is usual in its scope, where that is learned to be more than
    /// nothing. Default 3: what chance makes of a usual rate near the floor stays below twice.
    pub usual_factor: f64,
    /// Share of retransmitted among sent data segments from which on a connection storms. Default
    /// 0.03: there loss alone holds a connection of 50 ms round trip to about 1.6 Mbit/s (Mathis).
    pub ratio: f64,
    /// Retransmissions within this are one loss and its repair. Default 500 ms: more than two round
    /// trips of nearly every path.
    pub burst_ms: u64,
    /// A storm ends when its rate stayed below half the floor for so long. Default 10 s: longer than
    /// the gaps that RTO backoff leaves in a storm (up to 6.4 s after five timeouts).
    pub quiet_s: u64,
    /// A wider scope stays silent while one narrower scope holds this share of its segments. Default
    /// 0.8: one connection that storms is not its remote's storm.
    pub explained: f64,
}

impl Default for RetransmitStorm {
    fn default() -> Self {
        Self {
            connection_per_s: 5.0,
            remote_per_s: 10.0,
            host_per_s: 50.0,
            usual_factor: 3.0,
            ratio: 0.03,
            burst_ms: 500,
            quiet_s: 10,
            explained: 0.8,
        }
    }
}

/// `[detect.send_stall]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SendStall {
    /// Opens `receiver_stalled` at so many window probes in a row. Default 3: they come after 0.2, 0.6 and
    /// 1.4 s on a LAN, and an application that reads at all opens its window within that.
    pub probes: u8,
    /// Opens `local_drop` at so many that did not leave this host. Default 2: the first may have met a full
    /// queue.
    pub failed_probes: u8,
}

impl Default for SendStall {
    fn default() -> Self {
        Self {
            probes: 3,
            failed_probes: 2,
        }
    }
}

/// `[detect.connect_failure]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectFailure {
    /// Opens at so many failed attempts of one process to one remote end for one cause. Default 1: each
    /// is an error that an application was told.
    pub attempts: u64,
    /// A remote end that nobody failed to reach for so long is forgotten. Default 60 s: what most clients
    /// wait at most before they try again.
    pub quiet_s: u64,
}

impl Default for ConnectFailure {
    fn default() -> Self {
        Self {
            attempts: 1,
            quiet_s: 60,
        }
    }
}

/// `[detect.connection_drop]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionDrop {
    /// Opens at so many connections that died alike. Default 1: each is an error that an application was
    /// told, or made.
    pub connections: u64,
    /// Deaths further apart are not one finding. Default 600 s: longer than the idle timeout of nearly every
    /// middlebox (350 s at some clouds), so that its pattern shows.
    pub quiet_s: u64,
    /// Shortest idle time before a death that can be a pattern. Default 10 s: below it are the timeouts of
    /// requests, not of idle connections.
    pub idle_s: u64,
}

impl Default for ConnectionDrop {
    fn default() -> Self {
        Self {
            connections: 1,
            quiet_s: 600,
            idle_s: 10,
        }
    }
}

impl ConnectionDrop {
    pub(crate) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }
}

/// `[detect.limits]`: what is remembered at most. What falls out is counted in
/// [`crate::pipeline::Tallies`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections in trouble, per detector. Default 16,384: about 10 MB in all.
    pub connections: usize,
    /// Listeners. Default 4,096.
    pub listeners: usize,
    /// Addresses and ports that SYNs were dropped on their way to. Default 16,384: several times what the
    /// eBPF side keeps.
    #[serde(alias = "refusals")]
    pub early_drops: usize,
    /// Remote addresses that are retransmitted to, and the networks, listeners, processes and namespaces
    /// that retransmit, together. Default 16,384.
    pub remotes: usize,
    /// Processes with half-closed sockets. Default 4,096.
    pub processes: usize,
    /// Remote ends that processes failed to connect to. Default 4,096: what the eBPF side keeps.
    pub failures: usize,
    /// Remote ends, listeners and processes whose connections died alike. Default 4,096.
    pub drops: usize,
    /// Connections whose state is asked for at every poll. Default 4,096: about 4 ms a second.
    pub watched: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            listeners: 4_096,
            early_drops: 16_384,
            remotes: 16_384,
            processes: 4_096,
            failures: 4_096,
            drops: 4_096,
            watched: 4_096,
        }
    }
}

impl Thresholds {
    /// What makes no sense, as one sentence naming the key and the remedy.
    pub fn check(&self) -> Result<(), String> {
        let storm = &self.retransmit_storm;
        for (key, rate) in [
            ("connection_per_s", storm.connection_per_s),
            ("remote_per_s", storm.remote_per_s),
            ("host_per_s", storm.host_per_s),
        ] {
            if !(rate.is_finite() && rate > 0.0) {
                return Err(format!(
                    "detect.retransmit_storm.{key} is {rate}: set a rate above 0"
                ));
            }
        }
        if !(storm.usual_factor.is_finite() && storm.usual_factor >= 0.0) {
            return Err(format!(
                "detect.retransmit_storm.usual_factor is {}: set 0 or more",
                storm.usual_factor
            ));
        }
        let half_open = &self.half_open;
        for (key, share) in [
            ("retransmit_storm.ratio", storm.ratio),
            ("retransmit_storm.explained", storm.explained),
            ("half_open.flood_completed", half_open.flood_completed),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("detect.{key} is {share}: set a share from 0 to 1"));
            }
        }
        let limits = &self.limits;
        for (key, number) in [
            (
                "half_open.synack_repeats",
                u64::from(half_open.synack_repeats),
            ),
            ("half_open.synack_requests", half_open.synack_requests),
            ("half_open.timeouts", u64::from(half_open.timeouts)),
            ("half_open.probes", u64::from(half_open.probes)),
            ("send_stall.probes", u64::from(self.send_stall.probes)),
            (
                "send_stall.failed_probes",
                u64::from(self.send_stall.failed_probes),
            ),
            (
                "half_open.half_closed_sockets",
                half_open.half_closed_sockets,
            ),
            ("limits.connections", limits.connections as u64),
            ("limits.listeners", limits.listeners as u64),
            ("limits.early_drops", limits.early_drops as u64),
            ("limits.remotes", limits.remotes as u64),
            ("syn_drop.refused_syns", self.syn_drop.refused_syns),
            ("syn_drop.scan_ports", self.syn_drop.scan_ports),
            ("limits.processes", limits.processes as u64),
            ("limits.failures", limits.failures as u64),
            ("limits.drops", limits.drops as u64),
            (
                "connection_drop.connections",
                self.connection_drop.connections,
            ),
            ("connect_failure.attempts", self.connect_failure.attempts),
        ] {
            if number == 0 {
                return Err(format!("detect.{key} is 0: set at least 1"));
            }
        }
        // Slots are numbered in 32 bits.
        for (key, number) in [
            ("connections", limits.connections),
            ("listeners", limits.listeners),
            ("early_drops", limits.early_drops),
            ("remotes", limits.remotes),
            ("processes", limits.processes),
            ("failures", limits.failures),
            ("drops", limits.drops),
            ("watched", limits.watched),
        ] {
            if number > 1 << 24 {
                return Err(format!(
                    "detect.limits.{key} is {number}: set at most 16777216"
                ));
            }
        }
        Ok(())
    }
}

impl SynDrop {
    pub(crate) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }
}

impl ConnectFailure {
    pub(crate) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }
}

impl HalfOpen {
    /// [`HalfOpen::half_closed_after_s`] in the unit of records.
    #[must_use]
    pub const fn half_closed_ns(&self) -> u64 {
        self.half_closed_after_s.saturating_mul(1_000_000_000)
    }

    /// [`HalfOpen::idle_after_s`] in the unit of records.
    #[must_use]
    pub const fn idle_ns(&self) -> u64 {
        self.idle_after_s.saturating_mul(1_000_000_000)
    }
}

impl RetransmitStorm {
    pub(crate) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }

    pub(crate) const fn burst(&self) -> Duration {
        Duration::from_millis(self.burst_ms)
    }
}
