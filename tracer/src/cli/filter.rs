//! Filters: what was typed becomes what the kernel half tests ([`Filter`]) and what is tested by owner
//! on the way to the sinks ([`OwnerFilter`]).
//!
//! The kernel decides by endpoint and netns, before a record costs anything. Owners are decided here:
//! a socket's owner may be learned after its first records.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use conntracer_common::filter::{Filter, MAX_NETNS};
use thiserror::Error;

use super::{Cidr, FilterArguments};
use crate::{
    event::Body,
    finding::{Finding, Subject},
};

/// `f_type` of namespace files (include/uapi/linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What the files a filter names live under; tests put their own here.
#[derive(Clone, Debug)]
pub struct Roots {
    pub proc: PathBuf,
    pub run_netns: PathBuf,
    pub cgroup: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            run_netns: PathBuf::from("/run/netns"),
            cgroup: PathBuf::from("/sys/fs/cgroup"),
        }
    }
}

/// Why a filter cannot be what it says; one sentence with the remedy.
#[derive(Debug, Error)]
pub enum FilterError {
    #[error("--netns {netns}: {source} ({path}); name one of `ip netns`, a path, `pid:N`, an inode number or `self`", path = path.display())]
    Netns {
        netns: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("--netns {netns}: {path} is not a network namespace; it may have been deleted", path = path.display())]
    NotNetns { netns: String, path: PathBuf },
    #[error(
        "--netns is given {given} times; up to {MAX_NETNS} namespaces can be asked for, or leave it out and watch all"
    )]
    TooManyNetns { given: usize },
    #[error("--cgroup {path}: {source}; name a directory below /sys/fs/cgroup", path = path.display())]
    Cgroup { path: PathBuf, source: io::Error },
}

/// Parses `ADDRESS` or `ADDRESS/BITS`.
pub fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address
        .parse()
        .map_err(|_| "write an address such as 10.1.2.3, 10.0.0.0/8 or 2001:db8::/32".to_owned())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix_bits = match bits {
        None => most,
        Some(bits) => bits
            .parse()
            .ok()
            .filter(|bits| *bits <= most)
            .ok_or_else(|| format!("the prefix length must be 0 to {most}"))?,
    };
    Ok(Cidr {
        address,
        prefix_bits,
    })
}

impl Cidr {
    /// Address and mask as records carry them: network order words, IPv4 mapped into IPv6.
    #[must_use]
    pub fn words(self) -> ([u32; 4], [u32; 4]) {
        let (address, bits) = match self.address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), u32::from(self.prefix_bits) + 96),
            IpAddr::V6(v6) => (v6, self.prefix_bits.into()),
        };
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        (words(address), words(Ipv6Addr::from_bits(mask)))
    }
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, octets) in words.iter_mut().zip(address.octets().as_chunks().0) {
        *word = u32::from_ne_bytes(*octets);
    }
    words
}

/// The part that the kernel half tests.
pub fn kernel_filter(typed: &FilterArguments, roots: &Roots) -> Result<Filter, FilterError> {
    let (addr, mask) = typed.addr.map_or(([0; 4], [0; 4]), Cidr::words);
    if typed.netns.len() > MAX_NETNS {
        return Err(FilterError::TooManyNetns {
            given: typed.netns.len(),
        });
    }
    let mut netns = [0; MAX_NETNS];
    for (inode, name) in netns.iter_mut().zip(&typed.netns) {
        *inode = netns_inode(name, roots)?;
    }
    Ok(Filter {
        addr: [
            addr[0] & mask[0],
            addr[1] & mask[1],
            addr[2] & mask[2],
            addr[3] & mask[3],
        ],
        mask,
        netns,
        local_port: typed.lport.unwrap_or(0),
        remote_port: typed.rport.unwrap_or(0),
        port: typed.port.unwrap_or(0),
        pad: 0,
    })
}

