//! Why a SYN was dropped before a listener saw it, where the kernel gives no reason: from this CPU's counters of
//! the namespace, the packet's route and its addresses.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::record::{early_drop_hint, path};

/// Counters of one CPU that tell why a segment was dropped before it reached a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DropCounters {
    /// `Tcp` InCsumErrors and OutRsts, `TcpExt` IPReversePathFilter.
    pub csum_errors: u64,
    pub out_rsts: u64,
    pub reverse_path: u64,
    /// `TcpExt` TCPMD5NotFound, TCPMD5Unexpected and TCPMD5Failure together.
    pub md5: u64,
}

impl DropCounters {
    pub const NONE: Self = Self {
        csum_errors: 0,
        out_rsts: 0,
        reverse_path: 0,
        md5: 0,
    };

    /// Which rose since `before`, as bits of [`early_drop_hint`]. At the first look there is nothing to compare
    /// with: a counter at 1 counted this segment, or one before the tracer, and only what it says is said.
    #[must_use]
    #[inline]
    pub const fn hints(&self, before: &Self, is_first: bool) -> u8 {
        let rose = hint(
            self.csum_errors,
            before.csum_errors,
            is_first,
            early_drop_hint::CHECKSUM,
        ) | hint(self.md5, before.md5, is_first, early_drop_hint::MD5)
            | hint(
                self.reverse_path,
                before.reverse_path,
                is_first,
                early_drop_hint::REVERSE_PATH,
            )
            | hint(
                self.out_rsts,
                before.out_rsts,
                is_first,
                early_drop_hint::RESET_SENT,
            );
        if is_first && rose == 0 {
            0
        } else {
            early_drop_hint::COUNTED | rose
        }
    }
}

#[inline]
const fn hint(now: u64, before: u64, is_first: bool, hint: u8) -> u8 {
    (if is_first { now == 1 } else { now != before }) as u8 * hint
}

/// `RTCF_LOCAL` and `RTF_LOCAL` (include/uapi/linux/in_route.h, ipv6_route.h).
const ROUTE_LOCAL: u32 = 0x8000_0000;
/// `LOOPBACK_IFINDEX` (include/net/flow.h).
const LOOPBACK: u32 = 1;

/// One of [`path`]: how far a packet that has a route had come, by the route's flags and the device that it was
/// received by.
#[must_use]
#[inline]
pub const fn path_by_route(flags: u32, ifindex: u32) -> u8 {
    if ifindex == LOOPBACK {
        path::UNKNOWN
    } else if flags & ROUTE_LOCAL != 0 {
        path::INPUT
    } else {
        path::FORWARD
    }
}

/// The bit of 64 that stands for a remote address. Multiplicative: the peers of one network differ in their last
/// bytes.
#[must_use]
#[inline]
pub const fn remote_bit(addr: &[u32; 4]) -> u64 {
    const GOLDEN: u32 = 0x9e37_79b1;
    let folded = (addr[0].wrapping_mul(GOLDEN) ^ addr[1])
        .wrapping_mul(GOLDEN)
        .wrapping_add(addr[2])
        .wrapping_mul(GOLDEN)
        ^ addr[3];
    1 << (folded.wrapping_mul(GOLDEN) >> 26)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn counters(
        csum_errors: u64,
        out_rsts: u64,
        reverse_path: u64,
        md5: u64,
    ) -> DropCounters {
        DropCounters {
            csum_errors,
            out_rsts,
            reverse_path,
            md5,
        }
    }

    #[test]
    fn what_rose_since_the_last_look_hints_at_the_cause() {
        let before = counters(7, 7, 7, 7);
        let cases = [
            (before, 0),
            (counters(8, 7, 7, 7), early_drop_hint::CHECKSUM),
            (counters(7, 8, 7, 7), early_drop_hint::RESET_SENT),
            (counters(7, 7, 9, 7), early_drop_hint::REVERSE_PATH),
            (counters(7, 7, 7, 8), early_drop_hint::MD5),
        ];
        for (now, hint) in cases {
            assert_eq!(now.hints(&before, false), early_drop_hint::COUNTED | hint);
        }
    }

    #[test]
    fn a_first_look_says_only_what_a_counter_at_one_says() {
        let first = |now: DropCounters| now.hints(&DropCounters::NONE, true);
        assert_eq!(first(counters(7, 7, 7, 7)), 0);
        assert_eq!(
            first(counters(0, 0, 0, 1)),
            early_drop_hint::COUNTED | early_drop_hint::MD5
        );
    }

    #[test]
    fn a_route_tells_how_far_a_packet_came_but_not_over_the_loopback() {
        assert_eq!(path_by_route(ROUTE_LOCAL, 2), path::INPUT);
        assert_eq!(path_by_route(1, 2), path::FORWARD);
        assert_eq!(path_by_route(ROUTE_LOCAL, LOOPBACK), path::UNKNOWN);
    }

    #[test]
    fn neighbours_mostly_have_bits_of_their_own() {
        let bits = (0..64_u32)
            .map(|host| remote_bit(&[0, 0, 0xffff_u32.to_be(), (0x0a00_0000 + host).to_be()]));
        let distinct = bits.fold(0, |bits, bit| bits | bit).count_ones();
        assert!(distinct > 32, "{distinct} of 64");
    }
}
