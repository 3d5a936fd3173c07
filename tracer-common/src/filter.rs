//! What to trace: user space fills one [`Filter`] before load, and the verifier prunes the tests that
//! nobody asked for. Network namespace, ports, addresses and listeners are told from a socket alone; which
//! owners match is in maps of the eBPF side, because there may be many, and containers come and go.

use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

use crate::record::{Socket, role};

/// Namespaces, ports, networks and listeners one filter can name, of each kind: each costs every event a
/// comparison.
pub const MAX_OF_A_KIND: usize = 8;

/// Addresses: network order words, v4-mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Network {
    pub addr: [u32; 4],
    pub mask: [u32; 4],
}

/// Where something listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct ListenerEnd {
    pub addr: [u32; 4],
    pub port: u16,
    /// 0: at any address, and `addr` means nothing.
    pub has_addr: u16,
}

/// Bits of [`Filter::owner`].
pub mod owner_condition {
    pub const PID: u32 = 1;
    pub const COMM: u32 = 2;
    /// By control group or container: decided by userspace for each group once.
    pub const GROUP: u32 = 4;
}

/// What a filter says of an owner or a control group, as the eBPF side keeps it.
pub mod verdict {
    /// The owner is not known, or nobody decided on its control group yet.
    pub const OPEN: u8 = 0;
    pub const MATCHES: u8 = 1;
    pub const EXCLUDED: u8 = 2;
}

/// How many places of each kind are used; none asks for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Used {
    pub networks: u8,
    pub listeners: u8,
    pub netns: u8,
    pub local_ports: u8,
    pub remote_ports: u8,
    pub ports: u8,
    pub pad: [u8; 2],
}

/// Conditions of different kinds must all hold; of those of one kind any will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Filter {
    /// What the local or the remote address lies in.
    pub networks: [Network; MAX_OF_A_KIND],
    pub listeners: [ListenerEnd; MAX_OF_A_KIND],
    /// Inodes of the network namespaces.
    pub netns: [u32; MAX_OF_A_KIND],
    /// Local, remote, or either port.
    pub local_ports: [u16; MAX_OF_A_KIND],
    pub remote_ports: [u16; MAX_OF_A_KIND],
    pub ports: [u16; MAX_OF_A_KIND],
    pub used: Used,
    /// Bits of [`owner_condition`]: which kinds it has.
    pub owner: u32,
}

/// How a filter's parts are read: of a read-only global, by a read that the compiler cannot fold.
pub trait Read {
    fn read<T: Copy>(place: &T) -> T;
}

/// Of memory like any other.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Read for Plain {
    fn read<T: Copy>(place: &T) -> T {
        *place
    }
}

#[expect(
    clippy::inline_always,
    reason = "a BPF program has no calls to spare, and its filter is constant"
)]
impl Filter {
    /// Everything matches.
    pub const NONE: Self = Self {
        networks: [Network {
            addr: [0; 4],
            mask: [0; 4],
        }; MAX_OF_A_KIND],
        listeners: [ListenerEnd {
            addr: [0; 4],
            port: 0,
            has_addr: 0,
        }; MAX_OF_A_KIND],
        netns: [0; MAX_OF_A_KIND],
        local_ports: [0; MAX_OF_A_KIND],
        remote_ports: [0; MAX_OF_A_KIND],
        ports: [0; MAX_OF_A_KIND],
        used: Used {
            networks: 0,
            listeners: 0,
            netns: 0,
            local_ports: 0,
            remote_ports: 0,
            ports: 0,
            pad: [0; 2],
        },
        owner: 0,
    };

    /// Whether anything is asked about addresses, ports or listeners.
    #[must_use]
    #[inline(always)]
    pub fn has_endpoint<R: Read>(&self) -> bool {
        R::read(&self.used.networks)
            | R::read(&self.used.listeners)
            | R::read(&self.used.local_ports)
            | R::read(&self.used.remote_ports)
            | R::read(&self.used.ports)
            != 0
    }

