//! What /proc tells of a process that runs.

use std::{fs, os::unix::ffi::OsStringExt, path::Path};

use super::stat::Stat;

/// A process as /proc shows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// When it started, in milliseconds since boot; to the clock tick, 10 ms.
    pub(crate) started_ms: u64,
    /// `None` where it may not be read.
    pub(crate) executable: Option<Vec<u8>>,
    /// Path of its control group in the unified hierarchy.
    pub(crate) cgroup: Option<Vec<u8>>,
}

/// Reads `proc`/`pid`; `None` when there is no such process any more.
pub(crate) fn read(proc: &Path, pid: u32, ticks_per_s: u64) -> Option<Process> {
    let directory = proc.join(pid.to_string());
    let started_ms = started_ms(&fs::read(directory.join("stat")).ok()?, ticks_per_s)?;
    let executable = fs::read_link(directory.join("exe"))
        .ok()
        .map(|path| path.into_os_string().into_vec());
    let cgroup = fs::read(directory.join("cgroup"))
        .ok()
        .and_then(|text| unified(&text).map(<[u8]>::to_vec));
    Some(Process {
        started_ms,
        executable,
        cgroup,
    })
}

fn started_ms(stat: &[u8], ticks_per_s: u64) -> Option<u64> {
    let ticks = Stat::split(stat)?.number(22)?;
    ticks.checked_mul(1000)?.checked_div(ticks_per_s)
}

/// The line of hierarchy 0.
pub(super) fn unified(cgroup: &[u8]) -> Option<&[u8]> {
    cgroup
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))
}

/// Reads `text` as each of the files.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &[u8]) {
    for ticks_per_s in [0, 1, 100] {
        let _read = started_ms(text, ticks_per_s);
    }
    let _read = unified(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_what_it_is() {
        let own = read(Path::new("/proc"), std::process::id(), 100).unwrap();
        let executable = std::env::current_exe().unwrap();
        assert_eq!(own.executable, Some(executable.into_os_string().into_vec()));
        assert!(own.started_ms > 0);
        assert_eq!(read(Path::new("/proc"), u32::MAX, 100), None);
    }

    #[test]
    fn a_name_cannot_move_the_fields() {
        let stat = b"7 (a) 1 2 3) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(started_ms(stat, 100), Some(47_110));
        assert_eq!(started_ms(b"7 (a) S 1", 100), None);
        assert_eq!(started_ms(b"", 100), None);
    }

    #[test]
    fn the_unified_hierarchy_is_found_beside_the_others() {
        assert_eq!(
            unified(b"9:name=systemd:/x\n0::/y\n"),
            Some(b"/y".as_slice())
        );
        assert_eq!(unified(b"9:name=systemd:/x\n"), None);
    }
}
