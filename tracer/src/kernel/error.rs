//! Why conntracer cannot trace here: one sentence each, with what to do. Exit code 3.

use std::{error::Error as _, io, path::PathBuf};

use aya::programs::ProgramError;
use log::debug;

use super::btf::BtfError;
use crate::plan::HookType;

#[derive(Debug, thiserror::Error)]
pub enum CannotTrace {
    #[error(
        "this binary was built without its eBPF object; build it with `cargo xtask build --release`"
    )]
    NoObject,
    #[error(
        "conntracer needs root, or {}: run it with sudo",
        missing.join(", ")
    )]
    NotPermitted { missing: Vec<&'static str> },
    #[error(
        "reading {path}: {source}; this kernel was built without CONFIG_DEBUG_INFO_BTF, or --btf names the wrong file",
        path = path.display()
    )]
    NoBtf { path: PathBuf, source: io::Error },
    #[error(
        "{path}: {source}; conntracer needs the BTF of the running kernel, which is /sys/kernel/btf/vmlinux where CONFIG_DEBUG_INFO_BTF is set",
        path = path.display()
    )]
    BadBtf { path: PathBuf, source: BtfError },
    #[error("loading the eBPF object: {0}")]
    Object(#[from] aya::EbpfError),
    #[error("hook {hook} cannot be attached by {hook_type:?}: {reason}{}", remedy(*hook_type))]
    Hook {
        hook: &'static str,
        hook_type: HookType,
        reason: String,
    },
    #[error("{what}: {source}")]
    Kernel {
        what: &'static str,
        source: io::Error,
    },
    #[error(
        "the eBPF object has no {0}; it does not belong to this binary, build both with `cargo xtask build`"
    )]
    Foreign(&'static str),
    #[error("opening the {ring} ring: {reason}")]
    Ring { ring: &'static str, reason: String },
}

const fn remedy(hook_type: HookType) -> &'static str {
    match hook_type {
        HookType::Fentry | HookType::Kprobe => {
            "; --hooks auto uses the best that this kernel offers, `conntracer doctor` shows it"
        }
        HookType::Tracepoint | HookType::Off => {
            "; conntracer cannot work without it: check that the kernel has CONFIG_FTRACE and CONFIG_BPF_EVENTS, and that lockdown is not `confidentiality`"
        }
    }
}

/// One clause: the kernel's errno and, when it was the verifier, its last word.
pub(super) fn reason(error: &ProgramError) -> String {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            source = inner.source();
        }
        return text;
    };
    let log = verifier_log.to_string();
    debug!("verifier: {log}");
    let last = log.lines().map(str::trim).rfind(|line| {
        const TRAILERS: [&str; 4] = [
            "processed ",
            "verification time",
            "stack depth",
            "mark_precise",
        ];
        !line.is_empty() && !TRAILERS.iter().any(|trailer| line.starts_with(trailer))
    });
    match last {
        Some(last) if io_error.raw_os_error() != Some(libc::EPERM) => {
            format!("the verifier refused it ({io_error}): {last}")
        }
        _ => format!("loading it: {io_error}"),
    }
}
