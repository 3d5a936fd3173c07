//! Control groups: their paths by id, and what a path tells of containers and systemd units.

use std::{
    collections::HashMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use foldhash::quality::RandomState;

/// Control groups known at once; a host has as many as it has services and containers.
const MAX_CGROUPS: usize = 16_384;
/// Shortest time between two walks of the hierarchy: one of 1,000 groups takes 5 ms.
const WALK_INTERVAL: Duration = Duration::from_secs(1);

/// Paths by id. The id of a group is the inode of its directory.
#[derive(Debug)]
pub(crate) struct Cgroups {
    root: PathBuf,
    paths: HashMap<u64, Vec<u8>, RandomState>,
    walked: Option<Instant>,
}

impl Cgroups {
    /// Of this host.
    pub(crate) fn of_host() -> Self {
        Self::new(Path::new("/sys/fs/cgroup"))
    }

    /// Of the hierarchy mounted at `mount`, or of the one beside version 1's.
    pub(crate) fn new(mount: &Path) -> Self {
        let unified = mount.join("unified");
        let root = if unified.is_dir() {
            unified
        } else {
            mount.to_owned()
        };
        Self {
            root,
            paths: HashMap::default(),
            walked: None,
        }
    }

    /// The path of a group below the root. `hint` is where a process says it is now, which spares a walk.
    pub(crate) fn path(&mut self, id: u64, hint: Option<&[u8]>, now: Instant) -> Option<&[u8]> {
        if !self.paths.contains_key(&id) {
            self.learn(id, hint, now);
        }
        self.paths.get(&id).map(Vec::as_slice)
    }

    /// The path of a group that was met.
    pub(crate) fn known(&self, id: u64) -> Option<&[u8]> {
        self.paths.get(&id).map(Vec::as_slice)
    }

    /// Looks for groups; false when it is too early to, and some are not known.
    pub(crate) fn learn_all(&mut self, ids: &[u64], now: Instant) -> bool {
        if ids.iter().all(|id| self.paths.contains_key(id)) {
            return true;
        }
        self.walk_when_due(now)
    }

    /// Every group there is, with its path.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = (u64, &[u8])> {
        self.walk();
        self.paths.iter().map(|(id, path)| (*id, path.as_slice()))
    }

    fn learn(&mut self, id: u64, hint: Option<&[u8]>, now: Instant) {
        let below = hint.and_then(|path| path.strip_prefix(b"/"));
        if let (Some(path), Some(below)) = (hint, below) {
            let directory = self.root.join(std::ffi::OsStr::from_bytes(below));
            if fs::metadata(directory).is_ok_and(|metadata| metadata.ino() == id) {
                if self.paths.len() >= MAX_CGROUPS {
                    self.paths.clear();
                }
                self.paths.insert(id, path.to_owned());
                return;
            }
        }
        self.walk_when_due(now);
    }

    fn walk_when_due(&mut self, now: Instant) -> bool {
        let due = self
            .walked
            .is_none_or(|walked| now.saturating_duration_since(walked) >= WALK_INTERVAL);
        if due {
            self.walked = Some(now);
            self.walk();
        }
        due
    }

    /// Groups come and go meanwhile, and are met or not.
    fn walk(&mut self) {
        let mut found = Vec::new();
        let mut left = vec![(self.root.clone(), b"/".to_vec())];
        while let Some((directory, path)) = left.pop() {
            if found.len() >= MAX_CGROUPS {
                break;
            }
            let Ok(metadata) = fs::metadata(&directory) else {
                continue;
            };
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let mut below = path.clone();
                    if below.last() != Some(&b'/') {
                        below.push(b'/');
                    }
                    below.extend(entry.file_name().as_bytes());
                    left.push((entry.path(), below));
                }
            }
            found.push((metadata.ino(), path));
        }
        // Those that are gone keep their last known path while there is room.
        for (id, path) in found {
            if self.paths.len() >= MAX_CGROUPS {
                self.paths.clear();
            }
            self.paths.insert(id, path);
        }
    }
}

