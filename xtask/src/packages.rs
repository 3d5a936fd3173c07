//! Getting what the build and the tests need from the distribution. Every installation is said on
//! stderr with its reason; with `--no-install` it becomes an error that names the command.

use std::{
    fmt::Write as _,
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Result, bail};

use crate::process;

/// Whether xtask may install what is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Installation {
    Allowed,
    Forbidden,
}

impl Installation {
    pub(crate) fn from_no_install(no_install: bool) -> Self {
        if no_install {
            Self::Forbidden
        } else {
            Self::Allowed
        }
    }
}

/// Something the host lacks, and how to get it by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// What, and what it is for.
    pub(crate) what: String,
    /// The command that brings it.
    pub(crate) remedy: String,
}

/// The one error for everything that is missing: a line each, with its remedy.
pub(crate) fn missing_error(missing: &[Missing]) -> anyhow::Error {
    let mut text = String::from("missing on this machine:");
    for piece in missing {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {}: {}", piece.what, piece.remedy);
    }
    anyhow::anyhow!(text)
}

/// A Debian package and the reason it is needed.
pub(crate) struct Need<'a> {
    pub(crate) package: &'a str,
    pub(crate) reason: &'a str,
}

/// Whether this host's packages come from apt.
pub(crate) fn has_apt() -> bool {
    process::which("apt-get").is_some() && process::which("dpkg-query").is_some()
}

/// Installs those of `needs` that are not there yet.
pub(crate) fn ensure(needs: &[Need<'_>], installation: Installation) -> Result<()> {
    // apt-get gives up where another one runs.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let absent: Vec<&Need<'_>> = needs
        .iter()
        .filter(|need| !is_installed(need.package))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    if installation == Installation::Forbidden || !has_apt() {
        let missing: Vec<Missing> = absent
            .iter()
            .map(|need| Missing {
                what: format!("{} ({})", need.package, need.reason),
                remedy: if has_apt() {
                    format!("apt-get install {}", need.package)
                } else {
                    format!(
                        "install what Debian calls {} by your package manager",
                        need.package
                    )
                },
            })
            .collect();
        return Err(missing_error(&missing));
    }
    if !process::is_root() && process::which("sudo").is_none() {
        bail!("installing packages needs root, and there is no sudo: run this as root once");
    }
    for need in &absent {
        eprintln!("installing {}: {}", need.package, need.reason);
    }
    let names: Vec<&str> = absent.iter().map(|need| need.package).collect();
    if !process::status(&mut install(&names))?.success() {
        // The lists may be absent (a fresh image) or name files that are gone from the mirror.
        refresh_lists()?;
        process::run(&mut install(&names))?;
    }
    Ok(())
}

/// The version apt would install of `package`; None where apt knows no such package.
pub(crate) fn candidate(package: &str) -> Option<String> {
    let policy = process::text(Command::new("apt-cache").args(["policy", package])).ok()?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Fetches the package lists of the host's own sources.
pub(crate) fn refresh_lists() -> Result<()> {
    eprintln!("updating apt's package lists: a package needed here is not in them");
    process::run(process::as_root("apt-get").args(["update", "--quiet"]))
}

fn install(names: &[&str]) -> Command {
    // `env` since sudo drops the variable otherwise.
    let mut command = process::as_root("env");
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install"])
        .args(["--yes", "--quiet", "--no-install-recommends"])
        .args(names);
    command
}

fn is_installed(package: &str) -> bool {
    process::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_piece_is_named_with_its_remedy() {
        let missing = [
            Missing {
                what: "qemu".into(),
                remedy: "apt-get install qemu-system-x86".into(),
            },
            Missing {
                what: "rust-src".into(),
                remedy: "rustup component add rust-src".into(),
            },
        ];
        assert_eq!(
            missing_error(&missing).to_string(),
            "missing on this machine:\n  qemu: apt-get install qemu-system-x86\n  rust-src: rustup \
             component add rust-src"
        );
    }
}
