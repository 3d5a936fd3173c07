//! What is known of a path that carries less than both ends believe, for the detectors that tell one by the sizes
//! of the segments that fail: what it is said to carry, by whom, and what mends it.

use std::borrow::Cow;

use conntracer_common::record::RetransmitTotals;

use super::{context::Context, facts::Facts};

/// At least so many are before the bytes of a segment: IPv4's header and TCP's.
const HEADER_BYTES: u32 = 40;

const MTU_PROBING: &str = "net.ipv4.tcp_mtu_probing";

/// Of one connection or of many.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    /// The smallest full-sized segment that was retransmitted while it was the first that is not acknowledged, in
    /// bytes.
    full_bytes: Option<u32>,
    /// The smallest path MTU that the kernel believes in, and the smallest that ICMP told of.
    path_mtu: Option<u32>,
    icmp_mtu: Option<u32>,
    /// Of a connection it is known that no ICMP told.
    without_icmp: bool,
}

impl Sizes {
    pub(crate) fn of(totals: &RetransmitTotals) -> Self {
        let known = |value: u32| (value != 0).then_some(value);
        Self {
            full_bytes: known(totals.full_head_bytes),
            path_mtu: known(totals.pmtu),
            icmp_mtu: known(totals.icmp_mtu.into()),
            without_icmp: totals.tells_icmp != 0 && totals.icmp_mtu == 0,
        }
    }

    pub(crate) fn add(&mut self, more: &Self) {
        let least = |one: Option<u32>, other: Option<u32>| one.into_iter().chain(other).min();
        self.full_bytes = least(self.full_bytes, more.full_bytes);
        self.path_mtu = least(self.path_mtu, more.path_mtu);
        self.icmp_mtu = least(self.icmp_mtu, more.icmp_mtu);
        self.without_icmp |= more.without_icmp;
    }

    pub(crate) fn facts(&self, facts: Facts) -> Facts {
        let count = |value: Option<u32>| value.map(u64::from);
        let facts = facts
            .count_if_known("lost_segment_bytes", count(self.full_bytes))
            .count_if_known("path_mtu_bytes", count(self.path_mtu))
            .count_if_known("icmp_mtu_bytes", count(self.icmp_mtu));
        if self.icmp_mtu.is_none() && self.without_icmp {
            facts.text("icmp", "none")
        } else {
            facts
        }
    }

    /// The data of an ICMP echo whose packet is as large as the smallest full-sized segment that fails: TCP has 24 bytes
    /// more before its data, timestamps included.
    pub(crate) fn echo_bytes(&self) -> Option<u32> {
        const MORE: u32 = 24;
        Some(self.full_bytes?.saturating_add(MORE))
    }

    /// What ICMP has to do with it: the rest of a sentence that says that segments are too large.
    pub(crate) const fn icmp(&self) -> &'static str {
        if self.icmp_mtu.is_some() {
            ", even after what ICMP said of it"
        } else if self.without_icmp {
            ", and no ICMP message says so"
        } else {
            ""
        }
    }

    /// Whether what fails is larger than ICMP told of. The kernel may believe in more all the same: a message that
    /// would not make segments smaller changes nothing (`tcp_v6_mtu_reduced`).
    fn ignores_icmp(&self) -> bool {
        self.icmp_mtu
            .zip(self.full_bytes)
            .is_some_and(|(told, bytes)| told < bytes.saturating_add(HEADER_BYTES))
    }

    pub(crate) fn advice(&self, netns: Option<u32>, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
        if self.ignores_icmp() {
            return vec![
                "the kernel does not follow the ICMP message: the socket asks it not to (IP_MTU_DISCOVER), or \
                 the route's MTU is locked (ip route get)"
                    .into(),
            ];
        }
        vec![
            "let ICMP \"fragmentation needed\" and \"packet too big\" through, or clamp the MSS on the tunnel's \
             ends"
                .into(),
            format!(
                "or set {} to 1",
                netns.map_or_else(
                    || MTU_PROBING.to_owned(),
                    |netns| cx.said_sysctl(MTU_PROBING, netns)
                ),
            )
            .into(),
        ]
    }
}
