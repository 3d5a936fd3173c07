//! The kernels tests run on: one line of releases each, as Debian's cloud images. Fetches the
//! newest one that downloads, and keeps its image and the modules the tests need in a cache.

use std::{
    cmp::Ordering,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    archive::{Archive, Listed, Suite},
    modules,
    packages::{self, Installation, Need},
    process,
    workspace::Workspace,
};

const BULLSEYE: Suite = Suite {
    repository: "debian",
    name: "bullseye",
};
const BULLSEYE_SECURITY: Suite = Suite {
    repository: "debian-security",
    name: "bullseye-security",
};
const BOOKWORM: Suite = Suite {
    repository: "debian",
    name: "bookworm",
};
const BOOKWORM_SECURITY: Suite = Suite {
    repository: "debian-security",
    name: "bookworm-security",
};
const TRIXIE_BACKPORTS: Suite = Suite {
    repository: "debian",
    name: "trixie-backports",
};

/// Until 7.x one package holds the kernel; since then it is split into the image, the modules, and
/// the lists of what is built in.
const WHOLE_PREFIX: &str = "linux-image-";
const SPLIT_PREFIX: &str = "linux-binary-";
const SPLIT_PARTS_PREFIXES: [&str; 2] = ["linux-modules-", "linux-base-"];

/// Older packages tried after the newest: a mirror drops a few superseded ones, not a dozen.
const MAX_ATTEMPTS: usize = 12;

/// A line of kernel releases.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// As given on the command line, and the name of its directory in the cache.
    pub(crate) name: &'static str,
    /// What its releases begin with.
    release_prefix: &'static str,
    suites: &'static [Suite],
}

/// Every line that is tested, oldest first.
pub(crate) const LINES: [Line; 5] = [
    Line {
        name: "5.10",
        release_prefix: "5.10.",
        suites: &[BULLSEYE, BULLSEYE_SECURITY],
    },
    Line {
        name: "6.1",
        release_prefix: "6.1.",
        suites: &[BOOKWORM, BOOKWORM_SECURITY],
    },
    Line {
        name: "6.12",
        release_prefix: "6.12.",
        suites: &[BOOKWORM_SECURITY],
    },
    Line {
        name: "6.18",
        release_prefix: "6.18.",
        suites: &[TRIXIE_BACKPORTS],
    },
    Line {
        name: "7.x",
        release_prefix: "7.",
        suites: &[TRIXIE_BACKPORTS],
    },
];

/// A kernel in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The name of its line.
    pub(crate) line: &'static str,
    /// What `uname -r` says on it.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// Modules to load, in this order.
    pub(crate) modules: Vec<PathBuf>,
}

/// The line called `name`.
pub(crate) fn line(name: &str) -> Result<&'static Line> {
    LINES
        .iter()
        .find(|line| line.name == name)
        .with_context(|| {
            let known: Vec<&str> = LINES.iter().map(|line| line.name).collect();
            format!("no kernel line {name}: there are {}", known.join(", "))
        })
}

