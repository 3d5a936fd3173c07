//! `ss`, whose list of connections a live test compares with conntracer's: where it is, and what it needs to run
//! in a VM that has no user land.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    packages::{self, Installation, Need},
    process,
};

const PROGRAM: &str = "ss";

/// Finds or fetches it; an error says why the test has to do without.
pub(crate) fn ensure(installation: Installation) -> Result<PathBuf> {
    if let Some(program) = process::which(PROGRAM) {
        return Ok(program);
    }
    packages::ensure(
        &[Need {
            package: "iproute2",
            reason: "ss, which a live test compares conntracer with",
        }],
        installation,
    )?;
    process::which(PROGRAM).context("iproute2 brought no ss")
}

/// The loader and the libraries of a program, where it looks for them.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let told = process::text(Command::new("ldd").arg(program))?;
    Ok(told.lines().filter_map(path).map(PathBuf::from).collect())
}

/// `libc.so.6 => /lib/libc.so.6 (0x…)`, or the loader's path alone; what the kernel maps in has none.
fn path(line: &str) -> Option<&str> {
    line.split_ascii_whitespace()
        .find(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_where_the_loader_finds_it() {
        let told = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3c)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3d)\n";
        let paths: Vec<_> = told.lines().filter_map(path).collect();
        assert_eq!(
            paths,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
