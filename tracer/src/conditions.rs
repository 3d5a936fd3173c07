//! What a filter says: conditions on sockets and on their owners. Conditions of different kinds must all hold; of
//! those of one kind any will do.
//!
//! Plain data: made from flags by [`crate::cli`], told to the eBPF side by [`crate::kernel`], and tested on events by
//! [`crate::filter`].

use conntracer_common::filter::{Filter, owner_condition};

use crate::owner::path;

/// The whole filter.
#[derive(Clone, Debug)]
pub struct Conditions {
    pub sockets: Filter,
    pub owners: Owners,
}

/// Conditions on owners; an empty list is none, and any of a list will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    pub pids: Vec<u32>,
    /// As `conntracer_common::filter::comm_words` gives them.
    pub comms: Vec<[u64; 2]>,
    /// Control groups by their path below the root, as in `/system.slice/nginx.service`.
    pub groups: Vec<String>,
    /// First characters of containers' ids, or of the names of systemd's machines.
    pub containers: Vec<String>,
}

impl Owners {
    /// Bits of [`owner_condition`].
    #[must_use]
    pub fn conditions(&self) -> u32 {
        let bit = |is_there: bool, bit: u32| if is_there { bit } else { 0 };
        bit(!self.pids.is_empty(), owner_condition::PID)
            | bit(!self.comms.is_empty(), owner_condition::COMM)
            | bit(self.has_groups(), owner_condition::GROUP)
    }

    /// Whether there is a condition on control groups.
    #[must_use]
    pub fn has_groups(&self) -> bool {
        !self.groups.is_empty() || !self.containers.is_empty()
    }

    /// Whether processes of a control group match, by its path below the root.
    #[must_use]
    pub fn matches_group(&self, path: &str) -> bool {
        let within = self.groups.iter().any(|group| is_within(group, path));
        let contained = || {
            path::container(path)
                .is_some_and(|(_, id)| self.containers.iter().any(|first| id.starts_with(first)))
        };
        (self.groups.is_empty() || within) && (self.containers.is_empty() || contained())
    }

    /// The conditions that none of the control groups there are meets, as they are typed.
    #[must_use]
    pub fn missing(&self, there: &[String]) -> Vec<String> {
        let lacks = |owners: Self| !there.iter().any(|path| owners.matches_group(path));
        let group = |group: &String| {
            let groups = vec![group.clone()];
            lacks(Self {
                groups,
                ..Self::default()
            })
            .then(|| format!("--cgroup {group}"))
        };
        let container = |container: &String| {
            let containers = vec![container.clone()];
            lacks(Self {
                containers,
                ..Self::default()
            })
            .then(|| format!("--container {container}"))
        };
        let groups = self.groups.iter().filter_map(group);
        groups
            .chain(self.containers.iter().filter_map(container))
            .collect()
    }
}

/// Whether a control group is `group`, or lies below it.
fn is_within(group: &str, path: &str) -> bool {
    path.strip_prefix(group.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[rstest]
    #[case::container(&[], &["0123456789ab"], true)]
    #[case::other_container(&[], &["123456789ab"], false)]
    #[case::any_container(&[], &["f", "0"], true)]
    #[case::within(&["/system.slice"], &["0"], true)]
    #[case::not_within(&["/user.slice"], &["0"], false)]
    #[case::everything(&["/"], &[], true)]
    fn groups_match_when_every_kind_is_met(
        #[case] groups: &[&str],
        #[case] containers: &[&str],
        #[case] matches: bool,
    ) {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let owners = Owners {
            groups: texts(groups),
            containers: texts(containers),
            ..Owners::default()
        };
        let path = format!("/system.slice/docker-{CONTAINER}.scope");
        assert_eq!(owners.matches_group(&path), matches);
    }

    #[test]
    fn what_no_group_meets_is_said_as_it_is_typed() {
        let owners = Owners {
            groups: vec!["/web".to_owned(), "/db".to_owned()],
            containers: vec!["abc".to_owned()],
            ..Owners::default()
        };
        let there = ["/db/1".to_owned()];
        assert_eq!(owners.missing(&there), ["--cgroup /web", "--container abc"]);
    }
}
