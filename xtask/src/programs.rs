//! Servers and load generators that people run, for the live tests: fetched from Debian with what they link to and this
//! host lacks, and unpacked below cargo's build directory. They are not installed: a package would start its server.

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

/// One of them.
struct Program {
    name: &'static str,
    package: &'static str,
    /// Where the package has it.
    path: &'static str,
    /// What makes it say its version, and end.
    version: &'static str,
    /// How the tests are told where it is.
    variable: &'static str,
}

const FETCHED: [Program; 8] = [
    Program {
        name: "nginx",
        package: "nginx",
        path: "usr/sbin/nginx",
        version: "-v",
        variable: "CONNTRACER_NGINX",
    },
    Program {
        name: "redis-server",
        package: "redis-server",
        path: "usr/bin/redis-server",
        version: "--version",
        variable: "CONNTRACER_REDIS",
    },
    Program {
        name: "haproxy",
        package: "haproxy",
        path: "usr/sbin/haproxy",
        version: "-v",
        variable: "CONNTRACER_HAPROXY",
    },
    Program {
        name: "iperf3",
        package: "iperf3",
        path: "usr/bin/iperf3",
        version: "--version",
        variable: "CONNTRACER_IPERF3",
    },
    Program {
        name: "prometheus",
        package: "prometheus",
        path: "usr/bin/prometheus",
        version: "--version",
        variable: "CONNTRACER_PROMETHEUS",
    },
    // Of the same package.
    Program {
        name: "promtool",
        package: "prometheus",
        path: "usr/bin/promtool",
        version: "--version",
        variable: "CONNTRACER_PROMTOOL",
    },
    Program {
        name: "rsyslogd",
        package: "rsyslog",
        path: "usr/sbin/rsyslogd",
        version: "-v",
        variable: "CONNTRACER_RSYSLOG",
    },
    Program {
        name: "prometheus-alertmanager",
        package: "prometheus-alertmanager",
        path: "usr/bin/prometheus-alertmanager",
        version: "--version",
        variable: "CONNTRACER_ALERTMANAGER",
    },
];

/// Where the libraries are that only these programs have, for `LD_LIBRARY_PATH`.
const LIBRARIES: (&str, &str) = ("CONNTRACER_LIBRARIES", "usr/lib/x86_64-linux-gnu");

/// Finds or fetches all of them, and tells `command` where they are; one that cannot be had is said with the reason, and
/// its tests skip.
pub(crate) fn tell(command: &mut Command, workspace: &Workspace, installation: Installation) {
    let directory = workspace.target().join("programs");
    let libraries = directory.join(LIBRARIES.1);
    command.env(LIBRARIES.0, &libraries);
    for program in &FETCHED {
        match program.ensure(&directory, &libraries, installation) {
            Ok(path) => {
                command.env(program.variable, path);
            }
            Err(error) => println!("the tests with {} are skipped: {error:#}", program.name),
        }
    }
    match ab(installation) {
        Ok(ab) => {
            command.env("CONNTRACER_AB", ab);
        }
        Err(error) => println!("the tests with ab are skipped: {error:#}"),
    }
}

fn ab(installation: Installation) -> Result<PathBuf> {
    if process::which("ab").is_none() {
        packages::ensure(
            &[Need {
                package: "apache2-utils",
                reason: "ab, the load on the server of a live test",
            }],
            installation,
        )?;
    }
    process::which("ab").context("apache2-utils brought no ab")
}

impl Program {
    fn ensure(
        &self,
        directory: &Path,
        libraries: &Path,
        installation: Installation,
    ) -> Result<PathBuf> {
        let program = match process::which(self.name) {
            Some(program) => program,
            None => self.fetched(directory, installation)?,
        };
        let mut version = Command::new(&program);
        version.arg(self.version).env("LD_LIBRARY_PATH", libraries);
        process::text(&mut version)
            .with_context(|| format!("{} does not run here", program.display()))?;
        Ok(program)
    }

    fn fetched(&self, directory: &Path, installation: Installation) -> Result<PathBuf> {
        let program = directory.join(self.path);
        if program.is_file() {
            return Ok(program);
        }
        if installation == Installation::Forbidden || !packages::has_apt() {
            bail!(
                "there is no {}, which a live test runs: apt-get install {}",
                self.name,
                self.package
            );
        }
        eprintln!("fetching {}: a program of the live tests", self.name);
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        if self.download(directory).is_err() {
            packages::refresh_lists()?;
            self.download(directory)?;
        }
        for entry in fs::read_dir(directory)? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                let mut extract = Command::new("dpkg-deb");
                process::run(extract.arg("--extract").arg(&file).arg(directory))?;
                fs::remove_file(&file)?;
            }
        }
        if !program.is_file() {
            bail!("Debian's {} holds no {}", self.package, self.path);
        }
        Ok(program)
    }

    /// The package, and those it depends on that are not installed.
    fn download(&self, directory: &Path) -> Result<()> {
        let told = process::text(
            Command::new("apt-get")
                .args(["install", "--yes", "--print-uris", "--quiet=2"])
                .args(["--no-install-recommends", self.package]),
        )?;
        let packages: Vec<&str> = told.lines().filter_map(package).collect();
        process::run(
            Command::new("apt-get")
                .args(["download", "--quiet=2"])
                .args(packages)
                .current_dir(directory),
        )
    }
}

/// From `'http://…/redis-server_7.0.15-1_amd64.deb' redis-server_5%3a7.0.15-1_amd64.deb 71792 MD5Sum:…`.
fn package(line: &str) -> Option<&str> {
    let file = line.strip_prefix('\'')?.split_ascii_whitespace().nth(1)?;
    let (package, _) = file.split_once('_')?;
    Some(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_fetch_is_read_and_what_else_it_says_is_not() {
        let told = "Reading package lists...\n\
                    'http://deb.debian.org/debian/pool/main/j/jemalloc/libjemalloc2_5.3.0-1_amd64.deb' \
                    libjemalloc2_5.3.0-1_amd64.deb 275108 MD5Sum:5d5d\n\
                    'http://deb.debian.org/debian/pool/main/r/redis/redis-server_7.0.15-1_amd64.deb' \
                    redis-server_5%3a7.0.15-1_amd64.deb 71792 MD5Sum:1b1b\n";
        let packages: Vec<_> = told.lines().filter_map(package).collect();
        assert_eq!(packages, ["libjemalloc2", "redis-server"]);
    }
}
