//! Filters: what was typed becomes conditions on a socket ([`Filter`]) and on its owner ([`Owners`]).
//!
//! Both are tested in the kernel, before a record costs anything; where they cannot be, and in a replay, by
//! [`crate::filter`].

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use conntracer_common::filter::{Filter, ListenerEnd, MAX_OF_A_KIND, Network, Used, comm_words};
use thiserror::Error;

use super::{FilterArguments, value::COMM_BYTES};
use crate::conditions::{Conditions, Owners};

/// `f_type` of namespace files (include/uapi/linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// The same of control groups of version 2.
const CGROUP2_MAGIC: i64 = 0x6367_7270;

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
        "{flag} has {given} values, and up to {MAX_OF_A_KIND} can be asked for; leave it out to watch all"
    )]
    TooMany { flag: &'static str, given: usize },
    #[error("--cgroup {path}: not a control group; name a directory below /sys/fs/cgroup", path = path.display())]
    NotGroup { path: PathBuf },
    #[error(
        "--cgroup and --container need control groups of version 2, which are not mounted at {root}; \
         use --pid or --comm, or boot with systemd.unified_cgroup_hierarchy=1", root = root.display()
    )]
    NoGroups { root: PathBuf },
}

/// What was typed, looked up where it is a name.
pub fn resolve(typed: &FilterArguments, roots: &Roots) -> Result<Conditions, FilterError> {
    let inodes = typed
        .netns
        .iter()
        .map(|name| netns_inode(name, roots))
        .collect::<Result<Vec<_>, _>>()?;
    let networks: Vec<Network> = typed.addr.iter().map(|cidr| cidr.network()).collect();
    // All of IPv6 is every address there is, and the mark of an unused place.
    let networks = if networks.contains(&Network::default()) {
        Vec::new()
    } else {
        networks
    };
    let listeners: Vec<ListenerEnd> = typed.listener.iter().map(|end| end.end()).collect();
    let groups = typed
        .cgroup
        .iter()
        .map(|path| group(path, roots))
        .collect::<Result<Vec<_>, _>>()?;
    let owners = Owners {
        pids: typed.pid.clone(),
        comms: typed.comm.iter().map(|comm| name_words(comm)).collect(),
        groups,
        containers: typed.container.clone(),
    };
    let sockets = Filter {
        networks: places("--addr", &networks)?,
        listeners: places("--listener", &listeners)?,
        netns: places("--netns", &inodes)?,
        local_ports: places("--lport", &typed.lport)?,
        remote_ports: places("--rport", &typed.rport)?,
        ports: places("--port", &typed.port)?,
        used: Used {
            networks: count(&networks),
            listeners: count(&listeners),
            netns: count(&inodes),
            local_ports: count(&typed.lport),
            remote_ports: count(&typed.rport),
            ports: count(&typed.port),
            pad: [0; 2],
        },
        owner: owners.conditions(),
    };
    Ok(Conditions { sockets, owners })
}

/// How many places values take; more than there are was refused before.
fn count<T>(values: &[T]) -> u8 {
    u8::try_from(values.len()).unwrap_or(u8::MAX)
}

fn places<T: Copy + Default>(
    flag: &'static str,
    values: &[T],
) -> Result<[T; MAX_OF_A_KIND], FilterError> {
    let mut places = [T::default(); MAX_OF_A_KIND];
    match places.get_mut(..values.len()) {
        Some(used) => {
            used.copy_from_slice(values);
            Ok(places)
        }
        None => Err(FilterError::TooMany {
            flag,
            given: values.len(),
        }),
    }
}

fn name_words(comm: &str) -> [u64; 2] {
    let mut bytes = [0; COMM_BYTES + 1];
    let length = comm.len().min(COMM_BYTES);
    bytes[..length].copy_from_slice(&comm.as_bytes()[..length]);
    comm_words(&bytes)
}

