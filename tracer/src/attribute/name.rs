//! What owners are called, as records told.
//!
//! A process that is gone keeps the names it had.

use jiff::Timestamp;

use crate::{
    event::Process,
    finding::{Container, Finding, Names, Owner},
    owner::path,
    table::Bounded,
};

/// Owners that names are kept of: those of many more findings than are ever open. 6 MB when full.
const MAX_PROCESSES: usize = 16_384;
/// Namespaces that names are kept of.
const MAX_NETNS: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub(super) struct OwnerNames {
    names: Bounded<(u32, u32), Names>,
    netns: Bounded<u32, String>,
}

impl Default for OwnerNames {
    fn default() -> Self {
        Self {
            names: Bounded::new(MAX_PROCESSES),
            netns: Bounded::new(MAX_NETNS),
        }
    }
}

impl OwnerNames {
    /// Names that had to make room.
    pub(super) const fn evicted(&self) -> u64 {
        self.names.evicted().saturating_add(self.netns.evicted())
    }

    /// Learns what a record tells; what it does not tell stays.
    pub(super) fn apply(&mut self, process: &Process) {
        if let Some(name) = text(&process.netns_name, false) {
            self.netns.insert(process.netns, name);
        } else if process.started_unix_ms != 0 {
            // It was there to be looked at, and its namespace has no name: an earlier one with this inode had.
            self.netns.remove(&process.netns);
        }
        let key = (process.pid, process.started_ms);
        let before = self.names.remove(&key).unwrap_or_default();
        let cgroup = text(&process.cgroup, process.cgroup_cut);
        let (container, unit) = match cgroup.as_deref() {
            Some(path) => (container(path), path::unit(path).map(str::to_owned)),
            None => (before.container, before.unit),
        };
        self.names.insert(
            key,
            Names {
                started: started(process.started_unix_ms).or(before.started),
                executable: text(&process.executable, process.executable_cut).or(before.executable),
                cgroup: cgroup.or(before.cgroup),
                container,
                unit,
                netns_name: None,
            },
        );
    }

    /// Another namespace has this inode by now.
    pub(super) fn forget_netns(&mut self, inode: u32) {
        self.netns.remove(&inode);
    }

    /// Names the owners of a finding.
    pub(super) fn name(&self, finding: &mut Finding) {
        let netns = finding.subject.netns();
        for owner in finding.owner.iter_mut().chain(&mut finding.owners) {
            self.name_owner(owner, netns);
        }
    }

    /// Names the owner of a socket in `netns`.
    pub(super) fn name_owner(&self, owner: &mut Owner, netns: Option<u32>) {
        if let Some(names) = self.names.get(&(owner.pid, owner.started_ms)) {
            owner.names = names.clone();
        }
        owner.names.netns_name = netns.and_then(|inode| self.netns.get(&inode).cloned());
    }
}

fn container(path: &str) -> Option<Container> {
    path::container(path).map(|(runtime, id)| Container {
        runtime: runtime.into(),
        id: id.to_owned(),
    })
}

fn started(unix_ms: u64) -> Option<String> {
    let unix_ms = i64::try_from(unix_ms)
        .ok()
        .filter(|unix_ms| *unix_ms != 0)?;
    let time = Timestamp::from_millisecond(unix_ms).ok()?;
    Some(format!("{time:.3}"))
}

/// The bytes before the first NUL; what is not UTF-8 becomes U+FFFD.
fn text(bytes: &[u8], cut: bool) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let bytes = &bytes[..end.unwrap_or(bytes.len())];
    let lead = if cut { "…" } else { "" };
    (!bytes.is_empty()).then(|| format!("{lead}{}", String::from_utf8_lossy(bytes)))
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::{CGROUP_BYTES, EXECUTABLE_BYTES, NETNS_NAME_BYTES};

    use super::*;

    fn padded<const N: usize>(text: &str) -> [u8; N] {
        let mut bytes = [0; N];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    fn process(started_ms: u32) -> Process {
        Process {
            pid: 7,
            started_ms,
            started_unix_ms: 1_700_000_000_010,
            netns: 4026,
            cgroup_id: 1,
            executable: padded::<EXECUTABLE_BYTES>("/usr/sbin/nginx"),
            executable_cut: false,
            cgroup: padded::<CGROUP_BYTES>("/system.slice/nginx.service"),
            cgroup_cut: false,
            netns_name: padded::<NETNS_NAME_BYTES>("blue"),
        }
    }

    fn named(known: &OwnerNames, pid: u32, started_ms: u32) -> Names {
        let mut owner = Owner {
            pid,
            comm: "nginx".to_owned(),
            uid: 0,
            cgroup_id: 1,
            source: "accept".into(),
            started_ms,
            names: Names::default(),
        };
        known.name_owner(&mut owner, Some(4026));
        owner.names
    }

    #[test]
    fn a_process_that_is_gone_keeps_its_names() {
        let mut names = OwnerNames::default();
        names.apply(&process(1));
        names.apply(&Process {
            started_unix_ms: 0,
            executable: [0; EXECUTABLE_BYTES],
            cgroup: [0; CGROUP_BYTES],
            netns_name: [0; NETNS_NAME_BYTES],
            ..process(1)
        });
        let kept = named(&names, 7, 1);
        assert_eq!(kept.executable.as_deref(), Some("/usr/sbin/nginx"));
        assert_eq!(kept.unit.as_deref(), Some("nginx.service"));
        assert_eq!(kept.netns_name.as_deref(), Some("blue"));
        assert_eq!(kept.started.as_deref(), Some("2023-11-14T22:13:20.010Z"));
    }

    #[test]
    fn a_namespace_does_not_inherit_a_name_with_its_inode() {
        let mut names = OwnerNames::default();
        names.apply(&process(1));
        names.apply(&Process {
            netns_name: [0; NETNS_NAME_BYTES],
            ..process(2)
        });
        assert_eq!(named(&names, 7, 2).netns_name, None);
        names.apply(&process(1));
        assert!(named(&names, 7, 1).netns_name.is_some());
        names.forget_netns(4026);
        assert_eq!(named(&names, 7, 1).netns_name, None);
    }

    #[test]
    fn a_pid_alone_has_no_name() {
        let mut names = OwnerNames::default();
        names.apply(&process(1));
        assert_eq!(named(&names, 7, 2).executable, None);
        assert_eq!(named(&names, 8, 1).executable, None);
    }

    #[test]
    fn what_was_cut_says_so() {
        let mut names = OwnerNames::default();
        names.apply(&Process {
            executable_cut: true,
            ..process(1)
        });
        let executable = named(&names, 7, 1).executable;
        assert_eq!(executable.as_deref(), Some("…/usr/sbin/nginx"));
    }
}
