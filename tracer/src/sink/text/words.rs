//! The words that a line of text is made of.

use std::{collections::BTreeMap, fmt};

use jiff::tz::TimeZone;

use super::super::{escape::Escaped, line::Time};
use crate::{
    detect::errno,
    event::{self, OwnerSource},
    finding::{Container, Evidence, Finding, Owner, Subject, Value},
};

pub(super) fn errno(errno: u32) -> String {
    if errno == 0 {
        String::new()
    } else {
        errno::name(errno).map_or_else(|| format!(" error {errno}"), |name| format!(" {name}"))
    }
}

pub(super) fn reason(reason: Option<u32>, names: &BTreeMap<u32, String>) -> String {
    match reason {
        None => String::new(),
        Some(number) => match names.get(&number) {
            Some(name) => format!(" {}", Escaped(name)),
            None => format!(" reason {number}"),
        },
    }
}

pub(super) struct Segments(pub(super) u32);

impl fmt::Display for Segments {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(formatter, "{} segment{plural}", self.0)
    }
}

/// A snake_case key as words.
pub(super) struct Words<'a>(pub(super) &'a str);

impl fmt::Display for Words<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", Escaped(&self.0.replace('_', " ")))
    }
}

/// `name value unit`, the unit taken off the key.
pub(super) struct EvidenceText<'a>(pub(super) &'a Evidence);

/// Suffixes of evidence keys and what they are called; the longer of two that fit comes first.
const UNITS: [(&str, &str); 8] = [
    ("_per_s", "/s"),
    ("_per_minute", "/min"),
    ("_percent", " %"),
    ("_bytes", " B"),
    ("_segments", " segments"),
    ("_ms", " ms"),
    ("_us", " µs"),
    ("_s", " s"),
];

impl fmt::Display for EvidenceText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.0.name.as_ref();
        let (name, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| key.strip_suffix(suffix).map(|name| (name, *unit)))
            .unwrap_or((key, ""));
        write!(formatter, "{} ", Words(name))?;
        match &self.0.value {
            Value::Count(count) => write!(formatter, "{count}{unit}"),
            Value::Number(number) => write!(formatter, "{}{unit}", Short(*number)),
            Value::Text(text) => write!(formatter, "{}{unit}", Escaped(text)),
        }
    }
}

/// A number with the digits that matter: two after the point below 1, one above.
pub(super) struct Short(pub(super) f64);

impl fmt::Display for Short {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.abs() < 1.0 {
            write!(formatter, "{:.2}", self.0)
        } else {
            write!(formatter, "{:.1}", self.0)
        }
    }
}

/// What a finding is about.
pub(super) struct SubjectText<'a>(pub(super) &'a Subject);

impl fmt::Display for SubjectText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Subject::Listener { netns, local } => {
                write!(formatter, "listener {local} netns {netns}")
            }
            Subject::Connection {
                netns,
                local,
                remote,
                ..
            } => {
                write!(formatter, "{local} → {remote} netns {netns}")
            }
            Subject::Remote { netns, remote } => {
                write!(formatter, "all connections to {remote} netns {netns}")
            }
            Subject::Peer { netns, remote } => {
                write!(formatter, "connections to {remote} netns {netns}")
            }
            Subject::Prefix {
                netns,
                prefix,
                length,
            } => {
                write!(
                    formatter,
                    "all connections to {prefix}/{length} netns {netns}"
                )
            }
            Subject::Netns { netns } => write!(formatter, "netns {netns}"),
            Subject::Process { netns, pid, comm } => {
                write!(formatter, "process {}[{pid}] netns {netns}", Escaped(comm))
            }
            Subject::Host => formatter.write_str("this host"),
        }
    }
}

impl SubjectText<'_> {
    /// The address or name alone, for a column.
    pub(super) fn short(&self) -> String {
        match self.0 {
            Subject::Listener { local, .. } => local.to_string(),
            Subject::Connection { local, remote, .. } => format!("{local} → {remote}"),
            Subject::Remote { remote, .. } => format!("→ {remote}"),
            Subject::Peer { remote, .. } => format!("→ {remote}"),
            Subject::Prefix { prefix, length, .. } => format!("→ {prefix}/{length}"),
            Subject::Netns { netns } => format!("netns {netns}"),
            Subject::Process { pid, comm, .. } => format!("{}[{pid}]", Escaped(comm)),
            Subject::Host => "this host".to_owned(),
        }
    }
}

/// Of an owner that has forked since.
pub(super) const OR_A_DESCENDANT: &str = " or a descendant";

/// Of a container's id, as runtimes show it.
const CONTAINER_CHARS: usize = 12;

pub(super) struct OwnerText<'a>(pub(super) &'a Owner);

