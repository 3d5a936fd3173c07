//! Where things are: the checkout, cargo's build directory, and what xtask itself keeps.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The paths every verb starts from.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    cargo: OsString,
}

impl Workspace {
    /// Finds the checkout this program was built from.
    pub(crate) fn locate() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask's manifest has no parent directory")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            // cargo resolves a relative one against the directory it was started in, and so do we.
            Some(directory) => std::path::absolute(directory).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Self {
            root,
            target,
            cargo,
        })
    }

    /// The checkout's top directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's build directory.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The cargo that runs this xtask.
    pub(crate) fn cargo(&self) -> &OsString {
        &self.cargo
    }

    /// Tools built for this checkout. They stay below the checkout whatever `CARGO_TARGET_DIR`
    /// says: they depend on the host and a pinned version, not on a build.
    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// Kernels for the VMs; kept below the checkout for the same reason.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("target/vm")
    }
}
