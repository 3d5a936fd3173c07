//! What the command line and the config file together mean. The command line wins.

use std::{
    env, fs,
    io::{self, IsTerminal},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use anyhow::Context;

use super::{KernelArguments, OutputArguments, RunArguments};
use crate::{
    config::{Audit, Config, Format},
    emit::Emits,
    plan::{HookMode, Transport},
    sink::{Renderer, SharedHost, json::Json, text::Text},
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

/// Where output goes and how it is written.
#[derive(Debug)]
pub struct Destination {
    pub file: fs::File,
    format: Format,
}

impl Destination {
    /// Opens it: before anything is attached, so that a wrong name is said at once.
    pub fn open(typed: &OutputArguments, config: &Config) -> anyhow::Result<Self> {
        let file = match &typed.output {
            Some(path) => append(path)?,
            None => standard_output().context("opening standard output")?,
        };
        let format = resolve(
            typed.format.unwrap_or(config.output.format),
            file.is_terminal(),
        );
        Ok(Self { file, format })
    }

    /// The renderer for this destination.
    #[must_use]
    pub fn renderer(&self, host: SharedHost) -> Renderer {
        match self.format {
            Format::Json => Renderer::Json(Json::new(host)),
            Format::Text | Format::Auto => {
                let terminal = self.file.is_terminal();
                Renderer::Text(Text::new(
                    host,
                    terminal && wants_colour(|name| env::var_os(name)),
                ))
            }
        }
    }
}

/// `auto` settled: text where a person reads.
#[must_use]
pub const fn resolve(format: Format, terminal: bool) -> Format {
    match (format, terminal) {
        (Format::Auto, true) => Format::Text,
        (Format::Auto, false) => Format::Json,
        (chosen, _) => chosen,
    }
}

/// A second descriptor of standard output: `io::stdout` would buffer by lines under our batches.
pub fn standard_output() -> io::Result<fs::File> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Opens a file to append to. No link is followed: root writing into a directory of somebody else
/// must not be led elsewhere.
fn append(path: &Path) -> anyhow::Result<fs::File> {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(named_link)
        .with_context(|| format!("opening {} to append to", path.display()))
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

fn named_link(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::ELOOP) {
        io::Error::other("it is a symbolic link, which conntracer does not follow")
    } else {
        error
    }
}

/// <https://no-color.org>: any value that is not empty forbids colour.
fn wants_colour(environment: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    environment("NO_COLOR").is_none_or(|value| value.is_empty())
        && environment("TERM").is_none_or(|term| term != "dumb")
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
    fn output_follows_no_link_and_appends() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("link");
        fs::write(&target, "kept\n").unwrap();
        symlink(&target, &link).unwrap();
        assert!(format!("{:#}", append(&link).unwrap_err()).contains("symbolic link"));
        io::Write::write_all(&mut append(&target).unwrap(), b"more\n").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept\nmore\n");
        assert!(create_new(&target).is_err());
        assert!(create_new(&link).is_err());
    }

    #[test]
    fn colour_can_be_forbidden() {
        let environment = |set: &'static [(&str, &str)]| {
            move |name: &str| {
                set.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).into())
            }
        };
        assert!(wants_colour(environment(&[])));
        assert!(wants_colour(environment(&[("NO_COLOR", "")])));
        assert!(!wants_colour(environment(&[("NO_COLOR", "1")])));
        assert!(!wants_colour(environment(&[("TERM", "dumb")])));
    }
}