/// Gives the kernels of `lines`, fetching those that are not in the cache.
pub(crate) fn ensure(
    workspace: &Workspace,
    installation: Installation,
    lines: &[&'static Line],
) -> Result<Vec<Kernel>> {
    let cache = workspace.kernels();
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    // Two runs at once would unpack into each other's directories.
    let lock = File::create(cache.join("lock")).context("creating the kernel cache's lock")?;
    lock.lock().context("locking the kernel cache")?;

    let absent: Vec<&Line> = lines
        .iter()
        .copied()
        .filter(|line| !is_cached(&cache, line))
        .collect();
    if !absent.is_empty() {
        fetch(&cache, installation, &absent)?;
    }
    lines.iter().map(|line| cached(&cache, line)).collect()
}

/// Whether a kernel is there, with the modules that are asked for today.
fn is_cached(cache: &Path, line: &Line) -> bool {
    let entry = cache.join(line.name);
    let wanted = fs::read_to_string(entry.join("modules/wanted"));
    entry.join("release").is_file() && wanted.is_ok_and(|wanted| wanted == modules::wanted())
}

fn cached(cache: &Path, line: &'static Line) -> Result<Kernel> {
    let directory = cache.join(line.name);
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(Kernel {
        line: line.name,
        release: read("release")?.trim().to_owned(),
        image: directory.join("vmlinuz"),
        modules: read("modules/order")?
            .lines()
            .map(|name| directory.join("modules").join(name))
            .collect(),
    })
}

fn fetch(cache: &Path, installation: Installation, lines: &[&Line]) -> Result<()> {
    if !packages::has_apt() {
        bail!("kernels for VMs come from Debian's archive by apt, which this system does not have");
    }
    packages::ensure(
        &[
            Need {
                package: "debian-archive-keyring",
                reason: "verifies the kernels to test on",
            },
            Need {
                package: "xz-utils",
                reason: "unpacks kernel modules",
            },
        ],
        installation,
    )?;
    let mut suites: Vec<Suite> = Vec::new();
    for suite in lines.iter().flat_map(|line| line.suites) {
        if !suites.contains(suite) {
            suites.push(*suite);
        }
    }
    let apt = cache.join("apt");
    eprintln!("looking for kernels in Debian's archive");
    let archive = Archive::open(&apt, &suites)?;
    let listed = archive.list(&[
        WHOLE_PREFIX,
        SPLIT_PREFIX,
        SPLIT_PARTS_PREFIXES[0],
        SPLIT_PARTS_PREFIXES[1],
    ])?;
    for line in lines {
        fetch_line(cache, &archive, &listed, line)?;
    }
    // Lists and packages are ten times what is kept of them.
    fs::remove_dir_all(&apt).with_context(|| format!("removing {}", apt.display()))
}

fn fetch_line(cache: &Path, archive: &Archive, listed: &[Listed], line: &Line) -> Result<()> {
    let candidates = candidates(listed, line.release_prefix, flavour()?);
    if candidates.is_empty() {
        bail!(
            "Debian's archive lists no cloud kernel of line {}",
            line.name
        );
    }
    let mut failures = Vec::new();
    for candidate in candidates.iter().take(MAX_ATTEMPTS) {
        match fetch_candidate(cache, archive, line, candidate) {
            Ok(release) => {
                eprintln!("kernel {}: {release} from {}", line.name, names(candidate));
                return Ok(());
            }
            Err(error) => {
                eprintln!("kernel {}: {}: {error:#}", line.name, names(candidate));
                failures.push(format!("{error:#}"));
            }
        }
    }
    bail!(
        "kernel {}: none of {} packages could be had; the last one: {}",
        line.name,
        failures.len(),
        failures.last().map_or("", String::as_str)
    )
}

/// The packages that make up one kernel.
type Candidate = Vec<Listed>;

fn names(candidate: &Candidate) -> String {
    let names: Vec<&str> = candidate
        .iter()
        .map(|listed| listed.name.as_str())
        .collect();
    names.join(" and ")
}

fn flavour() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("-cloud-amd64"),
        other => bail!("VMs run x86_64 kernels only; this host is {other}"),
    }
}

/// The kernels of a line among `listed`, newest first, the signed build before the unsigned one.
fn candidates(listed: &[Listed], release_prefix: &str, flavour: &str) -> Vec<Candidate> {
    let mut heads: Vec<(&Listed, &str, bool)> = listed
        .iter()
        .filter_map(|head| {
            let (split, rest) = match head.name.strip_prefix(SPLIT_PREFIX) {
                Some(rest) => (true, rest),
                None => (false, head.name.strip_prefix(WHOLE_PREFIX)?),
            };
            let release = rest.strip_suffix("-unsigned").unwrap_or(rest);
            (release.starts_with(release_prefix) && release.ends_with(flavour))
                .then_some((head, release, split))
        })
        .collect();
    heads.sort_by(|a, b| {
        compare_versions(&b.0.version, &a.0.version)
            .then_with(|| b.2.cmp(&a.2))
            .then_with(|| a.0.name.len().cmp(&b.0.name.len()))
    });
    let is_split = |release: &str| heads.iter().any(|head| head.2 && head.1 == release);
    heads
        .iter()
        // The whole package of a split kernel only depends on the parts.
        .filter(|(_, release, split)| *split || !is_split(release))
        .filter_map(|(head, release, split)| {
            let mut candidate = vec![(*head).clone()];
            if *split {
                for prefix in SPLIT_PARTS_PREFIXES {
                    let part = format!("{prefix}{release}");
                    candidate.push(
                        listed
                            .iter()
                            .find(|other| other.name == part && other.version == head.version)?
                            .clone(),
                    );
                }
            }
            Some(candidate)
        })
        .collect()
}

/// Orders versions by the numbers in them, one by one ("6.1.99-1" before "6.1.170-1"). Enough
/// within one line of kernels, which have neither epochs nor letters that matter.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u64> {
        version
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    numbers(a).cmp(&numbers(b))
}

