//! A throw-away control group.

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Where version 2's hierarchy is mounted: beside version 1's, or alone.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// Below the root of the hierarchy; removed when dropped, if its processes have left or ended by then.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    procs: CString,
}

impl Cgroup {
    /// Makes one; `None` where there is no hierarchy of version 2.
    pub fn new(name: &str) -> Result<Option<Self>> {
        let is_version_2 = |mount: &&&str| Path::new(mount).join("cgroup.procs").exists();
        let Some(mount) = MOUNTS.iter().find(is_version_2) else {
            return Ok(None);
        };
        let path = Path::new(mount).join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let procs = CString::new(path.join("cgroup.procs").as_os_str().as_bytes())
            .context("a name without NUL")?;
        Ok(Some(Self { path, procs }))
    }

    /// Inode of its directory: what the kernel calls it.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path)
            .with_context(|| format!("reading {}", self.path.display()))?
            .ino())
    }

    /// Moves the calling process inside, by system calls alone; whether that worked.
    #[must_use]
    pub fn enter(&self) -> bool {
        // SAFETY: a path that lives, and "0" for the calling process (cgroups(7)).
        unsafe {
            let fd = libc::open(self.procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            let entered = libc::write(fd, c"0".as_ptr().cast(), 1) == 1;
            libc::close(fd);
            entered
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Nobody is left to be told when this fails.
        let _removed = fs::remove_dir(&self.path);
    }
}
