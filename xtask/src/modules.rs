//! The kernel modules a VM needs, and the order to load them in. Debian's packages come without
//! `modules.dep` (depmod makes it at installation), so dependencies are read from the modules.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use object::{Object as _, ObjectSection as _};

use crate::process;

/// Without one of these, built in or as a module, the tests cannot run.
const REQUIRED: [&str; 5] = ["veth", "sch_netem", "nf_tables", "inet_diag", "tcp_diag"];

/// Used where the kernel has them.
const OPTIONAL: [&str; 11] = [
    "tun",
    "dummy",
    "nft_compat",
    "nft_ct",
    "nft_limit",
    "nft_numgen",
    "nft_counter",
    "nft_reject_inet",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
];

/// All that is asked for: what was unpacked for another list lacks some.
pub(crate) fn wanted() -> String {
    let names: Vec<&str> = REQUIRED.into_iter().chain(OPTIONAL).collect();
    names.join("\n")
}

/// A module's name and its uncompressed content.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// Reads the modules needed and all they depend on from `tree` (a `lib/modules/<version>`), each
/// after its dependencies.
pub(crate) fn load_order(tree: &Path) -> Result<Vec<Module>> {
    let files = index(tree)?;
    let builtin = builtin(tree)?;
    let mut ordered = Vec::new();
    let mut placed = HashSet::new();
    for name in REQUIRED {
        place(name, &files, &builtin, &mut placed, &mut ordered)?;
    }
    for name in OPTIONAL {
        if files.contains_key(name) {
            place(name, &files, &builtin, &mut placed, &mut ordered)?;
        }
    }
    Ok(ordered)
}

fn place(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    builtin: &HashSet<String>,
    placed: &mut HashSet<String>,
    ordered: &mut Vec<Module>,
) -> Result<()> {
    if builtin.contains(name) || !placed.insert(name.to_owned()) {
        return Ok(());
    }
    let path = files
        .get(name)
        .with_context(|| format!("the kernel has no module {name}, nor is it built in"))?;
    let content = decompressed(path)?;
    for dependency in dependencies(&content).with_context(|| path.display().to_string())? {
        place(&dependency, files, builtin, placed, ordered)?;
    }
    ordered.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

/// Every module file below `tree`, by the module's name.
fn index(tree: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![tree.to_path_buf()];
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

fn builtin(tree: &Path) -> Result<HashSet<String>> {
    let path = tree.join("modules.builtin");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text
        .lines()
        .filter_map(|line| module_name(line.rsplit('/').next()?))
        .collect())
}

/// The name the kernel knows the module in `file` by; None where it is no module.
fn module_name(file: &str) -> Option<String> {
    let (stem, extension) = file.split_once(".ko")?;
    matches!(extension, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| path.display().to_string()),
    };
    let mut command = Command::new(program);
    command.args(["--decompress", "--stdout"]).arg(path);
    let output = process::output(&mut command)?;
    if !output.status.success() {
        bail!("{}: {}", process::line(&command), output.status);
    }
    Ok(output.stdout)
}

/// What the module says it depends on (`depends=a,b` in its `.modinfo` section).
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file
        .section_by_name(".modinfo")
        .context("no .modinfo section")?;
    Ok(parse_depends(section.data()?))
}

fn parse_depends(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::plain("veth.ko", Some("veth"))]
    #[case::compressed("sch_netem.ko.xz", Some("sch_netem"))]
    #[case::dashes("nf-conntrack-x.ko.zst", Some("nf_conntrack_x"))]
    #[case::other("modules.order", None)]
    #[case::debug("veth.ko.debug", None)]
    fn module_names_come_from_files(#[case] file: &str, #[case] name: Option<&str>) {
        assert_eq!(module_name(file).as_deref(), name);
    }

    #[test]
    fn dependencies_come_from_modinfo() {
        assert_eq!(
            parse_depends(b"license=GPL\0depends=nfnetlink,libcrc32c\0retpoline=Y\0"),
            ["nfnetlink", "libcrc32c"]
        );
        assert_eq!(parse_depends(b"depends=\0"), Vec::<String>::new());
    }
}
