//! One VM: its initramfs, its boot under QEMU, and the verdict read from its serial console. The
//! emulator is always TCG, which every host has, so a result never depends on nested KVM.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::{
    cpio,
    kernel::Kernel,
    process::{self, Niceness},
};

/// The emulator, and the Debian package it comes in.
pub(crate) const EMULATOR: &str = "qemu-system-x86_64";
pub(crate) const EMULATOR_PACKAGE: &str = "qemu-system-x86";

/// The guest's CPUs take turns on one thread. Until 8.1, QEMU with a thread for each translated code
/// while another CPU wrote it ("accel/tcg: Always lock pages before translation"), so that a kernel
/// patching its own jump labels, static calls or ftrace sites could die of a stale int3.
const ACCELERATOR: &str = "tcg,thread=single";

/// Guards against what does not happen in a VM of our own, and an emulator pays dearly for: indirect jumps by
/// retpolines, and zeroed pages. What the verifier accepts stays the same, as it lifts its guards against
/// speculation for CAP_PERFMON too.
const UNGUARDED: &str = "mitigations=off init_on_alloc=0";

/// Memory of a VM: the unpacked programs, a kernel, and thousands of sockets.
const MEMORY_MIB: u32 = 1024;

/// How long a VM may take to power off once its init has spoken.
const POWER_OFF_GRACE: Duration = Duration::from_secs(20);

/// Messages of a kernel that is not to be trusted any more.
const CRASH_MARKERS: [&str; 6] = [
    "Kernel panic",
    "BUG:",
    "soft lockup",
    "hard LOCKUP",
    "rcu: INFO",
    "Oops:",
];

/// The programs of a VM: the init, and files of `/bin` by name.
pub(crate) struct Programs {
    pub(crate) init: PathBuf,
    pub(crate) bin: Vec<(&'static str, PathBuf)>,
    /// Files of the host that go where they are there.
    pub(crate) libraries: Vec<PathBuf>,
}

/// What became of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The init said success, once, and the kernel had no complaint.
    Success,
    /// The init said failure.
    Failure,
    /// The kernel crashed or hung; its message.
    Crash(String),
    /// The init gave more than one verdict.
    Contradiction,
    /// The VM ended without a verdict.
    Silence,
    /// The VM was killed after this long.
    Timeout(Duration),
}

/// Writes the initramfs for `kernel` to `path`.
pub(crate) fn write_initramfs(path: &Path, kernel: &Kernel, programs: &Programs) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut archive = cpio::Archive::new(BufWriter::new(file));
    for directory in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        archive.directory(directory)?;
    }
    // The kernel opens the console for the init before anything is mounted.
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.character_device("dev/null", 0o666, 1, 3)?;
    archive.file("init", 0o755, &read(&programs.init)?)?;
    for (name, program) in &programs.bin {
        archive.file(&format!("bin/{name}"), 0o755, &read(program)?)?;
    }
    let mut directories = BTreeSet::new();
    for library in &programs.libraries {
        let data = read(library)?;
        let library = library.strip_prefix("/").unwrap_or(library);
        let mut parents: Vec<_> = library.ancestors().skip(1).collect();
        // The last is the root, which is there.
        parents.pop();
        for directory in parents.into_iter().rev() {
            if directories.insert(directory) {
                archive.directory(&directory.to_string_lossy())?;
            }
        }
        archive.file(&library.to_string_lossy(), 0o755, &data)?;
    }
    let mut order = String::new();
    for module in &kernel.modules {
        let name = module
            .file_name()
            .with_context(|| format!("{} names no file", module.display()))?
            .to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, &read(module)?)?;
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    archive.finish().context("writing the initramfs")?;
    Ok(())
}

/// What a VM's clock goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The host's, for two CPUs.
    Host,
    /// The instructions of its one CPU: one is a nanosecond. While it waits for a timer, the time jumps to that,
    /// so that no time passes of which nothing was done.
    Instructions,
}

impl Clock {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["-smp", "2"],
            Self::Instructions => &["-smp", "1", "-icount", "shift=0,sleep=off"],
        }
    }
}

/// Boots `kernel` and watches its console until it ends, crashes, or `timeout` has passed.
/// `on_line` gets each line as it comes.
pub(crate) fn boot(
    kernel: &Kernel,
    initramfs: &Path,
    init_arguments: &str,
    timeout: Duration,
    on_line: impl FnMut(&str) -> Result<()>,
) -> Result<Verdict> {
    boot_with(
        Clock::Host,
        kernel,
        initramfs,
        init_arguments,
        timeout,
        on_line,
    )
}

