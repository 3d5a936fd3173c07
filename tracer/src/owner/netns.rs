//! Names of network namespaces: what `ip netns` made.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Names read at most.
const MAX_NAMES: usize = 4096;
/// Shortest time between two looks at the directory.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Names by the namespace's inode.
#[derive(Debug)]
pub(crate) struct Names {
    directory: PathBuf,
    by_inode: HashMap<u64, Vec<u8>>,
    looked: Option<Instant>,
}

impl Names {
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            by_inode: HashMap::new(),
            looked: None,
        }
    }

    /// The name of a namespace; `None` where it has none. An inode is another namespace's as soon as its own is
    /// gone.
    pub(crate) fn name(&mut self, inode: u32, now: Instant) -> Option<&[u8]> {
        let inode = u64::from(inode);
        if !self.is_named(inode) {
            self.by_inode.remove(&inode);
            let due = self
                .looked
                .is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK_INTERVAL);
            if due {
                self.looked = Some(now);
                self.look();
            }
        }
        self.by_inode.get(&inode).map(Vec::as_slice)
    }

    /// Whether the name that is kept still is this namespace's.
    fn is_named(&self, inode: u64) -> bool {
        self.by_inode.get(&inode).is_some_and(|name| {
            fs::metadata(self.directory.join(OsStr::from_bytes(name)))
                .is_ok_and(|found| found.ino() == inode)
        })
    }

    fn look(&mut self) {
        // Absent where `ip netns` was never used.
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        self.by_inode = entries
            .flatten()
            .take(MAX_NAMES)
            .filter_map(|entry| {
                let inode = fs::metadata(entry.path()).ok()?.ino();
                Some((inode, entry.file_name().as_bytes().to_owned()))
            })
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_named_by_its_inode() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("blue");
        fs::write(&file, "").unwrap();
        let inode = u32::try_from(fs::metadata(&file).unwrap().ino()).unwrap();
        let mut names = Names::new(directory.path());
        assert_eq!(names.name(inode, Instant::now()), Some(&b"blue"[..]));
        assert_eq!(names.name(inode ^ 1, Instant::now()), None);
        // Its name is another's now, before the next look is due.
        fs::rename(&file, directory.path().join("green")).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(names.name(inode, Instant::now()), None);
        let later = Instant::now() + LOOK_INTERVAL;
        assert_eq!(names.name(inode, later), Some(&b"green"[..]));
        let mut none = Names::new(&directory.path().join("missing"));
        assert_eq!(none.name(inode, Instant::now()), None);
    }
}
