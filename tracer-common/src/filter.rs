//! What to trace, decided in the kernel: user space fills one [`Filter`] before load, and the
//! verifier prunes the tests that nobody asked for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::record::Socket;

/// Network namespaces one filter can name: each costs every event a comparison.
pub const MAX_NETNS: usize = 8;

/// Conditions that all must hold; a zero field asks for nothing.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Filter {
    /// Address and mask, network order words, v4-mapped. A zero mask matches everything.
    pub addr: [u32; 4],
    pub mask: [u32; 4],
    /// Inodes of the network namespaces, any of which will do; unused places are zero.
    pub netns: [u32; MAX_NETNS],
    /// Local, remote, or either port.
    pub local_port: u16,
    pub remote_port: u16,
    pub port: u16,
    pub pad: u16,
}

impl Filter {
    /// Whether the filter asks for anything about addresses or ports.
    #[must_use]
    pub const fn has_endpoint(&self) -> bool {
        self.local_port != 0
            || self.remote_port != 0
            || self.port != 0
            || self.mask[0] | self.mask[1] | self.mask[2] | self.mask[3] != 0
    }

    /// Whether a socket passes. The remote end of a listener is unknown (all zero) and passes the
    /// remote conditions, or nothing about its queue would ever be seen.
    #[must_use]
    #[expect(
        clippy::inline_always,
        reason = "a BPF program has no calls to spare, and its filter is constant"
    )]
    #[inline(always)]
    pub const fn matches(&self, socket: &Socket) -> bool {
        if !named(&self.netns, socket.netns) {
            return false;
        }
        let remote_known = socket.remote_port != 0;
        if self.local_port != 0 && self.local_port != socket.local_port {
            return false;
        }
        if self.remote_port != 0 && remote_known && self.remote_port != socket.remote_port {
            return false;
        }
        if self.port != 0 && self.port != socket.local_port && self.port != socket.remote_port {
            return false;
        }
        self.within(&socket.local_addr) || !remote_known || self.within(&socket.remote_addr)
    }

    #[expect(
        clippy::inline_always,
        reason = "a BPF program has no calls to spare, and its filter is constant"
    )]
    #[inline(always)]
    const fn within(&self, addr: &[u32; 4]) -> bool {
        ((addr[0] ^ self.addr[0]) & self.mask[0])
            | ((addr[1] ^ self.addr[1]) & self.mask[1])
            | ((addr[2] ^ self.addr[2]) & self.mask[2])
            | ((addr[3] ^ self.addr[3]) & self.mask[3])
            == 0
    }
}

/// Whether `netns` is one of [`Filter::netns`], or none is asked for; without a loop, which 5.10's
/// verifier would walk.
#[must_use]
#[expect(
    clippy::inline_always,
    reason = "a BPF program has no calls to spare, and its filter is constant"
)]
#[inline(always)]
pub const fn named(asked: &[u32; MAX_NETNS], netns: u32) -> bool {
    asked[0] == 0
        || (netns != 0
            && (netns == asked[0]
                || netns == asked[1]
                || netns == asked[2]
                || netns == asked[3]
                || netns == asked[4]
                || netns == asked[5]
                || netns == asked[6]
                || netns == asked[7]))
}

/// What to write to the rings beyond what findings need; bits of `EMIT`, one per
/// [`crate::record::kind`].
#[must_use]
pub const fn emit_bit(kind: u16) -> u32 {
    1 << kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> Socket {
        Socket {
            netns: 7,
            local_addr: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, 0, 1])],
            remote_addr: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 9, 0, 2])],
            local_port: 80,
            remote_port: 40000,
            ..Socket::default()
        }
    }

    #[test]
    fn an_empty_filter_passes_everything() {
        assert!(Filter::default().matches(&socket()));
    }

    #[test]
    fn every_condition_can_refuse() {
        let refuse = [
            Filter {
                netns: [8, 9, 0, 0, 0, 0, 0, 0],
                ..Filter::default()
            },
            Filter {
                local_port: 81,
                ..Filter::default()
            },
            Filter {
                remote_port: 81,
                ..Filter::default()
            },
            Filter {
                port: 81,
                ..Filter::default()
            },
            Filter {
                addr: [
                    0,
                    0,
                    0xffff_u32.to_be(),
                    u32::from_ne_bytes([192, 168, 0, 0]),
                ],
                mask: [!0, !0, !0, u32::from_ne_bytes([255, 255, 0, 0])],
                ..Filter::default()
            },
        ];
        for filter in refuse {
            assert!(!filter.matches(&socket()), "{filter:?}");
        }
    }

    #[test]
    fn any_of_the_namespaces_will_do() {
        for at in 0..MAX_NETNS {
            let mut netns = [8; MAX_NETNS];
            netns[at] = 7;
            let filter = Filter {
                netns,
                ..Filter::default()
            };
            assert!(filter.matches(&socket()), "{netns:?}");
            assert!(
                !filter.matches(&Socket {
                    netns: 0,
                    ..socket()
                }),
                "a namespace that is not known is none of those asked for"
            );
        }
    }

    #[test]
    fn either_end_may_lie_within_the_addresses() {
        for octets in [[10, 0, 0, 0], [10, 9, 0, 0]] {
            let filter = Filter {
                addr: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(octets)],
                mask: [!0, !0, !0, u32::from_ne_bytes([255, 255, 0, 0])],
                ..Filter::default()
            };
            assert!(filter.matches(&socket()), "{octets:?}");
        }
    }

    #[test]
    fn a_listener_passes_remote_conditions() {
        let listener = Socket {
            remote_port: 0,
            remote_addr: [0; 4],
            ..socket()
        };
        assert!(
            Filter {
                remote_port: 81,
                ..Filter::default()
            }
            .matches(&listener)
        );
    }
}
