//! The files of the VMs, and who removes them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    kernel::Kernel,
    machine::{self, Programs},
    workspace::Workspace,
};

/// Where the files of all VMs are, in a directory for each kernel line.
pub(super) fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target().join("vm")
}

/// Removes the initramfs files, a fifth of a gigabyte each, that interrupted runs left below `directory`.
pub(super) fn sweep(directory: &Path) -> Result<()> {
    let entries = |directory: &Path| -> Result<Vec<PathBuf>> {
        if !directory.is_dir() {
            return Ok(Vec::new());
        }
        fs::read_dir(directory)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .with_context(|| format!("reading {}", directory.display()))
    };
    for line in entries(directory)? {
        for path in entries(&line)? {
            if let Some(pid) = maker(&path)
                && !Path::new("/proc").join(pid.to_string()).exists()
            {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// The process that made an initramfs, by its name; none of one that is kept.
fn maker(initramfs: &Path) -> Option<u32> {
    let name = initramfs.file_name()?.to_str()?;
    let (_, pid) = name.strip_suffix(".cpio")?.rsplit_once('-')?;
    pid.parse().ok()
}

/// The files of one VM, below cargo's build directory. Its initramfs goes with it, unless it is kept.
pub(crate) struct Run {
    pub(crate) directory: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Run {
    pub(crate) fn prepare(
        workspace: &Workspace,
        kernel: &Kernel,
        programs: &Programs,
        name: &str,
    ) -> Result<Self> {
        let directory = directory(workspace).join(kernel.line);
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        // The process id keeps two runs of xtask from overwriting what the other boots.
        let initramfs = directory.join(format!("{name}-{}.cpio", std::process::id()));
        let run = Self {
            directory,
            initramfs,
        };
        machine::write_initramfs(&run.initramfs, kernel, programs)?;
        Ok(run)
    }

    /// Keeps the initramfs as `name`, which no sweep takes for a dead run's.
    pub(crate) fn keep(self, name: &str) -> Result<()> {
        let kept = self.directory.join(format!("{name}.cpio"));
        fs::rename(&self.initramfs, &kept)
            .with_context(|| format!("keeping {}", self.initramfs.display()))?;
        eprintln!("kept {}", kept.display());
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It is gone where it is kept, or was never written; what cannot be removed, the next run sweeps.
        let _ = fs::remove_file(&self.initramfs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_run_left_is_swept_and_nothing_else() {
        let vms = tempfile::tempdir().unwrap();
        let line = vms.path().join("7.x");
        fs::create_dir(&line).unwrap();
        // Above PID_MAX_LIMIT (include/linux/threads.h): nobody's.
        let left = line.join("auto-perf-4194305.cpio");
        let others = [
            format!("auto-{}.cpio", std::process::id()),
            "demo-auto.cpio".to_owned(),
            "auto-4194305.log".to_owned(),
        ]
        .map(|name| line.join(name));
        for path in others.iter().chain([&left]) {
            fs::write(path, "").unwrap();
        }
        sweep(vms.path()).unwrap();
        assert!(!left.exists());
        assert!(others.iter().all(|path| path.exists()), "{others:?}");
        sweep(&vms.path().join("never-made")).unwrap();
    }

    #[test]
    fn an_initramfs_goes_with_its_run_unless_it_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let run = || {
            let initramfs = directory.path().join("auto-1.cpio");
            fs::write(&initramfs, "").unwrap();
            Run {
                directory: directory.path().to_owned(),
                initramfs,
            }
        };
        let names = || -> Vec<_> {
            let entries = fs::read_dir(directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        };
        drop(run());
        assert!(names().is_empty(), "{:?}", names());
        run().keep("auto").unwrap();
        assert_eq!(names(), ["auto.cpio"]);
    }
}
