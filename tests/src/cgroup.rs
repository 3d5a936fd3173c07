//! Control groups of version 2, made for a test and removed after it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A control group; gone when dropped, once its processes have ended.
#[derive(Debug)]
pub struct Group {
    directory: PathBuf,
    path: String,
}

impl Group {
    /// Makes a group, named by its path below the root of the hierarchy; its parent exists.
    pub fn new(path: &str) -> io::Result<Self> {
        let mount = Path::new("/sys/fs/cgroup");
        // Beside version 1's hierarchies.
        let beside = mount.join("unified");
        let root = if beside.is_dir() { &beside } else { mount };
        if !root.join("cgroup.procs").exists() {
            return Err(io::Error::other(
                "control groups of version 2 are not mounted",
            ));
        }
        let directory = root.join(path.trim_start_matches('/'));
        fs::create_dir(&directory)?;
        Ok(Self {
            directory,
            path: path.to_owned(),
        })
    }

    /// Its path below the root of the hierarchy.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Moves a process into it.
    pub fn take(&self, pid: u32) -> Result<()> {
        fs::write(self.directory.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("moving process {pid} into {}", self.path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has not quite ended keeps it; nobody is left to be told.
        let _busy = fs::remove_dir(&self.directory);
    }
}