/// The path of a control group below the root of its hierarchy, whether there is such a group or not.
fn group(path: &Path, roots: &Roots) -> Result<String, FilterError> {
    let not = || FilterError::NotGroup {
        path: path.to_owned(),
    };
    let below = path
        .strip_prefix(unified(roots))
        .or_else(|_| path.strip_prefix(&roots.cgroup))
        .or_else(|_| path.strip_prefix("/"))
        .unwrap_or(path);
    let mut group = String::new();
    for part in below.components() {
        let Component::Normal(part) = part else {
            return Err(not());
        };
        group.push('/');
        group.push_str(part.to_str().ok_or_else(not)?);
    }
    if group.is_empty() && path.as_os_str().is_empty() {
        return Err(not());
    }
    Ok(if group.is_empty() {
        "/".to_owned()
    } else {
        group
    })
}

/// Where control groups of version 2 are.
fn unified(roots: &Roots) -> PathBuf {
    let beside = roots.cgroup.join("unified");
    if beside.is_dir() {
        beside
    } else {
        roots.cgroup.clone()
    }
}

/// Whether owners can be told by control group on this host at all.
pub fn check_groups(owners: &Owners, roots: &Roots) -> Result<(), FilterError> {
    let root = unified(roots);
    let is_there = || rustix::fs::statfs(&root).is_ok_and(|found| found.f_type == CGROUP2_MAGIC);
    if owners.has_groups() && !is_there() {
        return Err(FilterError::NoGroups { root });
    }
    Ok(())
}

/// Processes named that do not exist. Another may get the number, which nobody can have meant.
pub fn absent(owners: &Owners, roots: &Roots) -> impl Iterator<Item = u32> {
    owners
        .pids
        .iter()
        .copied()
        .filter(|pid| !roots.proc.join(pid.to_string()).exists())
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

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, os::unix::fs::symlink};

    use conntracer_common::{filter::Plain, record::Socket};
    use rstest::rstest;

    use super::*;
    use crate::cli::value::{Cidr, parse_cidr};

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
        let typed = FilterArguments {
            addr: vec![parse_cidr(cidr).unwrap()],
            ..FilterArguments::default()
        };
        let filter = resolve(&typed, &Roots::default()).unwrap().sockets;
        let host = Cidr {
            address,
            prefix_bits: if address.is_ipv4() { 32 } else { 128 },
        };
        let socket = Socket {
            local_addr: host.network().addr,
            remote_port: 1,
            ..Socket::default()
        };
        assert_eq!(filter.matches::<Plain>(&socket), covered);
    }

    #[test]
    fn a_process_that_does_not_exist_is_told_from_one_that_does() {
        let directory = tempfile::tempdir().unwrap();
        let roots = Roots {
            proc: directory.path().to_owned(),
            ..Roots::default()
        };
        fs::create_dir(directory.path().join("7")).unwrap();
        let owners = Owners {
            pids: vec![7, 8],
            ..Owners::default()
        };
        assert_eq!(absent(&owners, &roots).collect::<Vec<_>>(), [8]);
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

    #[rstest]
    #[case(
        "/sys/fs/cgroup/system.slice/a.service",
        Some("/system.slice/a.service")
    )]
    #[case("/system.slice/a.service/", Some("/system.slice/a.service"))]
    #[case("system.slice//a.service", Some("/system.slice/a.service"))]
    #[case("/", Some("/"))]
    #[case("/sys/fs/cgroup", Some("/"))]
    #[case("", None)]
    #[case("/a/../b", None)]
    fn a_control_group_is_its_path(#[case] path: &str, #[case] expected: Option<&str>) {
        let found = group(Path::new(path), &Roots::default()).ok();
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn too_many_of_a_kind_are_said() {
        let typed = FilterArguments {
            port: vec![1; MAX_OF_A_KIND + 1],
            ..FilterArguments::default()
        };
        let said = resolve(&typed, &Roots::default()).unwrap_err().to_string();
        assert!(
            said.starts_with("--port has 9 values, and up to 8"),
            "{said}"
        );
    }

    #[test]
    fn everywhere_is_no_condition() {
        let typed = FilterArguments {
            addr: vec![
                parse_cidr("10.0.0.0/8").unwrap(),
                parse_cidr("::/0").unwrap(),
            ],
            ..FilterArguments::default()
        };
        let filter = resolve(&typed, &Roots::default()).unwrap().sockets;
        assert_eq!(filter, Filter::NONE);
    }
}
