//! What a network namespace counts, as the /proc of a process in it shows.

use std::{fs, path::Path};

/// A column of /proc/net/stat/nf_conntrack.
pub(crate) const ENTRIES: &str = "entries";

/// `net.netfilter.nf_conntrack_max`: the same number for every namespace, and shown in all.
pub(crate) fn conntrack_max(proc: &Path) -> Option<u64> {
    let text = fs::read_to_string(proc.join("sys/net/netfilter/nf_conntrack_max")).ok()?;
    text.trim().parse().ok()
}

/// The sum of all CPUs in each column of `net`/stat/nf_conntrack, by its name; `None` where there is no conntrack. How
/// many entries there are is the same in each line.
pub(crate) fn conntrack(net: &Path) -> Option<Vec<(String, u64)>> {
    parse_conntrack(&fs::read_to_string(net.join("stat/nf_conntrack")).ok()?)
}

fn parse_conntrack(text: &str) -> Option<Vec<(String, u64)>> {
    let mut lines = text.lines();
    let mut columns: Vec<(String, u64)> = lines
        .next()?
        .split_ascii_whitespace()
        .map(|name| (name.to_owned(), 0))
        .collect();
    for line in lines {
        for ((name, sum), value) in columns.iter_mut().zip(line.split_ascii_whitespace()) {
            let value = u64::from_str_radix(value, 16).ok()?;
            *sum = if name == ENTRIES {
                value
            } else {
                sum.saturating_add(value)
            };
        }
    }
    Some(columns)
}

/// A counter of `net`/snmp: the lines of a protocol are its names, and then its values.
pub(crate) fn snmp(text: &str, protocol: &str, counter: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(':'));
    let at = lines
        .next()?
        .split_ascii_whitespace()
        .position(|name| name == counter)?;
    lines.next()?.split_ascii_whitespace().nth(at)?.parse().ok()
}

/// A counter of `net`/snmp6: a name and a value in each line.
pub(crate) fn snmp6(text: &str, counter: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == counter).then(|| words.next()?.parse().ok())?
    })
}

/// Reads `text` as each of the files.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let _read = parse_conntrack(&text);
    let _read = snmp(&text, "Icmp", "InDestUnreachs");
    let _read = snmp6(&text, "Icmp6InDestUnreachs");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_all_cpus_are_summed_and_entries_are_not() {
        let text =
            "entries  clashres found drop\n00000010  00000001 0 00000002\n00000010 0 0 0000000a\n";
        let columns = parse_conntrack(text).unwrap();
        let expected = [("entries", 16), ("clashres", 1), ("found", 0), ("drop", 12)];
        assert_eq!(columns, expected.map(|(name, sum)| (name.to_owned(), sum)));
        assert_eq!(parse_conntrack(""), None);
        assert_eq!(parse_conntrack("entries\nzz"), None);
    }

    #[test]
    fn counters_are_found_by_name() {
        let text = "Ip: A B\nIp: 1 2\nIcmp: InMsgs InDestUnreachs\nIcmp: 7 5\nIcmpMsg: InType3\nIcmpMsg: 9\n";
        assert_eq!(snmp(text, "Icmp", "InDestUnreachs"), Some(5));
        assert_eq!(snmp(text, "Icmp", "OutMsgs"), None);
        let text = "Ip6InReceives  4\nIcmp6InDestUnreachs                  \t3\n";
        assert_eq!(snmp6(text, "Icmp6InDestUnreachs"), Some(3));
    }
}
