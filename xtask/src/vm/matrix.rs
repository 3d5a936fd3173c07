//! Which VMs a whole run of the tests boots, and why these.
//!
//! What most users have, `auto` by ring buffer, runs everything on every kernel. Hook mode, transport and kernel meet in
//! pairs besides: a fault that needs a certain three of them is rare, and VMs for all of them would take far longer.

use anyhow::Result;

use super::plan::{Hooks, Setup, Transport};
use crate::kernel::{self, LINES};

/// The second VM of each kernel line, so that each mode meets each transport and an older and a newer kernel. 5.10 has
/// the mode in which it differs most from the others; 6.18 has `auto`, as its hooks are those of its neighbours.
const SECOND: [(&str, &str, Transport); 5] = [
    ("5.10", "tracepoint", Transport::Perf),
    ("6.1", "kprobe", Transport::Ringbuf),
    ("6.12", "tracepoint", Transport::Ringbuf),
    ("6.18", "auto", Transport::Perf),
    ("7.x", "kprobe", Transport::Perf),
];

/// What the second VMs run: what the eBPF side decides or counts by another hook, and one kind of event by either
/// transport. Owners, holders, filters and the life of the process do not depend on the hook type.
const WHERE_HOOKS_DIFFER: [&str; 13] = [
    "connect_failure::",
    "connection_drop::each",
    "doctor::e",
    "early_drop::every",
    "emit::every_connection",
    "half_open::dead_peer_is",
    "handshake::requests",
    "listener::",
    "retransmit::",
    "send_stall::",
    "syn_drop::",
    "--skip",
    "_v6",
];

/// Every kernel line twice: all tests by `auto`, and what differs in another mode or by the other transport.
pub(crate) fn ordinary() -> Result<Vec<Setup>> {
    let mut setups: Vec<Setup> = LINES.iter().map(|line| Setup::of(line, "auto")).collect();
    for (line, hooks, transport) in SECOND {
        setups.push(Setup {
            transport,
            filters: WHERE_HOOKS_DIFFER.map(str::to_owned).to_vec(),
            ..Setup::of(kernel::line(line)?, hooks)
        });
    }
    Ok(setups)
}

/// Every kernel line in every mode, all tests, each with a conntracer of its own.
pub(crate) fn unshared() -> Vec<Setup> {
    LINES
        .iter()
        .flat_map(|line| {
            Hooks::All.modes().iter().map(move |hooks| Setup {
                is_unshared: true,
                ..Setup::of(line, hooks)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        fs,
        path::Path,
    };

    use super::*;

    #[test]
    fn every_kernel_runs_all_tests_by_auto_and_has_a_second_vm() {
        let setups = ordinary().unwrap();
        for line in &LINES {
            let of_line: Vec<_> = setups.iter().filter(|setup| setup.line == line).collect();
            let all = Setup::of(line, "auto");
            assert!(of_line.contains(&&all), "{}", line.name);
            let names: BTreeSet<_> = of_line.iter().map(|setup| setup.name()).collect();
            assert_eq!(names.len(), 2, "{}: {names:?}", line.name);
        }
    }

    #[test]
    fn every_mode_meets_every_transport_and_kernels_of_two_ages() {
        let setups = ordinary().unwrap();
        let pairs: BTreeSet<_> = setups.iter().map(Setup::name).collect();
        let all = Hooks::All
            .modes()
            .iter()
            .flat_map(|hooks| [(*hooks).to_owned(), format!("{hooks}-perf")]);
        assert_eq!(pairs, all.collect());
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        for setup in &setups {
            *lines.entry(setup.hooks).or_default() += 1;
        }
        assert!(lines.values().all(|&lines| lines >= 2), "{lines:?}");
    }

    #[test]
    fn each_filter_names_tests_that_there_are() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/kernel");
        for filter in WHERE_HOOKS_DIFFER {
            let Some((module, name)) = filter.split_once("::") else {
                continue;
            };
            let text = fs::read_to_string(directory.join(format!("{module}.rs"))).unwrap();
            assert!(text.contains(&format!("\nfn {name}")), "{filter}");
        }
    }

    #[test]
    fn the_unshared_vms_are_every_kernel_in_every_mode() {
        let setups = unshared();
        let places: BTreeSet<_> = setups
            .iter()
            .map(|setup| (setup.line.name, setup.name()))
            .collect();
        assert_eq!(places.len(), LINES.len() * 3);
        assert!(setups.iter().all(|setup| setup.filters.is_empty()));
    }
}
