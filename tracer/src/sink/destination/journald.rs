//! systemd-journald, by its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): a datagram an entry, with
//! fields of its own, and a sealed memory file for what is too large for one.
//!
//! A finding's message is its summary, and its priority its severity; the whole line is in `CONNTRACER_JSON`. A journal that
//! is restarted is connected to again; what it missed meanwhile is counted and said in an entry when it is back.

use std::{
    borrow::Cow,
    ffi::OsStr,
    io::{self, IoSlice, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};

use super::stream::Destination;
use crate::{
    count::plural,
    finding::{Finding, Severity, Status, Subject},
    sink::line::Line,
};

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Between two attempts to reach a journal that is away.
const AGAIN: Duration = Duration::from_secs(1);

/// 128-bit ids of the entries, the same for ever: of findings, and of everything else.
const FINDING_ID: &str = "8a5b1f4be4d34b6a9a3f0e0f5c1d7a21";
const OTHER_ID: &str = "c2f6a7d8803f4f6fb0f2f9d4b47c9e58";

/// syslog(3).
const CRITICAL: u8 = 2;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
const INFORMATION: u8 = 6;

pub(super) fn open(path: &OsStr) -> anyhow::Result<Box<dyn Destination>> {
    let path = if path.is_empty() {
        PathBuf::from(SOCKET)
    } else {
        PathBuf::from(path)
    };
    let socket = connect(&path).with_context(|| {
        format!(
            "connecting to the journal at {}: is systemd-journald running?",
            path.display()
        )
    })?;
    Ok(Box::new(Journal {
        path,
        socket: Some(socket),
        tried: Instant::now(),
        missed: 0,
    }))
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

#[derive(Debug)]
struct Journal {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    /// When it was last connected to.
    tried: Instant,
    /// Entries since it went away.
    missed: u64,
}

impl Destination for Journal {
    fn write(&mut self, line: &Line, rendered: &[u8]) -> io::Result<()> {
        if self.socket.is_none() && self.tried.elapsed() >= AGAIN {
            self.come_back();
        }
        let Some(socket) = &self.socket else {
            self.missed = self.missed.saturating_add(1);
            return Ok(());
        };
        if let Err(error) = send(socket, &entry(line, rendered)) {
            log::warn!("the journal at {}: {error}", self.path.display());
            self.socket = None;
            self.tried = Instant::now();
            self.missed = self.missed.saturating_add(1);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Journal {
    /// Connects again, and says what was missed.
    fn come_back(&mut self) {
        self.tried = Instant::now();
        let Ok(socket) = connect(&self.path) else {
            return;
        };
        let mut fields = Fields::default();
        fields.add(
            "MESSAGE",
            format!("the journal was away: {} entries are missing", self.missed).as_bytes(),
        );
        fields.common(WARNING, OTHER_ID);
        fields.add("CONNTRACER_KIND", b"gap");
        fields.add("CONNTRACER_LOST", self.missed.to_string().as_bytes());
        if send(&socket, &fields.0).is_ok() {
            self.missed = 0;
            self.socket = Some(socket);
        }
    }
}

/// Fields in the order in which they go.
#[derive(Debug, Default)]
struct Fields(Vec<u8>);

impl Fields {
    /// A value without a newline goes as text, any other with its length before it.
    fn add(&mut self, name: &str, value: &[u8]) {
        self.0.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            self.0.push(b'\n');
            self.0
                .extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn common(&mut self, priority: u8, id: &str) {
        self.add("PRIORITY", priority.to_string().as_bytes());
        self.add("SYSLOG_IDENTIFIER", b"conntracer");
        self.add("MESSAGE_ID", id.as_bytes());
    }
}

fn entry(line: &Line, rendered: &[u8]) -> Vec<u8> {
    let whole = rendered.trim_ascii_end();
    let mut fields = Fields::default();
    match line {
        Line::Finding(finding) => of_finding(&mut fields, finding),
        other => {
            fields.add("MESSAGE", told(other).as_bytes());
            let priority = if matches!(other, Line::Gap { .. } | Line::SinkGap(_)) {
                WARNING
            } else {
                INFORMATION
            };
            fields.common(priority, OTHER_ID);
            fields.add("CONNTRACER_KIND", other.kind().as_bytes());
        }
    }
    // Of an output whose format is text, it is that.
    let name = if whole.first() == Some(&b'{') {
        "CONNTRACER_JSON"
    } else {
        "CONNTRACER_TEXT"
    };
    fields.add(name, whole);
    fields.0
}

fn told(line: &Line) -> Cow<'static, str> {
    match line {
        Line::Start { .. } => "conntracer watches this host's TCP connections".into(),
        Line::Gap { hook, lost, .. } => {
            format!("{lost} records of the {hook} hook were lost before they could be judged")
                .into()
        }
        Line::SinkGap(gap) => format!(
            "{} were lost: the journal took them more slowly than they came",
            plural(gap.lost(), "line")
        )
        .into(),
        Line::Stats { .. } => "conntracer's figures".into(),
        Line::Stop { .. } => "conntracer has stopped".into(),
        Line::Now { .. } => "what is wrong at this moment".into(),
        Line::Event(_) => format!("a {} event", line.kind()).into(),
        Line::Finding(_) | Line::Clock { .. } => "conntracer".into(),
    }
}

fn of_finding(fields: &mut Fields, finding: &Finding) {
    let priority = match (finding.status, finding.severity) {
        (Status::Resolved, _) => INFORMATION,
        (_, Severity::Critical) => CRITICAL,
        (_, Severity::Warning) => WARNING,
        (_, Severity::Notice) => NOTICE,
    };
    let status = finding.status.name();
    let (kind, cause) = (finding.kind.name(), finding.cause.as_ref());
    let message = format!("{kind} {cause} {status}: {}", finding.summary);
    fields.add("MESSAGE", message.as_bytes());
    fields.common(priority, FINDING_ID);
    fields.add("CONNTRACER_KIND", b"finding");
    fields.add("CONNTRACER_FINDING", kind.as_bytes());
    fields.add("CONNTRACER_CAUSE", cause.as_bytes());
    fields.add("CONNTRACER_STATUS", status.as_bytes());
    fields.add("CONNTRACER_SEVERITY", finding.severity.name().as_bytes());
    for (name, number) in [
        ("CONNTRACER_ID", finding.id),
        ("CONNTRACER_INCIDENT", finding.incident),
        ("CONNTRACER_COUNT", finding.count),
    ] {
        fields.add(name, number.to_string().as_bytes());
    }
    if let Subject::Listener { local, .. } | Subject::Connection { local, .. } = finding.subject {
        fields.add("CONNTRACER_LOCAL", local.to_string().as_bytes());
    }
    if let Some(netns) = finding.subject.netns() {
        fields.add("CONNTRACER_NETNS", netns.to_string().as_bytes());
    }
    if let Some(owner) = &finding.owner {
        // What it is about: the journal itself says who wrote the entry.
        fields.add("OBJECT_PID", owner.pid.to_string().as_bytes());
        fields.add("CONNTRACER_COMM", owner.comm.as_bytes());
        if let Some(unit) = &owner.names.unit {
            fields.add("CONNTRACER_UNIT", unit.as_bytes());
        }
    }
}

/// As a datagram, or in a memory file where that is too large for one.
fn send(socket: &UnixDatagram, entry: &[u8]) -> io::Result<()> {
    match socket.send(entry) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
            send_file(socket, entry)
        }
        Err(error) => Err(error),
    }
}

fn send_file(socket: &UnixDatagram, entry: &[u8]) -> io::Result<()> {
    let memory: OwnedFd = memfd_create(
        "conntracer-journal",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    let mut file = std::fs::File::from(memory);
    file.write_all(entry)?;
    // journald takes sealed files alone.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&[])],
        &mut ancillary,
        SendFlags::empty(),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;
    use crate::{
        testing::{Run, listener},
        time::Ktime,
    };

    /// An entry as journald reads one: systemd's description of the protocol, word for word.
    fn fields(mut entry: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut fields = BTreeMap::new();
        while !entry.is_empty() {
            let end = entry
                .iter()
                .position(|byte| matches!(byte, b'=' | b'\n'))
                .unwrap();
            let name = String::from_utf8(entry[..end].to_vec()).unwrap();
            assert!(
                name.bytes()
                    .all(|byte| byte == b'_' || byte.is_ascii_uppercase()),
                "{name}"
            );
            let (is_text, rest) = (entry[end] == b'=', &entry[end + 1..]);
            let length = if is_text {
                rest.iter().position(|byte| *byte == b'\n').unwrap()
            } else {
                usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap()
            };
            let value = if is_text { rest } else { &rest[8..] };
            fields.insert(name, value[..length].to_vec());
            assert_eq!(value[length], b'\n');
            entry = &value[length + 1..];
        }
        fields
    }

    fn finding() -> Line {
        let mut run = Run::new();
        run.accept_queue(listener("10.0.0.1:80", "10.0.0.2:4000"), |_| ());
        run.finish();
        Line::Finding(Box::new(run.only().clone()))
    }

    fn text(fields: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
        String::from_utf8(fields[name].clone()).unwrap()
    }

    #[test]
    fn a_finding_has_its_fields_and_its_line() {
        let fields = fields(&entry(&finding(), b"{\"schema\":1}\n"));
        for (name, value) in [
            ("PRIORITY", "2"),
            ("SYSLOG_IDENTIFIER", "conntracer"),
            ("MESSAGE_ID", FINDING_ID),
            ("CONNTRACER_FINDING", "accept_delay"),
            ("CONNTRACER_STATUS", "open"),
            ("CONNTRACER_ID", "1"),
            ("CONNTRACER_LOCAL", "10.0.0.1:80"),
            ("OBJECT_PID", "1234"),
            ("CONNTRACER_JSON", "{\"schema\":1}"),
        ] {
            let expected =
                if name == "PRIORITY" && text(&fields, "CONNTRACER_SEVERITY") == "warning" {
                    "4"
                } else {
                    value
                };
            assert_eq!(text(&fields, name), expected, "{name}");
        }
        assert!(
            text(&fields, "MESSAGE").starts_with("accept_delay "),
            "{fields:?}"
        );
    }

    /// What a process chose may hold newlines: they end no field.
    #[test]
    fn a_newline_ends_no_field() {
        let mut written = Fields::default();
        written.add("ONE", b"a\nPRIORITY=0");
        written.add("TWO", b"b");
        let read = fields(&written.0);
        assert_eq!(text(&read, "ONE"), "a\nPRIORITY=0");
        assert_eq!(read.len(), 2);
    }

    #[test]
    fn what_is_too_large_for_a_datagram_goes_in_a_sealed_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let mut output = open(path.as_os_str()).unwrap();
        let large = vec![b'x'; 4 << 20];
        output
            .write(&Line::Start { time: Ktime(0) }, &large)
            .unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&journal, &mut [], &mut ancillary, RecvFlags::empty()).unwrap();
        assert_eq!(received.bytes, 0);
        let mut files = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let file = files.next().unwrap();
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
        assert!(
            seals.contains(SealFlags::WRITE | SealFlags::SEAL),
            "{seals:?}"
        );
        let mut bytes = Vec::new();
        let file = File::from(file);
        let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
        bytes.resize(size, 0);
        file.read_exact_at(&mut bytes, 0).unwrap();
        let fields = fields(&bytes);
        assert_eq!(fields["CONNTRACER_TEXT"].len(), large.len());
    }

    #[test]
    fn a_journal_that_was_away_hears_what_it_missed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(open(path.as_os_str()).is_err(), "nobody listens");
        let journal = UnixDatagram::bind(&path).unwrap();
        let mut output = Journal {
            socket: Some(connect(&path).unwrap()),
            path: path.clone(),
            tried: Instant::now(),
            missed: 0,
        };
        drop(journal);
        std::fs::remove_file(&path).unwrap();
        let line = finding();
        for _ in 0..3 {
            output.write(&line, b"{}\n").unwrap();
        }
        assert_eq!(output.missed, 3);
        let journal = UnixDatagram::bind(&path).unwrap();
        output.come_back();
        output.write(&line, b"{}\n").unwrap();
        let mut buffer = [0; 8192];
        let length = journal.recv(&mut buffer).unwrap();
        let gap = fields(&buffer[..length]);
        assert_eq!(text(&gap, "CONNTRACER_LOST"), "3");
        let length = journal.recv(&mut buffer).unwrap();
        assert_eq!(
            text(&fields(&buffer[..length]), "CONNTRACER_KIND"),
            "finding"
        );
    }
}