/// Fetches and unpacks one kernel into the cache; gives its release.
fn fetch_candidate(
    cache: &Path,
    archive: &Archive,
    line: &Line,
    candidate: &Candidate,
) -> Result<String> {
    let unpacked = cache.join(format!("{}.unpacked", line.name));
    let partial = cache.join(format!("{}.partial", line.name));
    for directory in [&unpacked, &partial] {
        remove_tree(directory)?;
        fs::create_dir_all(directory)?;
    }
    for package in candidate {
        let file = archive.download(package)?;
        process::run(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&file)
                .arg(&unpacked),
        )?;
        fs::remove_file(&file)?;
    }
    let (release, tree) = module_tree(&unpacked)?;
    let image = [
        unpacked.join(format!("boot/vmlinuz-{release}")),
        tree.join("vmlinuz"),
    ]
    .into_iter()
    .find(|path| path.is_file())
    .with_context(|| format!("no vmlinuz of {release} in {}", names(candidate)))?;
    fs::copy(image, partial.join("vmlinuz"))?;

    fs::create_dir(partial.join("modules"))?;
    let mut order = String::new();
    for module in modules::load_order(&tree)? {
        let file = format!("{}.ko", module.name);
        fs::write(partial.join("modules").join(&file), module.content)?;
        order.push_str(&file);
        order.push('\n');
    }
    fs::write(partial.join("modules/order"), order)?;
    fs::write(partial.join("modules/wanted"), modules::wanted())?;
    fs::write(partial.join("release"), format!("{release}\n"))?;
    // The rename is what makes the cache entry exist, so an interrupted run leaves none.
    let entry = cache.join(line.name);
    remove_tree(&entry)?;
    fs::rename(&partial, &entry)?;
    remove_tree(&unpacked)?;
    Ok(release)
}

/// The release and the module directory in an unpacked kernel package.
fn module_tree(unpacked: &Path) -> Result<(String, PathBuf)> {
    for parent in ["usr/lib/modules", "lib/modules"] {
        if let Ok(mut entries) = fs::read_dir(unpacked.join(parent))
            && let Some(entry) = entries.next()
        {
            let entry = entry?;
            let release = entry.file_name().to_string_lossy().into_owned();
            return Ok((release, entry.path()));
        }
    }
    bail!("no lib/modules in the kernel package")
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(packages: &[(&str, &str)]) -> Vec<Listed> {
        packages
            .iter()
            .map(|(name, version)| Listed {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
            })
            .collect()
    }

    fn candidate_names(packages: &[(&str, &str)], prefix: &str) -> Vec<String> {
        candidates(&listed(packages), prefix, "-cloud-amd64")
            .iter()
            .map(names)
            .collect()
    }

    #[rstest::rstest]
    #[case("6.1.99-1", "6.1.170-1", Ordering::Less)]
    #[case("5.10.223-1", "5.10.218-1", Ordering::Greater)]
    #[case("7.3.4-1~bpo13+1", "7.2.12-1~bpo13+1", Ordering::Greater)]
    #[case("6.18.15-1", "6.18.15-1", Ordering::Equal)]
    fn versions_are_ordered_by_number(
        #[case] a: &str,
        #[case] b: &str,
        #[case] expected: Ordering,
    ) {
        assert_eq!(compare_versions(a, b), expected);
    }

    #[test]
    fn newest_kernel_of_the_line_comes_first() {
        let packages = [
            ("linux-image-6.1.0-9-cloud-amd64", "6.1.27-1"),
            ("linux-image-6.1.0-50-cloud-amd64-unsigned", "6.1.170-1"),
            ("linux-image-6.1.0-50-cloud-amd64", "6.1.170-1"),
            ("linux-image-6.1.0-50-cloud-amd64-dbg", "6.1.170-1"),
            ("linux-image-6.1.0-50-amd64", "6.1.170-1"),
            ("linux-image-6.12.117+deb12-cloud-amd64", "6.12.117-1"),
            ("linux-image-cloud-amd64", "6.1.170-1"),
        ];
        assert_eq!(
            candidate_names(&packages, "6.1."),
            [
                "linux-image-6.1.0-50-cloud-amd64",
                "linux-image-6.1.0-50-cloud-amd64-unsigned",
                "linux-image-6.1.0-9-cloud-amd64",
            ]
        );
    }

    #[test]
    fn split_kernel_needs_all_parts() {
        let version = "7.3.4-1~bpo13+1";
        let packages = [
            ("linux-image-7.3.4+deb13-cloud-amd64", version),
            ("linux-binary-7.3.4+deb13-cloud-amd64", version),
            ("linux-binary-unsigned-7.3.4+deb13-cloud-amd64", version),
            ("linux-modules-7.3.4+deb13-cloud-amd64", version),
            ("linux-base-7.3.4+deb13-cloud-amd64", version),
            ("linux-binary-7.2.12+deb13-cloud-amd64", "7.2.12-1"),
            ("linux-image-7.0.4+deb13-cloud-amd64", "7.0.4-1"),
        ];
        assert_eq!(
            candidate_names(&packages, "7."),
            [
                "linux-binary-7.3.4+deb13-cloud-amd64 and linux-modules-7.3.4+deb13-cloud-amd64 \
                 and linux-base-7.3.4+deb13-cloud-amd64",
                "linux-image-7.0.4+deb13-cloud-amd64",
            ]
        );
    }

    #[test]
    fn every_line_has_a_name_of_its_own() {
        for known in &LINES {
            assert_eq!(line(known.name).unwrap(), known);
        }
        assert!(line("4.19").is_err());
    }
}
