//! Addresses as records have them: network order words, IPv4 as v4-mapped IPv6.

use conntracer_common::tcp::AF_INET;

const MAPPED: u32 = 0xffff_u32.to_be();

/// Whether an address is of IPv4, whatever the socket's family.
pub(super) fn is_v4(addr: &[u32; 4], family: u16) -> bool {
    family == AF_INET || addr[..3] == [0, 0, MAPPED]
}

/// Whether it stands for all addresses.
pub(super) fn is_unspecified(addr: &[u32; 4]) -> bool {
    matches!(*addr, [0, 0, 0 | MAPPED, 0])
}
