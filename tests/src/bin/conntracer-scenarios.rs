//! Records every scenario, IPv4 and IPv6, as test data: `conntracer-scenarios DIRECTORY` writes
//! `<scenario>_<family>.ctrec`, and `<scenario>.toml` where other than default thresholds were used.
//!
//! A replay of these needs neither root nor a kernel to trace. Existing files are replaced, each only
//! after conntracer has said of its scenario what it should. Nothing in them names this machine: the
//! host is called [`HOSTNAME`], and its kernel by its version alone.

#![expect(clippy::print_stderr, reason = "tells on standard error what it does")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use conntracer_tests::{
    family::Family,
    line::{Finding, Status},
    netns::NetNs,
    scenario::{
        accept_queue::{AcceptQueueFull, AckOverflow},
        dead_peer::DeadPeer,
        ghost_syns::{Cookies, GhostSyns},
        half_closed::{self, HalfClosed},
        healthy::Healthy,
        lossy_path::LossyPath,
    },
    tracer::{Binary, NotStarted, Tracer},
    wait::{EVENTUALLY, SOON},
};
use serde_json::{Value, json};

/// What a recording's host is called.
const HOSTNAME: &str = "recorded";

/// The default is a minute.
const HALF_CLOSED_CONFIG: &str = "[detect.half_open]\nhalf_closed_after_s = 1\n";

/// Segments after which a storm is a storm by any threshold, and the record of each is 250 bytes.
const STORM_SEGMENTS: u64 = 200;

/// Before the head of a recording: `CONNTRC\n`, format, length of the head (`tracer/src/recording.rs`).
const MAGIC: &[u8] = b"CONNTRC\n";
const FORMAT: u32 = 1;

/// Runs one scenario from its beginning to the finding that is to come of it.
type Script = fn(Family, &Recorder) -> Result<()>;

const SCRIPTS: [(&str, Script); 9] = [
    ("accept_queue_full", accept_queue_full),
    ("ack_overflow", ack_overflow),
    ("syn_queue_full", |family, recorder| {
        flood(family, recorder, Cookies::Never, "syn_drop")
    }),
    ("syn_cookies", |family, recorder| {
        flood(family, recorder, Cookies::WhenFull, "syn_cookies")
    }),
    ("handshake", handshake),
    ("dead_peer", dead_peer),
    ("half_closed", half_closed),
    ("lossy_path", lossy_path),
    ("healthy", healthy),
];

fn main() -> Result<()> {
    let binary = Binary::from_env()
        .context("CONNTRACER_BIN does not name a conntracer; `cargo xtask record-data` sets it")?;
    let mut arguments = env::args_os().skip(1);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        bail!("name one directory to write to");
    };
    let directory = PathBuf::from(directory);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for (name, script) in SCRIPTS {
        for (family, suffix) in [(Family::V4, "v4"), (Family::V6, "v6")] {
            let recorder = Recorder::new(&binary, &directory, name, suffix)?;
            script(family, &recorder).with_context(|| recorder.name.clone())?;
            let bytes = recorder.keep()?;
            eprintln!("{}: {bytes} bytes", recorder.name);
        }
    }
    Ok(())
}

/// Where one scenario is recorded.
#[derive(Debug)]
struct Recorder {
    binary: Binary,
    name: String,
    /// Where it is kept once it is complete, and where until then.
    kept: PathBuf,
    directory: tempfile::TempDir,
    config: PathBuf,
}

impl Recorder {
    fn new(binary: &Binary, kept: &Path, scenario: &str, suffix: &str) -> Result<Self> {
        let name = format!("{scenario}_{suffix}");
        Ok(Self {
            binary: binary.clone(),
            kept: kept.join(format!("{name}.ctrec")),
            directory: tempfile::tempdir().context("making a temporary directory")?,
            config: kept.join(format!("{scenario}.toml")),
            name,
        })
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("recording")
    }

    /// Starts recording `netns` with the default thresholds.
    fn start(&self, netns: &NetNs) -> Result<Tracer> {
        started(Tracer::of(&mut self.binary.record(netns, &self.file())))
    }

    /// The same with other thresholds, which are kept beside the recording.
    fn start_with(&self, netns: &NetNs, config: &str) -> Result<Tracer> {
        fs::write(&self.config, config)
            .with_context(|| format!("writing {}", self.config.display()))?;
        let mut command = self.binary.record(netns, &self.file());
        started(Tracer::of(command.arg("--config").arg(&self.config)))
    }

    /// Puts the recording where it belongs, without this machine's names; returns its size.
    fn keep(&self) -> Result<usize> {
        let recording = fs::read(self.file()).context("reading the recording")?;
        let neutral = neutral(&recording)?;
        fs::write(&self.kept, &neutral)
            .with_context(|| format!("writing {}", self.kept.display()))?;
        Ok(neutral.len())
    }
}

fn started(tracer: Result<Tracer, NotStarted>) -> Result<Tracer> {
    tracer.map_err(|error| match error {
        NotStarted::CannotTrace(reason) => anyhow!("cannot trace here: {reason}"),
        NotStarted::Failed(error) => error,
    })
}

