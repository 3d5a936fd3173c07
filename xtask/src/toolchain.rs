//! The compiler and linker for the `bpfel-unknown-none` target.
//!
//! Stable Rust has no compiled `core` for it. Debian ships one beside its own rustc, so there the
//! build needs neither nightly nor build-std; elsewhere it is nightly, rust-src and
//! `-Z build-std=core`. Either way the linker is bpf-linker at a pinned version, built once below
//! `target/tools` against the LLVM of the compiler whose bitcode it reads.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    packages::{self, Installation, Missing, Need},
    process,
    workspace::Workspace,
};

/// The target triple of the eBPF side.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

const LINKER_VERSION: &str = "0.13.0";

/// Where Debian's packages put the compiler; rustup's proxies come first on `PATH`.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

/// Packages that bring rustc and its bpf `core`, best first: Debian's stable releases carry a
/// current compiler for browsers under the first name, testing and backports under the second.
const SYSTEM_PACKAGES: [(&str, &str); 2] = [
    ("rustc-web", "libstd-rust-web-dev-bpf"),
    ("rustc", "libstd-rust-dev-bpf"),
];

/// What builds the eBPF side.
pub(crate) struct BpfToolchain {
    compiler: Compiler,
    linker: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compiler {
    /// The distribution's, with a compiled `core` for BPF.
    System,
    /// rustup's nightly, which compiles `core` along.
    Nightly,
}

impl BpfToolchain {
    /// Finds the toolchain, installing what is missing where that is allowed.
    pub(crate) fn ensure(workspace: &Workspace, installation: Installation) -> Result<Self> {
        let mut missing = Vec::new();
        let compiler = ensure_compiler(installation, &mut missing)?;
        let Some((compiler, llvm_major)) = compiler else {
            return Err(packages::missing_error(&missing));
        };
        let linker = ensure_linker(workspace, llvm_major, installation)?;
        Ok(Self { compiler, linker })
    }

