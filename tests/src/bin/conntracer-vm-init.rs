//! The init of the test VM: a machine with a kernel, this program, and what it runs.
//!
//! Mounts what conntracer and the tests look at, loads the modules of `/modules/order`, runs what
//! the kernel's command line asks for, prints the verdict, and powers off:
//!
//! | parameter | meaning |
//! |---|---|
//! | `conntracer.run=` | `tests` (`/bin/kernel-tests`, by `/bin/conntracer-live`), `demo` (`/bin/conntracer-demo`) or `cost` (`/bin/conntracer-workload count`) |
//! | `conntracer.hooks=` | hook mode, default `auto` |
//! | `conntracer.transport=` | how records leave the kernel, default `ringbuf` |
//! | `conntracer.unshared=` | `1`: each test has a conntracer of its own |
//! | `conntracer.threads=` | tests at a time |
//! | `conntracer.filter=` | test filters, separated by commas |
//!
//! Exactly one line `init: success` or `init: failure` is printed, and nothing else counts.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the console is the only output"
)]

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use conntracer_tests::netlink;
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
    system::{RebootCommand, reboot},
};

/// File system type and where it goes, in order; the last column says whether nothing works without.
const MOUNTS: [(&str, &str, bool); 9] = [
    ("proc", "/proc", true),
    ("sysfs", "/sys", true),
    ("devtmpfs", "/dev", true),
    ("tmpfs", "/tmp", true),
    ("tmpfs", "/run", true),
    ("tracefs", "/sys/kernel/tracing", false),
    ("debugfs", "/sys/kernel/debug", false),
    ("bpf", "/sys/fs/bpf", false),
    ("cgroup2", "/sys/fs/cgroup", false),
];

/// Tests at a time: the VM has two CPUs, and tests mostly wait for timers.
const TEST_THREADS: &str = "6";
/// Where xtask puts it.
const CONNTRACER: &str = "/bin/conntracer";
/// Where xtask puts it, if the host has it.
const SS: &str = "/bin/ss";

fn main() {
    let verdict = match start() {
        Ok(()) => "success",
        Err(error) => {
            eprintln!("init: {error:#}");
            "failure"
        }
    };
    println!("init: {verdict}");
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        // The kernel panics when its init ends, which also ends the VM.
        eprintln!("init: powering off: {error}");
    }
}

fn start() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is the init of a VM, and not for any other use"
    );
    for (kind, target, is_needed) in MOUNTS {
        let mounted = mount_at(kind, target);
        if is_needed {
            mounted?;
        } else if let Err(error) = mounted {
            eprintln!("init: {error:#}");
        }
    }
    netlink::raise_loopback().context("raising the loopback interface")?;
    load_modules(Path::new("/modules"))?;
    let parameters = Parameters::parse(
        &fs::read_to_string("/proc/cmdline").context("reading the kernel's command line")?,
    )?;
    let status = parameters
        .command()
        .status()
        .context("starting what was asked for")?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn mount_at(kind: &str, target: &str) -> Result<()> {
    fs::create_dir_all(target)
        .or_else(|error| {
            // A directory of sysfs cannot be made; when it is missing the mount says so.
            if error.kind() == ErrorKind::PermissionDenied {
                Ok(())
            } else {
                Err(error)
            }
        })
        .with_context(|| format!("making {target}"))?;
    match mount(kind, target, kind, MountFlags::empty(), None) {
        // Some are mounted by the kernel itself (devtmpfs with CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mounting {kind} on {target}")),
    }
}

/// Loads the modules named in `order`, one a line.
fn load_modules(directory: &Path) -> Result<()> {
    let order = match fs::read_to_string(directory.join("order")) {
        Ok(order) => order,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("reading the order of the modules"),
    };
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = directory.join(name);
        let module = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        match rustix::system::finit_module(&module, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("loading {name}")),
        }
    }
    Ok(())
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Parameters {
    program: Program,
    hooks: String,
    transport: String,
    is_unshared: bool,
    threads: String,
    filters: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Tests,
    Demo,
    Cost,
}

impl Parameters {
    fn parse(command_line: &str) -> Result<Self> {
        let value = |name: &str| {
            command_line
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let program = match value("conntracer.run") {
            None | Some("tests") => Program::Tests,
            Some("demo") => Program::Demo,
            Some("cost") => Program::Cost,
            Some(other) => bail!("conntracer.run={other}: neither tests, demo nor cost"),
        };
        Ok(Self {
            program,
            hooks: value("conntracer.hooks").unwrap_or("auto").to_owned(),
            transport: value("conntracer.transport")
                .unwrap_or("ringbuf")
                .to_owned(),
            is_unshared: value("conntracer.unshared") == Some("1"),
            threads: value("conntracer.threads")
                .unwrap_or(TEST_THREADS)
                .to_owned(),
            filters: value("conntracer.filter")
                .into_iter()
                .flat_map(|filters| filters.split(','))
                .filter(|filter| !filter.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }

    fn command(&self) -> Command {
        let mut command = match self.program {
            Program::Tests => {
                let mut command = Command::new("/bin/conntracer-live");
                command
                    .args(["/bin/kernel-tests", "--test-threads", &self.threads])
                    .args(&self.filters);
                if self.is_unshared {
                    command.env("CONNTRACER_UNSHARED", "1");
                }
                // A VM is made for tracing: a test that skips for want of it has failed.
                command.env("CONNTRACER_MUST_TRACE", "1");
                if Path::new(SS).is_file() {
                    command.env("CONNTRACER_SS", SS);
                }
                command
            }
            Program::Demo => Command::new("/bin/conntracer-demo"),
            Program::Cost => {
                let mut command = Command::new("/bin/conntracer-workload");
                command
                    .args(["count", "--conntracer", CONNTRACER])
                    .args(["--hooks", &self.hooks]);
                command
            }
        };
        command
            .env("CONNTRACER_BIN", CONNTRACER)
            .env("CONNTRACER_HOOKS", &self.hooks)
            .env("CONNTRACER_TRANSPORT", &self.transport)
            // A tenth of what a real CPU takes in its stride.
            .env("CONNTRACER_FLOOD_SYNS", "20000")
            .env("RUST_BACKTRACE", "1");
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_command_line_runs_all_tests() {
        let parameters = Parameters::parse("console=ttyS0 panic=-1 quiet\n").unwrap();
        let expected = Parameters {
            program: Program::Tests,
            hooks: "auto".to_owned(),
            transport: "ringbuf".to_owned(),
            is_unshared: false,
            threads: TEST_THREADS.to_owned(),
            filters: Vec::new(),
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn parameters_are_taken_by_their_whole_name() {
        let parameters = Parameters::parse(
            "conntracer.hooks2=no conntracer.hooks=kprobe conntracer.filter=syn,half conntracer.run=demo \
             conntracer.transport=perf conntracer.unshared=1 conntracer.threads=3",
        )
        .unwrap();
        let expected = Parameters {
            program: Program::Demo,
            hooks: "kprobe".to_owned(),
            transport: "perf".to_owned(),
            is_unshared: true,
            threads: "3".to_owned(),
            filters: vec!["syn".to_owned(), "half".to_owned()],
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn an_unknown_program_is_refused() {
        assert!(Parameters::parse("conntracer.run=shell").is_err());
    }
}