fn netns_inode(netns: &str, roots: &Roots) -> Result<u32, FilterError> {
    if let Some(inode) = netns.parse::<u32>().ok().filter(|inode| *inode != 0) {
        return Ok(inode);
    }
    let path = match netns.strip_prefix("pid:") {
        Some(pid) => roots.proc.join(pid).join("ns/net"),
        None if netns == "self" => roots.proc.join("self/ns/net"),
        None if netns.contains('/') => PathBuf::from(netns),
        None => roots.run_netns.join(netns),
    };
    let failed = |source| FilterError::Netns {
        netns: netns.to_owned(),
        path: path.clone(),
        source,
    };
    let magic = rustix::fs::statfs(&path)
        .map_err(|errno| failed(errno.into()))?
        .f_type;
    let inode = fs::metadata(&path).map_err(failed)?.ino();
    // A name left in /run/netns by a dead mount is an ordinary file with an inode of its own.
    u32::try_from(inode)
        .ok()
        .filter(|_| magic == NSFS_MAGIC)
        .ok_or_else(|| FilterError::NotNetns {
            netns: netns.to_owned(),
            path: path.clone(),
        })
}

/// Conditions on the owner; empty ones ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerFilter {
    pids: Vec<u32>,
    comms: Vec<String>,
    cgroup_ids: Option<BTreeSet<u64>>,
}

impl OwnerFilter {
    /// Control groups are looked up once: one that is made below the named one later is not seen.
    pub fn resolve(typed: &FilterArguments, roots: &Roots) -> Result<Self, FilterError> {
        let cgroup_ids = typed
            .cgroup
            .as_deref()
            .map(|path| cgroup_ids(path, roots))
            .transpose()?;
        Ok(Self {
            pids: typed.pid.clone(),
            comms: typed.comm.clone(),
            cgroup_ids,
        })
    }

    /// Whether a finding is to be shown.
    #[must_use]
    pub fn passes_finding(&self, finding: &Finding) -> bool {
        match (&finding.owner, &finding.subject) {
            (Some(owner), _) => finding
                .owners
                .iter()
                .chain([owner])
                .any(|owner| self.passes(owner.pid, &owner.comm, Some(owner.cgroup_id))),
            (None, Subject::Process { pid, comm, .. }) => self.passes(*pid, comm, None),
            (None, _) => self.asks_nothing(),
        }
    }

    /// Whether an event is to be shown.
    #[must_use]
    pub fn passes_event(&self, body: &Body) -> bool {
        if self.asks_nothing() {
            return true;
        }
        body.owner().is_some_and(|owner| {
            self.passes(owner.pid, &owner.comm.to_text(), Some(owner.cgroup_id))
        })
    }

    const fn asks_nothing(&self) -> bool {
        self.pids.is_empty() && self.comms.is_empty() && self.cgroup_ids.is_none()
    }

    fn passes(&self, pid: u32, comm: &str, cgroup_id: Option<u64>) -> bool {
        (self.pids.is_empty() || self.pids.contains(&pid))
            && (self.comms.is_empty() || self.comms.iter().any(|wanted| wanted == comm))
            && self
                .cgroup_ids
                .as_ref()
                .is_none_or(|ids| cgroup_id.is_some_and(|id| ids.contains(&id)))
    }
}

