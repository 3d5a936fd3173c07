//! Which part of a kernel without drop reasons dropped a packet: by the function that the address of the
//! drop lies in.
//!
//! Only the functions that tell something are looked up, and only on such kernels: /proc/kallsyms has
//! two hundred thousand lines.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use conntracer_common::record::{EarlyDrop, early_drop_place, kind};
use zerocopy::{FromBytes, IntoBytes};

use super::header::is_of;

/// Functions without the suffixes that compilers add, as 5.10 has them.
const FUNCTIONS: &[(&str, u8)] = &[
    ("nf_hook_slow", early_drop_place::NETFILTER),
    ("ip_rcv_finish", early_drop_place::ROUTE),
    ("ip_rcv_finish_core", early_drop_place::ROUTE),
    ("ip_error", early_drop_place::ROUTE),
    ("ip6_pkt_drop", early_drop_place::ROUTE),
    ("tcp_v4_rcv", early_drop_place::TCP),
    ("tcp_v6_rcv", early_drop_place::TCP),
    ("tcp_v4_do_rcv", early_drop_place::TCP),
    ("tcp_v6_do_rcv", early_drop_place::TCP),
    ("tcp_rcv_state_process", early_drop_place::TCP),
];

/// Where the code of those functions lies.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<(std::ops::Range<u64>, u8)>);

impl Places {
    /// From /proc/kallsyms; empty where addresses are kept from us.
    pub(super) fn read() -> io::Result<Self> {
        Self::parse(BufReader::new(File::open("/proc/kallsyms")?))
    }

    pub(super) fn parse(symbols: impl BufRead) -> io::Result<Self> {
        ranges(symbols, FUNCTIONS).map(Self)
    }
}

/// Where the code of some functions lies, and what is said of each.
pub(super) fn functions(wanted: &[(&str, u8)]) -> io::Result<Vec<(std::ops::Range<u64>, u8)>> {
    ranges(BufReader::new(File::open("/proc/kallsyms")?), wanted)
}

fn ranges(
    symbols: impl BufRead,
    functions: &[(&str, u8)],
) -> io::Result<Vec<(std::ops::Range<u64>, u8)>> {
    let mut starts = Vec::new();
    let mut wanted = Vec::new();
    for line in symbols.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Ok(address) = u64::from_str_radix(address, 16) else {
            continue;
        };
        if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
            continue;
        }
        starts.push(address);
        let function = name.split('.').next().unwrap_or(name);
        if let Some((_, place)) = functions.iter().find(|(known, _)| *known == function) {
            wanted.push((address, *place));
        }
    }
    starts.sort_unstable();
    let end = |start| {
        let next = starts.partition_point(|address| *address <= start);
        starts.get(next).copied().unwrap_or(start)
    };
    Ok(wanted
        .into_iter()
        .map(|(start, place)| (start..end(start), place))
        .collect())
}

impl Places {
    /// One of [`early_drop_place`]. A return address behind a call that never returns may be the next
    /// function's first: such calls free nothing.
    fn of(&self, location: u64) -> u8 {
        self.0
            .iter()
            .find(|(range, _)| range.contains(&location))
            .map_or(early_drop_place::UNKNOWN, |(_, place)| *place)
    }

    /// Hands a record on, with the place named where it is an early drop that has an address.
    pub(super) fn name(&self, record: &[u8], feed: &mut dyn FnMut(&[u8])) {
        if !self.0.is_empty()
            && is_of(kind::EARLY_DROP, record)
            && let Ok((mut early_drop, _)) = EarlyDrop::read_from_prefix(record)
        {
            early_drop.place = self.of(early_drop.location);
            feed(early_drop.as_bytes());
        } else {
            feed(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const SYMBOLS: &str = "\
ffffffff81000000 T _text
ffffffff81000100 t ip_rcv_finish_core.isra.0
ffffffff81000300 T tcp_v4_rcv
ffffffff81000380 d not_code
ffffffff81000400 T after
ffffffff81000500 T nf_hook_slow\t[nf]
ffffffff81000600 T last
";

    #[rstest]
    #[case::before(0xffff_ffff_8100_00ff, early_drop_place::UNKNOWN)]
    #[case::suffixed(0xffff_ffff_8100_0100, early_drop_place::ROUTE)]
    #[case::data_does_not_end_a_function(0xffff_ffff_8100_03ff, early_drop_place::TCP)]
    #[case::behind(0xffff_ffff_8100_0400, early_drop_place::UNKNOWN)]
    #[case::of_a_module(0xffff_ffff_8100_0555, early_drop_place::NETFILTER)]
    fn an_address_lies_in_its_function(#[case] address: u64, #[case] place: u8) {
        let places = Places::parse(SYMBOLS.as_bytes()).unwrap();
        assert_eq!(places.of(address), place);
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let symbols = "0000000000000000 T tcp_v4_rcv\n0000000000000000 T after\n";
        let places = Places::parse(symbols.as_bytes()).unwrap();
        assert_eq!(places.of(0), early_drop_place::UNKNOWN);
    }

    #[test]
    fn only_refusals_are_touched() {
        let places = Places::parse(SYMBOLS.as_bytes()).unwrap();
        let mut early_drop = EarlyDrop {
            location: 0xffff_ffff_8100_0310,
            ..EarlyDrop::default()
        };
        early_drop.header.kind = kind::DROP;
        places.name(early_drop.as_bytes(), &mut |record| {
            assert_eq!(record, early_drop.as_bytes());
        });
        early_drop.header.kind = kind::EARLY_DROP;
        let mut seen = 0;
        places.name(early_drop.as_bytes(), &mut |record| {
            let named = EarlyDrop::read_from_bytes(record).unwrap();
            assert_eq!(named.place, early_drop_place::TCP);
            seen += 1;
        });
        assert_eq!(seen, 1);
    }
}