/// The same with a clock of its own.
pub(crate) fn boot_with(
    clock: Clock,
    kernel: &Kernel,
    initramfs: &Path,
    init_arguments: &str,
    timeout: Duration,
    mut on_line: impl FnMut(&str) -> Result<()>,
) -> Result<Verdict> {
    let mut command = Command::new(EMULATOR);
    command
        .args(["-accel", ACCELERATOR, "-cpu", "max"])
        .args(clock.arguments())
        .arg("-no-reboot")
        .args(["-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 quiet {UNGUARDED} {}",
            init_arguments.trim()
        ));
    let mut emulator = Emulator::start(&mut command)?;
    let lines = emulator.lines()?;
    let mut deadline = Instant::now() + timeout;
    let mut watch = Watch::default();
    loop {
        let patience = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(patience) {
            Ok(line) => {
                on_line(&line)?;
                let had_spoken = watch.has_spoken();
                watch.line(&line);
                if watch.crash.is_some() {
                    // The lines that explain it follow within a moment.
                    deadline = deadline.min(Instant::now() + Duration::from_secs(2));
                } else if !had_spoken && watch.has_spoken() {
                    deadline = deadline.min(Instant::now() + POWER_OFF_GRACE);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) if watch.is_settled() => break,
            Err(mpsc::RecvTimeoutError::Timeout) => return Ok(Verdict::Timeout(timeout)),
        }
    }
    Ok(watch.verdict())
}

/// A running emulator, killed when dropped.
struct Emulator(Child);

impl Emulator {
    /// Starts it. It is killed should the calling thread end first, as by an interrupt of this process.
    fn start(command: &mut Command) -> Result<Self> {
        process::yielding(command, Niceness::Vm);
        // SAFETY: prctl(2) is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(
                    Signal::KILL,
                ))?)
            });
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map(Self)
            .with_context(|| format!("starting {EMULATOR}"))
    }

    /// The console's lines, read on a thread of its own so that waiting for one can time out.
    fn lines(&mut self) -> Result<mpsc::Receiver<String>> {
        let console = self.0.stdout.take().context("the emulator has no stdout")?;
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || read_lines(console, &sender))
            .context("starting the console's reader")?;
        Ok(receiver)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only where it has already ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_lines(console: ChildStdout, sender: &mpsc::Sender<String>) {
    let mut console = BufReader::new(console);
    let mut bytes = Vec::new();
    while matches!(console.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        if sender.send(line).is_err() {
            break;
        }
    }
}

/// What the console has said about the VM's fate.
#[derive(Debug, Default)]
struct Watch {
    successes: u32,
    failures: u32,
    crash: Option<String>,
}

impl Watch {
    fn line(&mut self, line: &str) {
        match line.trim() {
            "init: success" => self.successes += 1,
            "init: failure" => self.failures += 1,
            line => {
                if self.crash.is_none()
                    && let Some(message) = kernel_message(line)
                    && CRASH_MARKERS.iter().any(|marker| message.contains(marker))
                {
                    self.crash = Some(message.to_owned());
                }
            }
        }
    }

    fn has_spoken(&self) -> bool {
        self.successes + self.failures > 0
    }

    fn is_settled(&self) -> bool {
        self.has_spoken() || self.crash.is_some()
    }

    fn verdict(self) -> Verdict {
        match (self.crash, self.successes, self.failures) {
            (Some(message), ..) => Verdict::Crash(message),
            (None, 1, 0) => Verdict::Success,
            (None, 0, 1) => Verdict::Failure,
            (None, 0, 0) => Verdict::Silence,
            (None, ..) => Verdict::Contradiction,
        }
    }
}

/// The text after a kernel message's `[   12.345678] `; None where the line has none, such as a
/// program's output that happens to contain the words of a crash.
fn kernel_message(line: &str) -> Option<&str> {
    let (before, message) = line.split_once("] ")?;
    let (_, timestamp) = before.rsplit_once('[')?;
    let (seconds, micros) = timestamp.trim_start().split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(seconds) && is_number(micros)).then_some(message)
}

/// Appends lines to a log file, and gives what it holds for the report.
pub(crate) struct Log {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Log {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self {
            path,
            file: BufWriter::new(file),
        })
    }

    pub(crate) fn line(&mut self, line: &str) -> Result<()> {
        // Flushed by the line: somebody may be following a run that hangs.
        writeln!(self.file, "{line}")
            .and_then(|()| self.file.flush())
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn an_emulator_does_not_outlive_the_thread_that_started_it() {
        let start = || Emulator::start(Command::new("sleep").arg("5")).unwrap();
        let mut emulator = thread::spawn(start).join().unwrap();
        let status = emulator.0.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    }

    fn verdict(text: &str) -> Verdict {
        let mut watch = Watch::default();
        for line in text.lines() {
            watch.line(line);
        }
        watch.verdict()
    }

    #[rstest::rstest]
    #[case::success("test a ... ok\r\ninit: success\r\n", Verdict::Success)]
    #[case::failure("init: failure", Verdict::Failure)]
    #[case::nothing("test a ... ok", Verdict::Silence)]
    #[case::twice("init: success\ninit: success", Verdict::Contradiction)]
    #[case::both("init: failure\ninit: success", Verdict::Contradiction)]
    #[case::quoted("a test prints `init: success`", Verdict::Silence)]
    fn verdict_is_the_init_s_one_line(#[case] text: &str, #[case] expected: Verdict) {
        assert_eq!(verdict(text), expected);
    }

    #[test]
    fn crash_outweighs_success() {
        assert_eq!(
            verdict("[    9.1] BUG: unable to handle page fault\ninit: success"),
            Verdict::Crash("BUG: unable to handle page fault".into())
        );
        assert_eq!(
            verdict("test x ... [   61.000123] watchdog: BUG: soft lockup - CPU#1 stuck"),
            Verdict::Crash("watchdog: BUG: soft lockup - CPU#1 stuck".into())
        );
    }

    #[test]
    fn program_that_speaks_of_crashes_is_no_crash() {
        assert_eq!(
            verdict("advice: [see] Kernel panic\ninit: success"),
            Verdict::Success
        );
    }
}
