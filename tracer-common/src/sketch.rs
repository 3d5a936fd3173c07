//! How many distinct addresses were seen, in a few hundred bytes: the registers of a HyperLogLog
//! (Flajolet, Fusy, Gandouet, Meunier, 2007).
//!
//! An address is hashed; the low bits of the hash choose a register, which keeps the longest run of
//! leading zeros of the rest. The eBPF side fills registers, userspace makes numbers of them.

/// Registers for source addresses: a standard error of 1.04 / √256 = 6.5 %.
pub const ADDRESSES: usize = 256;
/// Registers for their networks: 13 %, enough to tell one from several from many.
pub const PREFIXES: usize = 64;

/// 64 well mixed bits of an address (network order words). Clients choose their addresses: who does
/// not know `seed` cannot choose what they count as.
#[must_use]
#[expect(clippy::inline_always, reason = "a BPF program has no calls to spare")]
#[inline(always)]
pub const fn hash(addr: &[u32; 4], seed: u64) -> u64 {
    let upper = (addr[0] as u64) << 32 | addr[1] as u64;
    let lower = (addr[2] as u64) << 32 | addr[3] as u64;
    mixed(mixed(upper ^ seed) ^ lower)
}

/// The finaliser of `SplitMix64` (Steele, Lea, Flood, 2014).
#[expect(clippy::inline_always, reason = "a BPF program has no calls to spare")]
#[inline(always)]
const fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The network that an address belongs to, as far as routes and owners go: /24 of IPv4 (v4-mapped),
/// /48 of IPv6.
#[must_use]
#[expect(clippy::inline_always, reason = "a BPF program has no calls to spare")]
#[inline(always)]
pub const fn prefix(addr: &[u32; 4]) -> [u32; 4] {
    if addr[0] == 0 && addr[1] == 0 && addr[2] == 0xffff_u32.to_be() {
        [0, 0, addr[2], addr[3] & 0xffff_ff00_u32.to_be()]
    } else {
        [addr[0], addr[1] & 0xffff_0000_u32.to_be(), 0, 0]
    }
}

/// What a hash puts into its register of `registers` (a power of two): one more than the leading
/// zeros of its upper bits.
#[must_use]
#[expect(clippy::inline_always, reason = "a BPF program has no calls to spare")]
#[expect(clippy::cast_possible_truncation, reason = "at most 64")]
#[inline(always)]
pub const fn rank(hash: u64, registers: usize) -> u8 {
    (hash | (registers as u64 - 1)).leading_zeros() as u8 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn v4(octets: [u8; 4]) -> [u32; 4] {
        [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(octets)]
    }

    #[test]
    fn networks_are_24_bits_of_ipv4_and_48_of_ipv6() {
        assert_eq!(prefix(&v4([192, 0, 2, 77])), v4([192, 0, 2, 0]));
        let v6 = [0x2001_0db8_u32, 0x1234_5678, 9, 7].map(u32::to_be);
        let network = [0x2001_0db8_u32, 0x1234_0000, 0, 0].map(u32::to_be);
        assert_eq!(prefix(&v6), network);
    }

    #[test]
    fn a_rank_is_one_more_than_the_zeros_before_the_first_one() {
        assert_eq!(rank(1 << 63, ADDRESSES), 1);
        assert_eq!(rank(1 << 60, ADDRESSES), 4);
        assert_eq!(rank(0, ADDRESSES), 64 - 8 + 1);
        assert_eq!(rank(0, PREFIXES), 64 - 6 + 1);
    }

    #[test]
    fn the_seed_decides_where_an_address_goes() {
        let addr = v4([192, 0, 2, 1]);
        assert_ne!(hash(&addr, 1), hash(&addr, 2));
        assert_eq!(hash(&addr, 1), hash(&addr, 1));
    }
}
