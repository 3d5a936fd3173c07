//! The server and the load generator of the live tests. The server is fetched and unpacked below cargo's
//! build directory, and not installed: its package would start it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    packages::{self, Installation, Need},
    process,
    workspace::Workspace,
};

const PACKAGE: &str = "nginx";

/// What the test of a stuck server runs.
pub(crate) struct Programs {
    pub(crate) nginx: PathBuf,
    pub(crate) ab: PathBuf,
}

/// Finds or fetches both; an error says why the test has to do without.
pub(crate) fn ensure(workspace: &Workspace, installation: Installation) -> Result<Programs> {
    let nginx = match process::which(PACKAGE) {
        Some(nginx) => nginx,
        None => fetched(&workspace.target().join(PACKAGE), installation)?,
    };
    // What it links to is the host's.
    process::text(Command::new(&nginx).arg("-v"))
        .with_context(|| format!("{} does not run here", nginx.display()))?;
    if process::which("ab").is_none() {
        packages::ensure(
            &[Need {
                package: "apache2-utils",
                reason: "ab, the load on the server of a live test",
            }],
            installation,
        )?;
    }
    let ab = process::which("ab").context("apache2-utils brought no ab")?;
    Ok(Programs { nginx, ab })
}

fn fetched(directory: &Path, installation: Installation) -> Result<PathBuf> {
    let program = directory.join("usr/sbin/nginx");
    if program.is_file() {
        return Ok(program);
    }
    if installation == Installation::Forbidden || !packages::has_apt() {
        bail!("there is no nginx, which a live test runs: apt-get install nginx");
    }
    eprintln!("fetching nginx: the server of a live test");
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    if !process::status(&mut download(directory))?.success() {
        packages::refresh_lists()?;
        process::run(&mut download(directory))?;
    }
    for entry in fs::read_dir(directory)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            process::run(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&file)
                    .arg(directory),
            )?;
            fs::remove_file(&file)?;
        }
    }
    if !program.is_file() {
        bail!("Debian's {PACKAGE} holds no usr/sbin/nginx");
    }
    Ok(program)
}

fn download(directory: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["download", "--quiet=2", PACKAGE])
        .current_dir(directory);
    command
}