/// The same recording of a host without a name, its kernel's release cut to the version.
fn neutral(recording: &[u8]) -> Result<Vec<u8>> {
    let rest = recording
        .strip_prefix(MAGIC)
        .context("not a recording of conntracer")?;
    let (format, rest) = rest.split_first_chunk().context("no format")?;
    let format = u32::from_ne_bytes(*format);
    ensure!(format == FORMAT, "a recording of format {format}");
    let (length, rest) = rest.split_first_chunk().context("no length of the head")?;
    let (head, records) = rest
        .split_at_checked(usize::try_from(u32::from_ne_bytes(*length))?)
        .context("the recording ends within its head")?;
    let mut host: Value = serde_json::from_slice(head).context("reading the head")?;
    let version = host["kernel"]
        .as_str()
        .and_then(|release| release.split('-').next())
        .context("a host without a kernel")?
        .to_owned();
    host["kernel"] = json!(version);
    host["hostname"] = json!(HOSTNAME);
    let head = serde_json::to_vec(&host)?;
    let mut neutral = MAGIC.to_vec();
    neutral.extend(FORMAT.to_ne_bytes());
    neutral.extend(u32::try_from(head.len())?.to_ne_bytes());
    neutral.extend(head);
    neutral.extend(records);
    Ok(neutral)
}

fn of(kind: &str, cause: &str) -> impl Fn(&Finding) -> bool {
    move |finding| finding.finding == kind && finding.cause == cause
}

fn accept_queue_full(family: Family, recorder: &Recorder) -> Result<()> {
    let mut scenario = AcceptQueueFull::new(family)?;
    let mut tracer = recorder.start(&scenario.netns)?;
    scenario.provoke()?;
    tracer.wait_for("a finding", SOON, of("syn_drop", "accept_queue_full"))?;
    scenario.quiet()?;
    tracer.stop()?;
    Ok(())
}

fn ack_overflow(family: Family, recorder: &Recorder) -> Result<()> {
    let mut scenario = AckOverflow::new(family)?;
    let mut tracer = recorder.start(&scenario.netns)?;
    scenario.provoke()?;
    tracer.wait_for("a finding", SOON, of("syn_drop", "ack_overflow"))?;
    scenario.quiet()?;
    tracer.stop()?;
    Ok(())
}

fn flood(family: Family, recorder: &Recorder, cookies: Cookies, finding: &str) -> Result<()> {
    let mut scenario = GhostSyns::new(family, cookies)?;
    let mut tracer = recorder.start(&scenario.pair.server)?;
    scenario.flood()?;
    tracer.wait_for("a finding", SOON, of(finding, "syn_queue_full"))?;
    scenario.quiet();
    tracer.stop()?;
    Ok(())
}

fn handshake(family: Family, recorder: &Recorder) -> Result<()> {
    let mut scenario = GhostSyns::new(family, Cookies::WhenFull)?;
    let mut tracer = recorder.start(&scenario.pair.server)?;
    scenario.abandon()?;
    tracer.wait_for("a finding", SOON, of("half_open", "handshake"))?;
    scenario.quiet();
    tracer.stop()?;
    Ok(())
}

fn dead_peer(family: Family, recorder: &Recorder) -> Result<()> {
    let mut scenario = DeadPeer::new(family)?;
    let mut tracer = recorder.start(&scenario.pair.server)?;
    scenario.connect()?;
    scenario.vanish()?;
    tracer.wait_for("its confirmation", EVENTUALLY, |finding| {
        of("half_open", "dead_peer")(finding) && finding.stage.as_deref() == Some("confirmed")
    })?;
    scenario.quiet()?;
    tracer.stop()?;
    Ok(())
}

fn half_closed(family: Family, recorder: &Recorder) -> Result<()> {
    let mut scenario = HalfClosed::new(family)?;
    let mut tracer = recorder.start_with(&scenario.pair.server, HALF_CLOSED_CONFIG)?;
    scenario.provoke()?;
    tracer.wait_for("all leaked sockets", EVENTUALLY, |finding| {
        of("half_open", "half_closed")(finding) && finding.count == half_closed::LEAKED as u64
    })?;
    scenario.mend();
    tracer.wait_for("the resolution", SOON, |finding| {
        of("half_open", "half_closed")(finding) && finding.status == Status::Resolved
    })?;
    tracer.stop()?;
    Ok(())
}

fn lossy_path(family: Family, recorder: &Recorder) -> Result<()> {
    let mut scenario = LossyPath::new(family)?;
    let mut tracer = recorder.start(&scenario.pair.server)?;
    scenario.provoke(STORM_SEGMENTS)?;
    tracer.wait_for("a finding", SOON, |finding| {
        finding.finding == "retransmit_storm"
    })?;
    scenario.mend()?;
    tracer.wait_for("the end of the storm", EVENTUALLY, |finding| {
        finding.finding == "retransmit_storm" && finding.status == Status::Resolved
    })?;
    tracer.stop()?;
    Ok(())
}

fn healthy(family: Family, recorder: &Recorder) -> Result<()> {
    let mut scenario = Healthy::new(family)?;
    let tracer = recorder.start(&scenario.pair.server)?;
    scenario.run()?;
    tracer.stop()?;
    Ok(())
}
