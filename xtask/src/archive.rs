//! A private view of Debian's archive: sources, lists, cache and package status of its own, so that
//! kernels of other releases can be fetched and the host's apt never knows. Packages are verified
//! against the archive's keyring by apt itself. Nothing is installed.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org";

/// A suite of the archive, as its `sources.list` line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suite {
    /// `debian` or `debian-security`.
    pub(crate) repository: &'static str,
    pub(crate) name: &'static str,
}

/// A package the archive lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// apt below a directory of ours.
pub(crate) struct Archive {
    root: PathBuf,
    config: PathBuf,
}

impl Archive {
    /// Sets up apt below `root` and fetches the lists of `suites`.
    pub(crate) fn open(root: &Path, suites: &[Suite]) -> Result<Self> {
        for directory in ["lists/partial", "archives/partial", "packages"] {
            fs::create_dir_all(root.join(directory))
                .with_context(|| format!("creating {}", root.display()))?;
        }
        let config = root.join("apt.conf");
        let write = |name: &str, text: String| {
            let path = root.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("status", String::new())?;
        write("sources.list", sources(suites))?;
        write("apt.conf", configuration(root))?;
        let archive = Self {
            root: root.to_path_buf(),
            config,
        };
        process::run(archive.apt("apt-get").args(["update", "--quiet=2"]))?;
        Ok(archive)
    }

    /// All packages whose name begins with one of `prefixes`, in every version listed.
    pub(crate) fn list(&self, prefixes: &[&str]) -> Result<Vec<Listed>> {
        let text = process::text(self.apt("apt-cache").arg("dumpavail"))?;
        Ok(parse_listed(&text, prefixes))
    }

    /// Fetches `package` and gives the path of the `.deb`.
    pub(crate) fn download(&self, package: &Listed) -> Result<PathBuf> {
        let directory = self.root.join("packages");
        process::run(
            self.apt("apt-get")
                .args(["download", "--quiet=2"])
                .arg(format!("{}={}", package.name, package.version))
                .current_dir(&directory),
        )?;
        let prefix = format!("{}_", package.name);
        fs::read_dir(&directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
            })
            .with_context(|| format!("apt-get download left no {prefix}*.deb"))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--config-file").arg(&self.config);
        command
    }
}

fn sources(suites: &[Suite]) -> String {
    let mut sources = String::new();
    for Suite { repository, name } in suites {
        // Writing to a String cannot fail.
        let _ = writeln!(
            sources,
            "deb [signed-by={KEYRING}] {MIRROR}/{repository} {name} main"
        );
    }
    sources
}

fn configuration(root: &Path) -> String {
    let root = root.display();
    // Read after the host's own configuration (which may name a proxy), so this clears the hooks
    // and the indexes that have no use here. The sandbox user may not read below a home directory.
    // A suite past its end of life keeps its signature but not its freshness.
    format!(
        r#"Dir::State "{root}";
Dir::State::status "{root}/status";
Dir::State::lists "{root}/lists";
Dir::Cache "{root}";
Dir::Cache::archives "{root}/archives";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
#clear APT::Update;
#clear DPkg;
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "2";
APT::Sandbox::User "root";
"#
    )
}

/// Name and version of the stanzas in `text` (the form of a Packages file).
fn parse_listed(text: &str, prefixes: &[&str]) -> Vec<Listed> {
    text.split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
            let name = field("Package: ")?;
            if !prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                return None;
            }
            Some(Listed {
                name: name.to_owned(),
                version: field("Version: ")?.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_become_names_and_versions() {
        let text = "Package: linux-image-6.1.0-50-cloud-amd64\nPriority: optional\nVersion: \
                    6.1.170-1\n\nPackage: bash\nVersion: 5.2\n\nPackage: linux-binary-broken\n";
        assert_eq!(
            parse_listed(text, &["linux-image-", "linux-binary-"]),
            [Listed {
                name: "linux-image-6.1.0-50-cloud-amd64".into(),
                version: "6.1.170-1".into(),
            }]
        );
    }

    #[test]
    fn sources_are_signed_by_the_archive() {
        let suite = Suite {
            repository: "debian",
            name: "trixie-backports",
        };
        assert_eq!(
            sources(&[suite]),
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
             http://deb.debian.org/debian trixie-backports main\n"
        );
    }
}
