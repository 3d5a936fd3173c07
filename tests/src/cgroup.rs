//! Control groups of version 2, made for a test and removed after it.

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Where version 2's hierarchy is mounted: beside version 1's, or alone.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

/// A control group; removed when dropped, if its processes have left or ended by then.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    /// Below the root of the hierarchy.
    path: String,
    procs: CString,
}

impl Cgroup {
    /// Makes one, named by its path below the root of the hierarchy; its parent exists.
    pub fn new(path: &str) -> Result<Self> {
        let is_version_2 = |mount: &&&str| Path::new(mount).join("cgroup.procs").exists();
        let Some(mount) = MOUNTS.iter().find(is_version_2) else {
            bail!("control groups of version 2 are not mounted");
        };
        let directory = Path::new(mount).join(path.trim_start_matches('/'));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let procs = CString::new(directory.join("cgroup.procs").as_os_str().as_bytes())
            .context("a name without NUL")?;
        Ok(Self {
            directory,
            path: path.to_owned(),
            procs,
        })
    }

    /// Its path below the root of the hierarchy.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Inode of its directory: what the kernel calls it.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.directory)
            .with_context(|| format!("reading {}", self.directory.display()))?
            .ino())
    }

    /// Moves a process into it.
    pub fn take(&self, pid: u32) -> Result<()> {
        fs::write(self.directory.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("moving process {pid} into {}", self.path))
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
        // A process that has not quite ended keeps it; nobody is left to be told.
        let _busy = fs::remove_dir(&self.directory);
    }
}
