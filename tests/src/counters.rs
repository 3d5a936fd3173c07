//! The kernel's own TCP counters of a network namespace: the truth conntracer is held against.

use std::{fs, ops::Sub};

use anyhow::{Context, Result, bail};

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident = $group:literal . $name:literal;)*) => {
        /// A reading, or with `-` the difference between two. Fields in snake case are the kernel's
        /// names; a counter the running kernel lacks reads 0.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Counters {
            fn parse(text: &str, counters: &mut Self) -> Result<()> {
                for_each(text, |group, name, value| match (group, name) {
                    $(($group, $name) => counters.$field = value,)*
                    _ => {}
                })
            }
        }

        impl Sub for Counters {
            type Output = Self;

            fn sub(self, before: Self) -> Self {
                Self { $($field: self.$field.wrapping_sub(before.$field),)* }
            }
        }
    };
}

counters! {
    /// Segments retransmitted, SYNs and SYN-ACKs included.
    retrans_segs = "Tcp"."RetransSegs";
    in_segs = "Tcp"."InSegs";
    out_segs = "Tcp"."OutSegs";
    in_csum_errors = "Tcp"."InCsumErrors";
    out_rsts = "Tcp"."OutRsts";
    passive_opens = "Tcp"."PassiveOpens";
    active_opens = "Tcp"."ActiveOpens";
    /// Connections that failed before they were established, on either side.
    attempt_fails = "Tcp"."AttemptFails";
    estab_resets = "Tcp"."EstabResets";
    /// SYNs and third ACKs refused because the accept queue was full.
    listen_overflows = "TcpExt"."ListenOverflows";
    listen_drops = "TcpExt"."ListenDrops";
    req_q_full_drop = "TcpExt"."TCPReqQFullDrop";
    req_q_full_do_cookies = "TcpExt"."TCPReqQFullDoCookies";
    syncookies_sent = "TcpExt"."SyncookiesSent";
    /// ACKs without a request that brought a valid cookie, and those that brought a wrong one.
    syncookies_recv = "TcpExt"."SyncookiesRecv";
    syncookies_failed = "TcpExt"."SyncookiesFailed";
    /// Handshakes ended by a RST, the peer's or ours.
    embryonic_rsts = "TcpExt"."EmbryonicRsts";
    /// SYNs and SYN-ACKs retransmitted.
    syn_retrans = "TcpExt"."TCPSynRetrans";
    timeouts = "TcpExt"."TCPTimeouts";
    loss_probes = "TcpExt"."TCPLossProbes";
    ao_required = "TcpExt"."TCPAORequired";
    retrans_fail = "TcpExt"."TCPRetransFail";
    /// Segments repeated because of ACKs: in recovery, and after a timeout.
    fast_retrans = "TcpExt"."TCPFastRetrans";
    slow_start_retrans = "TcpExt"."TCPSlowStartRetrans";
    /// Duplicate SACKs received, SACKs that were taken back, and repeats that were lost in turn.
    dsack_recv = "TcpExt"."TCPDSACKRecv";
    sack_reneging = "TcpExt"."TCPSACKReneging";
    lost_retransmit = "TcpExt"."TCPLostRetransmit";
    /// Losses that were none, by how the kernel learned it, and those after a timeout that F-RTO told.
    loss_undo = "TcpExt"."TCPLossUndo";
    full_undo = "TcpExt"."TCPFullUndo";
    partial_undo = "TcpExt"."TCPPartialUndo";
    dsack_undo = "TcpExt"."TCPDSACKUndo";
    spurious_rtos = "TcpExt"."TCPSpuriousRTOs";
    /// Probes of a window that has no room.
    win_probes = "TcpExt"."TCPWinProbe";
    spurious_rtx_host_queues = "TcpExt"."TCPSpuriousRtxHostQueues";
    /// Bare third ACKs that a listener was asked not to take.
    defer_accept_drop = "TcpExt"."TCPDeferAcceptDrop";
    /// Fast Open connections taken.
    fast_open_passive = "TcpExt"."TCPFastOpenPassive";
    abort_on_timeout = "TcpExt"."TCPAbortOnTimeout";
    /// Orphans given up because there are too many, or too little memory.
    abort_on_memory = "TcpExt"."TCPAbortOnMemory";
    reverse_path = "TcpExt"."IPReversePathFilter";
    /// ICMP messages received that say "destination unreachable".
    in_icmp_unreachable = "Icmp"."InDestUnreachs";
    md5_not_found = "TcpExt"."TCPMD5NotFound";
}

impl Counters {
    /// One of those that conntracer compares, by the kernel's name and as it is compared.
    #[must_use]
    pub fn compared(&self, name: &str) -> Option<u64> {
        Some(match name {
            "ListenOverflows" => self.listen_overflows,
            "ListenDrops" => self.listen_drops,
            "TCPReqQFullDrop" => self.req_q_full_drop,
            "TCPReqQFullDoCookies" => self.req_q_full_do_cookies,
            "SyncookiesSent" => self.syncookies_sent,
            "SyncookiesRecv" => self.syncookies_recv,
            "SyncookiesFailed" => self.syncookies_failed,
            "TCPSynRetrans" => self.syn_retrans,
            "EmbryonicRsts" => self.embryonic_rsts,
            "TCPTimeouts" => self.timeouts,
            "TCPFastRetrans" => self.fast_retrans,
            "TCPSlowStartRetrans" => self.slow_start_retrans,
            "TCPLossProbes" => self.loss_probes,
            "TCPRetransFail" => self.retrans_fail,
            "RetransSegs" => self.retrans_segs - self.retrans_fail,
            "OutRsts" => self.out_rsts,
            "AttemptFails" => self.attempt_fails,
            "TCPLossUndo" => self.loss_undo,
            "TCPFullUndo" => self.full_undo,
            "TCPPartialUndo" => self.partial_undo,
            "TCPDSACKUndo" => self.dsack_undo,
            _ => return None,
        })
    }

    /// Reads the counters of the calling thread's network namespace.
    pub fn read() -> Result<Self> {
        let mut counters = Self::default();
        for path in [
            "/proc/thread-self/net/snmp",
            "/proc/thread-self/net/netstat",
        ] {
            let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
            Self::parse(&text, &mut counters).with_context(|| format!("parsing {path}"))?;
        }
        Ok(counters)
    }
}

/// Walks the pairs of lines both files are made of: `Group: name name …`, `Group: value value …`.
fn for_each(text: &str, mut visit: impl FnMut(&str, &str, u64)) -> Result<()> {
    let mut lines = text.lines();
    while let Some(names) = lines.next() {
        let Some(values) = lines.next() else {
            bail!("a line of names without its line of values: {names}");
        };
        let (group, names) = names.split_once(':').context("a line without a group")?;
        let values = values.split_once(':').context("a line without a group")?.1;
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            // Tcp: MaxConn is -1 where there is no limit; no counter is negative.
            if let Ok(value) = value.parse() {
                visit(group, name, value);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_groups_by_name_and_not_by_position() {
        let text = "Ip: Forwarding RetransSegs\nIp: 1 99\n\
                    Tcp: MaxConn RetransSegs OutSegs\nTcp: -1 7 12\n";
        let mut counters = Counters::default();
        Counters::parse(text, &mut counters).unwrap();
        assert_eq!(
            counters,
            Counters {
                retrans_segs: 7,
                out_segs: 12,
                ..Counters::default()
            }
        );
    }

    #[test]
    fn a_missing_line_of_values_is_an_error() {
        assert!(Counters::parse("Tcp: RetransSegs\n", &mut Counters::default()).is_err());
    }
}