    /// A `cargo` for the BPF target, to which the caller adds a subcommand and
    /// [`Self::cargo_arguments`].
    pub(crate) fn cargo(&self, workspace: &Workspace) -> Command {
        let mut command = match self.compiler {
            Compiler::System => {
                let mut command = Command::new(workspace.cargo());
                // With 1 the stable compiler accepts the unstable attributes aya-ebpf uses.
                command
                    .env("RUSTC", SYSTEM_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Compiler::Nightly => {
                let mut command = Command::new("rustup");
                command
                    .args(["run", "nightly", "cargo"])
                    .env_remove("RUSTC");
                command
            }
        };
        command
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags())
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            // `cargo run` points it at rustup's libraries, which another rustc must not load.
            .env_remove("LD_LIBRARY_PATH");
        command
    }

    /// The arguments of a cargo subcommand that compiles.
    pub(crate) fn cargo_arguments(&self) -> &'static [&'static str] {
        match self.compiler {
            Compiler::System => &["--target", BPF_TARGET],
            Compiler::Nightly => &["--target", BPF_TARGET, "-Zbuild-std=core"],
        }
    }
}

/// aya-ebpf asks for the architecture of the traced host (its `pt_regs`); `--btf` makes bpf-linker
/// turn the debug information into BTF. Expanded in order, every copy and zeroing becomes a call of
/// memcpy or memset, byte by byte; left to LLVM they become plain stores.
fn rustflags() -> String {
    [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ]
    .join("\x1f")
}

fn ensure_compiler(
    installation: Installation,
    missing: &mut Vec<Missing>,
) -> Result<Option<(Compiler, u32)>> {
    if let Some(llvm_major) = system_compiler() {
        return Ok(Some((Compiler::System, llvm_major)));
    }
    if packages::has_apt() {
        let mut pair = system_packages();
        if pair.is_none() && installation == Installation::Allowed {
            packages::refresh_lists()?;
            pair = system_packages();
        }
        if let Some((rustc, core)) = pair {
            packages::ensure(
                &[
                    Need {
                        package: rustc,
                        reason: "a Rust compiler that fits the compiled core for BPF",
                    },
                    Need {
                        package: core,
                        reason: "Rust's core, compiled for the eBPF side's BPF target",
                    },
                ],
                installation,
            )?;
            let llvm_major = system_compiler().with_context(|| {
                format!("{SYSTEM_RUSTC} has no core for {BPF_TARGET} although {core} is installed")
            })?;
            return Ok(Some((Compiler::System, llvm_major)));
        }
    }
    ensure_nightly(installation, missing)
}

/// The LLVM major version of the system's rustc, where that can compile for BPF.
fn system_compiler() -> Option<u32> {
    let version = process::text(Command::new(SYSTEM_RUSTC).arg("-vV")).ok()?;
    if !is_new_enough(version.strip_prefix("rustc ")?) {
        return None;
    }
    let libraries = process::text(Command::new(SYSTEM_RUSTC).args([
        "--print",
        "target-libdir",
        "--target",
        BPF_TARGET,
    ]))
    .ok()?;
    let has_core = std::fs::read_dir(libraries.trim()).ok()?.any(|entry| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    if !has_core {
        return None;
    }
    llvm_major(&version)
}

fn system_packages() -> Option<(&'static str, &'static str)> {
    SYSTEM_PACKAGES.into_iter().find(|(rustc, core)| {
        packages::candidate(core).is_some()
            && packages::candidate(rustc).is_some_and(|version| is_new_enough(&version))
    })
}

fn ensure_nightly(
    installation: Installation,
    missing: &mut Vec<Missing>,
) -> Result<Option<(Compiler, u32)>> {
    const INSTALL: [&str; 7] = [
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ];
    if process::which("rustup").is_none() {
        missing.push(Missing {
            what: "a Rust compiler for the BPF target (rustup, to get nightly)".to_owned(),
            remedy: "see https://rustup.rs".to_owned(),
        });
        return Ok(None);
    }
    if nightly_compiler().is_none() {
        if installation == Installation::Forbidden {
            missing.push(Missing {
                what: "nightly Rust with rust-src (compiles core for the BPF target)".to_owned(),
                remedy: format!("rustup {}", INSTALL.join(" ")),
            });
            return Ok(None);
        }
        eprintln!(
            "installing nightly Rust with rust-src: this system has no compiled core for BPF"
        );
        process::run(Command::new("rustup").args(INSTALL))?;
    }
    let llvm_major = nightly_compiler().context("rustup's nightly has no rust-src")?;
    Ok(Some((Compiler::Nightly, llvm_major)))
}

/// The LLVM major version of rustup's nightly, where that has rust-src.
fn nightly_compiler() -> Option<u32> {
    let nightly = |arguments: &[&str]| {
        process::text(
            Command::new("rustup")
                .args(["run", "nightly", "rustc"])
                .args(arguments),
        )
        .ok()
    };
    let sysroot = nightly(&["--print", "sysroot"])?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !core.is_file() {
        return None;
    }
    llvm_major(&nightly(&["-vV"])?)
}

/// bpf-linker, which runs the LLVM library it was built with: one below `target/tools` per version.
fn ensure_linker(
    workspace: &Workspace,
    llvm_major: u32,
    installation: Installation,
) -> Result<PathBuf> {
    let root = workspace
        .tools()
        .join(format!("bpf-linker-{LINKER_VERSION}-llvm-{llvm_major}"));
    let built = root.join("bin/bpf-linker");
    if built.is_file() {
        return Ok(built);
    }
    if let Some(found) = pinned_linker_on_path() {
        return Ok(found);
    }
    let prefix = ensure_llvm(llvm_major, installation)?;
    let feature = format!("llvm-{llvm_major}");
    let mut install = Command::new(workspace.cargo());
    install
        .args(["install", "bpf-linker", "--version", LINKER_VERSION])
        .args(["--locked", "--no-default-features", "--features", &feature])
        .arg("--root")
        .arg(&root)
        .env("LLVM_PREFIX", prefix)
        // Its own: the caller's may be a workspace's, and flags meant for that.
        .env("CARGO_TARGET_DIR", root.join("build"))
        .env_remove("RUSTFLAGS")
        .current_dir("/");
    if installation == Installation::Forbidden {
        return Err(packages::missing_error(&[Missing {
            what: format!("bpf-linker {LINKER_VERSION} (links the eBPF side)"),
            remedy: process::line(&install),
        }]));
    }
    eprintln!(
        "installing bpf-linker {LINKER_VERSION} below {}: links the eBPF side",
        root.display()
    );
    process::run(&mut install)?;
    // The intermediate files are a hundred times the size of the program.
    std::fs::remove_dir_all(root.join("build")).context("removing bpf-linker's build directory")?;
    Ok(built)
}

fn pinned_linker_on_path() -> Option<PathBuf> {
    let path = process::which("bpf-linker")?;
    let version = process::text(Command::new(&path).arg("--version")).ok()?;
    (version.split_whitespace().nth(1) == Some(LINKER_VERSION)).then_some(path)
}

/// LLVM's development files; gives the prefix they are installed below.
fn ensure_llvm(major: u32, installation: Installation) -> Result<PathBuf> {
    if packages::has_apt() {
        const REASON: &str = "bpf-linker is built against it";
        let needs = [
            format!("llvm-{major}-dev"),
            format!("libpolly-{major}-dev"),
            "zlib1g-dev".to_owned(),
            "libzstd-dev".to_owned(),
            "g++".to_owned(),
        ];
        let needs = needs.each_ref().map(|package| Need {
            package,
            reason: REASON,
        });
        packages::ensure(&needs, installation)?;
        return Ok(PathBuf::from(format!("/usr/lib/llvm-{major}")));
    }
    for program in [
        format!("llvm-config-{major}"),
        format!("llvm{major}-config"),
        "llvm-config".to_owned(),
    ] {
        let config = |flag: &str| process::text(Command::new(&program).arg(flag)).ok();
        if config("--version").is_some_and(|version| version.starts_with(&format!("{major}.")))
            && let Some(prefix) = config("--prefix")
        {
            return Ok(PathBuf::from(prefix.trim()));
        }
    }
    Err(packages::missing_error(&[Missing {
        what: format!(
            "bpf-linker {LINKER_VERSION}, or the development files of LLVM {major} to build it"
        ),
        remedy: format!("cargo binstall bpf-linker@{LINKER_VERSION}"),
    }]))
}

/// Whether `version` ("1.96.0…") satisfies this workspace's `rust-version`.
fn is_new_enough(version: &str) -> bool {
    let required = major_minor(env!("CARGO_PKG_RUST_VERSION"));
    required.is_some() && major_minor(version) >= required
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// From the output of `rustc -vV`.
fn llvm_major(verbose_version: &str) -> Option<u32> {
    let version = verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_major_comes_from_verbose_version() {
        let text = "rustc 1.96.0 (built from a source tarball)\nrelease: 1.96.0\nLLVM version: \
                    22.1.8\n";
        assert_eq!(llvm_major(text), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0\n"), None);
    }

    #[rstest::rstest]
    #[case::debian_of_today("1.96.0+dfsg1-1~deb12u2", true)]
    #[case::debian_of_old("1.63.0+dfsg1-2", false)]
    #[case::next_major("2.0.0", true)]
    #[case::no_version("(none)", false)]
    fn compiler_is_held_against_rust_version(#[case] version: &str, #[case] expected: bool) {
        assert_eq!(is_new_enough(version), expected);
    }
}
