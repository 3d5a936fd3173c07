//! The control groups of this host: their paths by id.

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

#[cfg(test)]
mod tests {
    use super::*;

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