    /// Whether a socket passes, as far as it can be told without its owner. The remote end of a listener is
    /// unknown (all zero) and passes the remote conditions, or nothing about its queue would ever be seen.
    #[must_use]
    #[inline(always)]
    pub fn matches<R: Read>(&self, socket: &Socket) -> bool {
        let (local, remote) = (socket.local_port, socket.remote_port);
        let remote_known = remote != 0;
        let used = &self.used;
        self.matches_netns::<R>(socket.netns)
            && any::<R, _>(&self.local_ports, &used.local_ports, |port| {
                R::read(port) == local
            })
            && (!remote_known
                || any::<R, _>(&self.remote_ports, &used.remote_ports, |port| {
                    R::read(port) == remote
                }))
            && any::<R, _>(&self.ports, &used.ports, |port| {
                let port = R::read(port);
                port == local || port == remote
            })
            && (!remote_known
                || any::<R, _>(&self.networks, &used.networks, |network| {
                    network.covers::<R>(&socket.local_addr)
                        || network.covers::<R>(&socket.remote_addr)
                }))
            && any::<R, _>(&self.listeners, &used.listeners, |end| {
                end.is_of::<R>(socket)
            })
    }

    /// Whether a namespace is one of those named, or none is.
    #[must_use]
    #[inline(always)]
    pub fn matches_netns<R: Read>(&self, netns: u32) -> bool {
        any::<R, _>(&self.netns, &self.used.netns, |named| {
            R::read(named) == netns
        })
    }
}

/// Whether one of the used places will do, or none is used. How many are is not for the compiler to know,
/// which would lay the loop out eight times.
#[expect(
    clippy::inline_always,
    reason = "a BPF program has no calls to spare, and its filter is constant"
)]
#[inline(always)]
fn any<R: Read, T>(places: &[T; MAX_OF_A_KIND], used: &u8, will_do: impl Fn(&T) -> bool) -> bool {
    let used = usize::from(R::read(used)).min(MAX_OF_A_KIND);
    if used == 0 {
        return true;
    }
    let mut at = 0;
    while at < used {
        if will_do(&places[at]) {
            return true;
        }
        at += 1;
    }
    false
}

#[expect(
    clippy::inline_always,
    reason = "a BPF program has no calls to spare, and its filter is constant"
)]
impl Network {
    #[inline(always)]
    fn covers<R: Read>(&self, addr: &[u32; 4]) -> bool {
        let differs =
            |word: usize| (addr[word] ^ R::read(&self.addr[word])) & R::read(&self.mask[word]);
        differs(0) | differs(1) | differs(2) | differs(3) == 0
    }
}

#[expect(
    clippy::inline_always,
    reason = "a BPF program has no calls to spare, and its filter is constant"
)]
impl ListenerEnd {
    /// A listener is named by the address it is bound to; a connection is one of its own when its local end
    /// is that address, or any address where the listener is bound to none. What this host opened is not.
    #[inline(always)]
    fn is_of<R: Read>(&self, socket: &Socket) -> bool {
        R::read(&self.port) == socket.local_port
            && socket.role != role::ACTIVE
            && (R::read(&self.has_addr) == 0 || self.is_at::<R>(socket))
    }

    /// An any-address takes connections to every address of its family, and IPv6's those to IPv4's, too.
    #[inline(always)]
    fn is_at<R: Read>(&self, socket: &Socket) -> bool {
        let word = |at: usize| R::read(&self.addr[at]);
        let addr = &socket.local_addr;
        let exact =
            (word(0) ^ addr[0]) | (word(1) ^ addr[1]) | (word(2) ^ addr[2]) | (word(3) ^ addr[3])
                == 0;
        let is_any = word(0) | word(1) | word(3) == 0;
        let of_ipv4 = addr[0] | addr[1] == 0 && addr[2] == MAPPED;
        exact
            || (socket.role != role::LISTENER
                && is_any
                && (word(2) == 0 || word(2) == MAPPED && of_ipv4))
    }
}

/// The third word of an IPv4 address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// A process's name without what its buffer holds behind the NUL: before Linux 6.14 remains of an earlier
/// name (`__set_task_comm`).
#[must_use]
pub const fn comm_words(comm: &[u8; 16]) -> [u64; 2] {
    let words: [u64; 2] = transmute!(*comm);
    let (first, second) = (u64::from_le(words[0]), u64::from_le(words[1]));
    let kept = before_zero(first);
    let whole = if kept == u64::MAX { u64::MAX } else { 0 };
    [first & kept, second & before_zero(second) & whole]
}