/// Inodes of a control group's directory and of all below it.
fn cgroup_ids(path: &Path, roots: &Roots) -> Result<BTreeSet<u64>, FilterError> {
    let failed = |source| FilterError::Cgroup {
        path: path.to_owned(),
        source,
    };
    let top = if path.starts_with(&roots.cgroup) {
        path.to_owned()
    } else {
        roots.cgroup.join(path.strip_prefix("/").unwrap_or(path))
    };
    let mut ids = BTreeSet::from([fs::metadata(&top).map_err(failed)?.ino()]);
    let mut left = vec![top];
    while let Some(directory) = left.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Control groups come and go while they are walked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                ids.extend(entry.metadata().map(|metadata| metadata.ino()).ok());
                left.push(entry.path());
            }
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.0.0.0/8", "10.9.8.7", true)]
    #[case("10.0.0.0/8", "11.0.0.1", false)]
    #[case("0.0.0.0/0", "203.0.113.9", true)]
    #[case("0.0.0.0/0", "2001:db8::1", false)]
    #[case("2001:db8::/33", "2001:db8:7fff::1", true)]
    #[case("2001:db8::/33", "2001:db8:8000::1", false)]
    #[case("::/0", "192.0.2.1", true)]
    #[case("192.0.2.1", "192.0.2.1", true)]
    #[case("192.0.2.1", "192.0.2.2", false)]
    fn cidr_covers_what_it_says(
        #[case] cidr: &str,
        #[case] address: IpAddr,
        #[case] covered: bool,
    ) {
        let (addr, mask) = parse_cidr(cidr).unwrap().words();
        let (candidate, _) = Cidr {
            address,
            prefix_bits: 0,
        }
        .words();
        let within = (0..4).all(|word| (addr[word] ^ candidate[word]) & mask[word] == 0);
        assert_eq!(within, covered);
    }

    #[rstest]
    #[case("10.0.0.0/33")]
    #[case("2001:db8::/129")]
    #[case("10.0.0")]
    #[case("10.0.0.0/")]
    #[case("")]
    fn wrong_cidr_is_refused(#[case] cidr: &str) {
        assert!(parse_cidr(cidr).is_err());
    }

    #[test]
    fn own_netns_has_the_inode_the_kernel_shows() {
        let link = fs::read_link("/proc/self/ns/net").unwrap();
        let shown: u32 = link
            .to_str()
            .and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok())
            .unwrap();
        let roots = Roots::default();
        assert_eq!(netns_inode("self", &roots).unwrap(), shown);
        assert_eq!(
            netns_inode(&format!("pid:{}", std::process::id()), &roots).unwrap(),
            shown
        );
        assert_eq!(netns_inode("/proc/self/ns/net", &roots).unwrap(), shown);
        assert_eq!(netns_inode(&shown.to_string(), &roots).unwrap(), shown);
    }

    #[test]
    fn a_name_is_looked_up_under_run_netns() {
        let directory = tempfile::tempdir().unwrap();
        symlink("/proc/self/ns/net", directory.path().join("blue")).unwrap();
        fs::write(directory.path().join("dead"), "").unwrap();
        let roots = Roots {
            run_netns: directory.path().to_owned(),
            ..Roots::default()
        };
        assert!(netns_inode("blue", &roots).is_ok());
        assert!(matches!(
            netns_inode("dead", &roots),
            Err(FilterError::NotNetns { .. })
        ));
        assert!(matches!(
            netns_inode("none", &roots),
            Err(FilterError::Netns { .. })
        ));
    }

    #[test]
    fn a_cgroup_brings_its_descendants() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("web/worker");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir(directory.path().join("other")).unwrap();
        let roots = Roots {
            cgroup: directory.path().to_owned(),
            ..Roots::default()
        };
        let ids = cgroup_ids(Path::new("/web"), &roots).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(
            ids,
            BTreeSet::from([inode(&directory.path().join("web")), inode(&deep)])
        );
        assert!(cgroup_ids(Path::new("gone"), &roots).is_err());
    }

    #[rstest]
    #[case::nothing_asked(&[], &[], true)]
    #[case::pid(&[7], &[], true)]
    #[case::other_pid(&[8], &[], false)]
    #[case::both(&[7], &["nginx"], true)]
    #[case::other_comm(&[7], &["ngin"], false)]
    fn owners_pass_when_all_conditions_hold(
        #[case] pid: &[u32],
        #[case] comm: &[&str],
        #[case] passes: bool,
    ) {
        let filter = OwnerFilter {
            pids: pid.to_vec(),
            comms: comm.iter().map(|comm| (*comm).to_owned()).collect(),
            cgroup_ids: None,
        };
        assert_eq!(filter.passes(7, "nginx", Some(1)), passes);
    }
}
