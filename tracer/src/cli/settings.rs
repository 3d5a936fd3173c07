//! What the command line and the config file together mean. The command line wins.

use std::{fs, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::Context;

use super::{KernelArguments, OutputArguments, RunArguments};
use crate::{
    config::{Audit, Config},
    emit::Emits,
    plan::{HookMode, Transport},
    sink::{Format, Output, Selection, To},
};

/// How to look at the kernel, from flags and file.
#[must_use]
pub fn trace(typed: &KernelArguments, config: &Config) -> crate::config::Trace {
    let file = &config.trace;
    let hooks: HookMode = typed.hooks.unwrap_or(file.hooks);
    let transport: Transport = typed.transport.unwrap_or(file.transport);
    crate::config::Trace {
        hooks,
        transport,
        btf: typed.btf.clone().unwrap_or_else(|| file.btf.clone()),
        max_sockets: file.max_sockets,
        ring_bytes: file.ring_bytes,
        audit: file.audit.clone(),
    }
}

/// Whether idle connections are looked for, by flag or else by the file.
#[must_use]
pub fn audits_keepalive(typed: &RunArguments, config: &Config) -> bool {
    let audits = if typed.audit.is_empty() {
        &config.trace.audit
    } else {
        &typed.audit
    };
    audits.contains(&Audit::Keepalive)
}

/// Kinds to print, from flags or else the file.
#[must_use]
pub fn emits(typed: &OutputArguments, config: &Config) -> Emits {
    Emits::of(if typed.emit.is_empty() {
        &config.output.emit
    } else {
        &typed.emit
    })
}

/// The output that is asked for; what comes from the command line wins.
#[must_use]
pub fn output(typed: &OutputArguments, config: &Config) -> Output {
    Output {
        to: To::file(typed.output.as_deref()),
        format: typed.format.unwrap_or(config.output.format),
        selection: Selection {
            emits: emits(typed, config),
            findings: Vec::new(),
        },
        verbose: typed.common.verbose > 0,
    }
}

/// What `--metrics` asks for.
#[must_use]
pub fn metrics(address: &str) -> Output {
    let to = To::metrics(address);
    Output {
        format: Format::Json,
        selection: Selection {
            emits: to.needs(),
            findings: Vec::new(),
        },
        to,
        verbose: false,
    }
}

/// Creates a file that must not exist. `O_EXCL` follows no link either.
pub fn create_new(path: &Path) -> anyhow::Result<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path)
        .with_context(|| {
            format!(
                "creating {}: name a file that does not exist yet",
                path.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::emit::Emit;

    #[test]
    fn the_command_line_wins() {
        let mut config = Config::default();
        config.output.emit = vec![Emit::Reset];
        config.trace.hooks = HookMode::Kprobe;
        let mut typed = OutputArguments::default();
        assert_eq!(emits(&typed, &config), Emits::of(&[Emit::Reset]));
        typed.emit = vec![Emit::Drop, Emit::Stats];
        assert_eq!(
            emits(&typed, &config),
            Emits::of(&[Emit::Drop, Emit::Stats])
        );
        let mut kernel = KernelArguments::default();
        assert_eq!(trace(&kernel, &config).hooks, HookMode::Kprobe);
        kernel.hooks = Some(HookMode::Fentry);
        assert_eq!(trace(&kernel, &config).hooks, HookMode::Fentry);
    }

    #[test]
    fn a_file_that_is_there_is_not_created() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("link");
        assert!(create_new(&target).is_ok());
        symlink(&target, &link).unwrap();
        assert!(create_new(&target).is_err());
        assert!(create_new(&link).is_err());
    }
}