impl fmt::Display for OwnerText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Owner {
            pid,
            comm,
            uid,
            names,
            source,
            ..
        } = self.0;
        write!(formatter, "{}[{pid}]", Escaped(comm))?;
        if source == OwnerSource::Forked.name() {
            formatter.write_str(OR_A_DESCENDANT)?;
        }
        if let Some(Container { runtime, id }) = &names.container {
            let short = id.get(..CONTAINER_CHARS).unwrap_or(id);
            write!(formatter, " {} {}", Escaped(runtime), Escaped(short))?;
        } else if let Some(unit) = &names.unit {
            write!(formatter, " {}", Escaped(unit))?;
        }
        write!(formatter, " uid {uid}")?;
        match &names.netns_name {
            Some(name) => write!(formatter, " netns {}", Escaped(name)),
            None => Ok(()),
        }
    }
}

/// What several processes hold.
pub(super) fn held(holders: u32) -> String {
    if holders > 1 {
        format!(" held by {holders} processes")
    } else {
        String::new()
    }
}

/// "shared by nginx[12], nginx[13] and 3 more"; nothing of a socket that one process holds.
pub(super) fn sharers(finding: &Finding) -> Option<String> {
    let mut names = finding
        .owners
        .iter()
        .map(|Owner { comm, pid, .. }| format!("{}[{pid}]", Escaped(comm)));
    let mut text = format!("shared by {}", names.next()?);
    let mut names = names.peekable();
    let told = u32::try_from(finding.owners.len()).unwrap_or(u32::MAX);
    let more = finding.holders.unwrap_or(told).saturating_sub(told);
    while let Some(name) = names.next() {
        let last = names.peek().is_none() && more == 0;
        text.push_str(if last { " and " } else { ", " });
        text.push_str(&name);
    }
    if more > 0 {
        text.push_str(" and ");
        text.push_str(&more.to_string());
        text.push_str(" more");
    }
    Some(text)
}

pub(super) struct Ends<'a>(pub(super) &'a event::Socket);

impl fmt::Display for Ends<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.local)?;
        if self.0.remote.port() != 0 {
            write!(formatter, " → {}", self.0.remote)?;
        }
        write!(formatter, " netns {}", self.0.netns)
    }
}

/// Time of day where the reader is.
pub(super) struct Clock<'a>(pub(super) Time, pub(super) &'a TimeZone);

impl fmt::Display for Clock<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.1.to_datetime(self.0.0).time();
        write!(
            formatter,
            "{:02}:{:02}:{:02}",
            time.hour(),
            time.minute(),
            time.second()
        )?;
        // What tells events apart.
        if formatter.alternate() {
            write!(formatter, ".{:03}", time.millisecond())?;
        }
        Ok(())
    }
}

/// SGR sequences, or nothing.
#[derive(Debug)]
pub(super) struct Paint {
    pub(super) colour: bool,
}

impl Paint {
    const fn sequence(&self, sequence: &'static str) -> &'static str {
        if self.colour { sequence } else { "" }
    }

    pub(super) const fn red(&self) -> &'static str {
        self.sequence("\x1b[1;31m")
    }

    pub(super) const fn yellow(&self) -> &'static str {
        self.sequence("\x1b[33m")
    }

    pub(super) const fn green(&self) -> &'static str {
        self.sequence("\x1b[32m")
    }

    pub(super) const fn dim(&self) -> &'static str {
        self.sequence("\x1b[2m")
    }

    pub(super) const fn off(&self) -> &'static str {
        self.sequence("\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use conntracer_common::record::{owner_source, syn_outcome};
    use rstest::rstest;

    use super::*;
    use crate::testing::{self, Run, socket};

    #[test]
    fn an_owner_that_has_forked_is_itself_or_a_descendant() {
        let mut run = Run::new();
        run.syn(testing::listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
            syn.owner.source = owner_source::FORKED;
        });
        let owner = run.only().owner.as_ref().expect("it is known");
        let said = OwnerText(owner).to_string();
        assert_eq!(said, "server[1234] or a descendant uid 33");
    }

    #[rstest]
    #[case::one(&[1234], 1, None)]
    #[case::two(&[1234, 2], 2, Some("shared by server[1234] and server[2]"))]
    #[case::three(&[1234, 2, 3], 3, Some("shared by server[1234], server[2] and server[3]"))]
    #[case::many(&[1234, 2], 5, Some("shared by server[1234], server[2] and 3 more"))]
    fn sharers_are_listed_as_people_do(
        #[case] pids: &[u32],
        #[case] count: u32,
        #[case] said: Option<&str>,
    ) {
        let mut run = Run::new();
        for timeouts in 1..=3 {
            run.pass(Duration::from_millis(400));
            run.retransmit(socket("10.0.0.1:80", "10.0.0.2:4000"), |retransmit| {
                retransmit.tcp.retransmits = timeouts;
            });
        }
        run.holders(socket("10.0.0.1:80", "10.0.0.2:4000"), pids, count);
        assert_eq!(sharers(run.only()).as_deref(), said);
    }
}