/// The container that a group is, or lies in: its runtime and id.
pub(crate) fn container(path: &str) -> Option<(&'static str, &str)> {
    /// What runtimes put before the id in a scope's name.
    const SCOPES: [(&str, &str); 6] = [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("containerd-", "containerd"),
        ("crio-", "cri-o"),
        ("libpod-", "podman"),
        ("buildkit-", "buildkit"),
    ];
    /// Directories that hold groups named by nothing but the id.
    const PARENTS: [(&str, &str); 4] = [
        ("docker", "docker"),
        ("libpod_parent", "podman"),
        ("buildkit", "buildkit"),
        ("kubepods", "cri"),
    ];
    let mut parent = "";
    let mut in_pod = false;
    for part in path.split('/') {
        in_pod |= part.starts_with("kubepods");
        let name = part.strip_suffix(".scope").unwrap_or(part);
        for (prefix, runtime) in SCOPES {
            if let Some(id) = name.strip_prefix(prefix).filter(|id| is_id(id)) {
                return Some((runtime, id));
            }
        }
        // `systemd-nspawn@NAME.service`, or `machine-NAME.scope` in `machine.slice`.
        let machine = part
            .strip_prefix("systemd-nspawn@")
            .and_then(|rest| rest.strip_suffix(".service"))
            .or_else(|| {
                part.strip_prefix("machine-")
                    .filter(|_| parent == "machine.slice")?
                    .strip_suffix(".scope")
            });
        if let Some(id) = machine {
            return Some(("systemd-nspawn", id));
        }
        if is_id(part) {
            let named = PARENTS.iter().find(|(name, _)| *name == parent);
            if let Some((_, runtime)) = named {
                return Some((runtime, part));
            }
            if in_pod {
                return Some(("cri", part));
            }
        }
        parent = part;
    }
    None
}

/// Runtimes name containers by 256 bits in hexadecimal.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The systemd unit a group belongs to: the innermost service or scope, or else the innermost slice.
pub(crate) fn unit(path: &str) -> Option<&str> {
    let innermost = |suffixes: &[&str]| {
        path.rsplit('/')
            .find(|part| suffixes.iter().any(|suffix| part.ends_with(suffix)))
    };
    innermost(&[".service", ".scope"]).or_else(|| innermost(&[".slice"]))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[rstest]
    #[case::docker_systemd("/system.slice/docker-ID.scope", Some(("docker", ID)))]
    #[case::docker_cgroupfs("/docker/ID", Some(("docker", ID)))]
    #[case::containerd("/kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope", Some(("containerd", ID)))]
    #[case::cri_o("/kubepods.slice/crio-ID.scope", Some(("cri-o", ID)))]
    #[case::kubelet_cgroupfs("/kubepods/burstable/pod1/ID", Some(("cri", ID)))]
    #[case::podman("/machine.slice/libpod-ID.scope/container", Some(("podman", ID)))]
    #[case::init_of_a_container("/system.slice/docker-ID.scope/init.scope", Some(("docker", ID)))]
    #[case::nspawn("/machine.slice/systemd-nspawn@web.service", Some(("systemd-nspawn", "web")))]
    #[case::machine("/machine.slice/machine-web.scope", Some(("systemd-nspawn", "web")))]
    #[case::podman_helper("/machine.slice/libpod-conmon-ID.scope", None)]
    #[case::service("/system.slice/docker.service", None)]
    #[case::nobody("/", None)]
    fn containers_are_told_by_their_groups(
        #[case] path: &str,
        #[case] expected: Option<(&str, &str)>,
    ) {
        let path = path.replace("ID", ID);
        assert_eq!(container(&path), expected);
    }

    #[rstest]
    #[case::service("/system.slice/nginx.service", Some("nginx.service"))]
    #[case::delegated("/system.slice/nginx.service/workers", Some("nginx.service"))]
    #[case::user(
        "/user.slice/user-0.slice/user@0.service/app.slice/a.scope",
        Some("a.scope")
    )]
    #[case::slice("/user.slice/user-0.slice", Some("user-0.slice"))]
    #[case::none("/build/1", None)]
    fn units_are_told_by_their_groups(#[case] path: &str, #[case] expected: Option<&str>) {
        assert_eq!(unit(path), expected);
    }

    #[test]
    fn a_group_that_is_gone_keeps_its_path() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("web.service");
        fs::create_dir(&group).unwrap();
        let id = fs::metadata(&group).unwrap().ino();
        let mut groups = Cgroups::new(root.path());
        let now = Instant::now();
        assert_eq!(groups.path(id, None, now), Some(&b"/web.service"[..]));
        fs::remove_dir(&group).unwrap();
        assert_eq!(groups.path(id, None, now), Some(&b"/web.service"[..]));
    }

    #[test]
    fn a_process_is_not_believed_to_be_where_it_is_not() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let id = fs::metadata(root.path().join("a")).unwrap().ino();
        let mut groups = Cgroups::new(root.path());
        let now = Instant::now();
        assert_eq!(groups.path(id, Some(b"/b"), now), Some(&b"/a"[..]));
    }
}