/// Covers the bytes before the first that is zero; all where none is. By arithmetic: a borrow marks zero
/// bytes, rightly up to the first one, which is all that is looked at.
const fn before_zero(word: u64) -> u64 {
    let zeros = word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080;
    if zeros == 0 {
        u64::MAX
    } else {
        (zeros & zeros.wrapping_neg()).wrapping_sub(1) >> 7
    }
}

/// What to write to the rings beyond what findings need; bits of `EMIT`, one per
/// [`crate::record::kind`]. What userspace alone writes has none where its number is beyond these.
#[must_use]
pub const fn emit_bit(kind: u16) -> u32 {
    match 1_u32.checked_shl(kind as u32) {
        Some(bit) => bit,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mapped(octets: [u8; 4]) -> [u32; 4] {
        [0, 0, MAPPED, u32::from_ne_bytes(octets)]
    }

    fn socket() -> Socket {
        Socket {
            netns: 7,
            local_addr: mapped([10, 0, 0, 1]),
            remote_addr: mapped([10, 9, 0, 2]),
            local_port: 80,
            remote_port: 40000,
            ..Socket::default()
        }
    }

    fn places<T: Copy + Default>(used: &[T]) -> [T; MAX_OF_A_KIND] {
        let mut places = [T::default(); MAX_OF_A_KIND];
        places[..used.len()].copy_from_slice(used);
        places
    }

    /// The filter with its used places counted.
    fn counted(filter: &Filter) -> Filter {
        fn count<T: Copy + Default + PartialEq>(places: &[T]) -> u8 {
            let used = places.iter().take_while(|place| **place != T::default());
            u8::try_from(used.count()).expect("there are few")
        }
        Filter {
            used: Used {
                networks: count(&filter.networks),
                listeners: count(&filter.listeners),
                netns: count(&filter.netns),
                local_ports: count(&filter.local_ports),
                remote_ports: count(&filter.remote_ports),
                ports: count(&filter.ports),
                pad: [0; 2],
            },
            ..*filter
        }
    }

    fn network(octets: [u8; 4]) -> Network {
        Network {
            addr: mapped(octets),
            mask: [!0, !0, !0, u32::from_ne_bytes([255, 255, 0, 0])],
        }
    }

    fn passes(filter: &Filter, socket: &Socket) -> bool {
        counted(filter).matches::<Plain>(socket)
    }

    #[test]
    fn an_empty_filter_passes_everything() {
        assert!(passes(&Filter::NONE, &socket()));
        assert!(!Filter::NONE.has_endpoint::<Plain>());
        assert_eq!(Filter::NONE, Filter::default());
    }

    #[test]
    fn every_condition_can_refuse_and_any_of_a_kind_will_do() {
        let port = |wrong: u16, right: u16| [places(&[wrong]), places(&[wrong, wrong, right])];
        let local = port(81, 80).map(|local_ports| Filter {
            local_ports,
            ..Filter::NONE
        });
        let remote = port(80, 40000).map(|remote_ports| Filter {
            remote_ports,
            ..Filter::NONE
        });
        let either = port(81, 40000).map(|ports| Filter {
            ports,
            ..Filter::NONE
        });
        let lies = |used: &[Network]| Filter {
            networks: places(used),
            ..Filter::NONE
        };
        let nowhere = network([192, 168, 0, 0]);
        let remote_within = [lies(&[nowhere]), lies(&[nowhere, network([10, 9, 0, 0])])];
        let local_within = [lies(&[nowhere]), lies(&[nowhere, network([10, 0, 0, 0])])];
        for [refuses, lets_through] in [local, remote, either, remote_within, local_within] {
            assert!(!passes(&refuses, &socket()), "{refuses:?}");
            assert!(passes(&lets_through, &socket()), "{lets_through:?}");
            assert!(counted(&refuses).has_endpoint::<Plain>());
        }
        let both = Filter {
            local_ports: places(&[80]),
            remote_ports: places(&[1]),
            ..Filter::NONE
        };
        assert!(!passes(&both, &socket()), "different kinds must all hold");
    }

    #[test]
    fn any_of_the_namespaces_will_do() {
        for at in 0..MAX_OF_A_KIND {
            let mut netns = [8; MAX_OF_A_KIND];
            netns[at] = 7;
            let filter = Filter {
                netns,
                ..Filter::NONE
            };
            assert!(passes(&filter, &socket()), "{netns:?}");
            assert!(
                !passes(
                    &filter,
                    &Socket {
                        netns: 0,
                        ..socket()
                    }
                ),
                "a namespace that is not known is none of those named"
            );
        }
    }

    #[test]
    fn a_listener_passes_remote_conditions() {
        let listener = Socket {
            remote_port: 0,
            remote_addr: [0; 4],
            ..socket()
        };
        let remote = Filter {
            remote_ports: places(&[81]),
            ..Filter::NONE
        };
        assert!(passes(&remote, &listener));
    }

    #[test]
    fn a_listener_is_named_by_its_address_and_brings_its_connections() {
        let at = |local_addr: [u32; 4], role: u8| Socket {
            local_addr,
            role,
            ..socket()
        };
        let own = mapped([10, 0, 0, 1]);
        let other = mapped([10, 0, 0, 2]);
        let any_v4 = mapped([0; 4]);
        let any_v6 = [0; 4];
        let v6 = [1, 2, 3, 4];
        let asked = |addr: Option<[u32; 4]>| Filter {
            listeners: places(&[
                ListenerEnd {
                    addr: [9; 4],
                    port: 81,
                    has_addr: 1,
                },
                ListenerEnd {
                    addr: addr.unwrap_or_default(),
                    port: 80,
                    has_addr: addr.is_some().into(),
                },
            ]),
            ..Filter::NONE
        };
        let cases = [
            (None, own, role::LISTENER, true),
            (None, v6, role::PASSIVE, true),
            (None, own, role::ACTIVE, false),
            (Some(own), own, role::LISTENER, true),
            (Some(own), own, role::PASSIVE, true),
            (Some(own), other, role::PASSIVE, false),
            (Some(own), any_v4, role::LISTENER, false),
            (Some(any_v4), any_v4, role::LISTENER, true),
            (Some(any_v4), own, role::LISTENER, false),
            (Some(any_v4), own, role::PASSIVE, true),
            (Some(any_v4), v6, role::PASSIVE, false),
            (Some(any_v6), own, role::PASSIVE, true),
            (Some(any_v6), v6, role::PASSIVE, true),
            (Some(any_v6), any_v4, role::LISTENER, false),
            (Some(own), own, role::UNKNOWN, true),
        ];
        for (addr, local, role, expected) in cases {
            let socket = at(local, role);
            assert_eq!(
                passes(&asked(addr), &socket),
                expected,
                "{addr:?} {socket:?}"
            );
        }
        let elsewhere = Socket {
            local_port: 8080,
            ..socket()
        };
        assert!(!passes(&asked(None), &elsewhere));
    }

    #[test]
    fn a_name_ends_at_its_first_nul() {
        let words = |text: &[u8; 16]| comm_words(text);
        assert_eq!(
            words(b"ls\0h\0\0\0\0\0\0\0\0\0\0\0\0"),
            words(b"ls\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
        );
        assert_eq!(
            words(b"eightbyt\0old\0\0\0\0"),
            words(b"eightbyt\0\0\0\0\0\0\0\0")
        );
        assert_eq!(
            words(b"seven77\0ninebyt\0"),
            words(b"seven77\0\0\0\0\0\0\0\0\0")
        );
        assert_ne!(
            words(b"eightbytX\0\0\0\0\0\0\0"),
            words(b"eightbytY\0\0\0\0\0\0\0")
        );
        assert_eq!(
            words(b"\x01\x80\xff\x01\0\x01\0\0\0\0\0\0\0\0\0\0"),
            words(b"\x01\x80\xff\x01\0\0\0\0\0\0\0\0\0\0\0\0")
        );
        assert_eq!(
            words(b"fifteen bytes15\0")[1],
            u64::from_le_bytes(*b"bytes15\0")
        );
    }
}
