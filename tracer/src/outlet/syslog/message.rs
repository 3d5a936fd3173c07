//! A line as a message of syslog: RFC 5424 with structured data for a network, and as syslog(3) writes it for the local
//! socket, whose readers know nothing else.

use std::fmt::Write as _;

use jiff::{Timestamp, tz::TimeZone};

use crate::outlet::lines::{Finding, Incoming, Message};

/// Facility 3, system daemons.
const DAEMON: u8 = 3 << 3;
const CRITICAL: u8 = 2;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;
const INFORMATION: u8 = 6;

/// The private enterprise number for examples (RFC 5612): conntracer has none of its own.
const SD_ID: &str = "conntracer@32473";

/// What a receiver takes at least should be 2,048 bytes (RFC 5424, 6.1), and rsyslog and syslog-ng take 8,192.
const MOST: usize = 8_000;

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Rfc5424,
    /// `<PRI>Mmm dd hh:mm:ss TAG: MSG`.
    Local,
}

/// Who sends.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) hostname: String,
    pub(super) pid: u32,
    pub(super) zone: TimeZone,
}

/// One message, without what frames it.
pub(super) fn message(form: Form, sender: &Sender, line: &Message) -> Vec<u8> {
    let severity = severity(line);
    let text = text(line);
    let mut head = String::new();
    let written = match form {
        Form::Rfc5424 => write!(
            head,
            "<{}>1 {:.6} {} conntracer {} {} {} \u{feff}",
            DAEMON | severity,
            line.time,
            word(&sender.hostname),
            sender.pid,
            message_id(line),
            data(line),
        ),
        Form::Local => write!(
            head,
            "<{}>{} conntracer[{}]: ",
            DAEMON | severity,
            local_time(line.time, &sender.zone),
            sender.pid
        ),
    };
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(text.as_bytes());
    if bytes.len() > MOST {
        let mut end = MOST;
        // Not within a character.
        while end > 0 && bytes[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        bytes.truncate(end);
    }
    bytes
}

fn local_time(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone())
        .strftime("%b %e %H:%M:%S")
        .to_string()
}

fn severity(line: &Message) -> u8 {
    match &line.of {
        Incoming::Finding(finding) => match (&*finding.status, &*finding.severity) {
            ("resolved", _) => INFORMATION,
            (_, "critical") => CRITICAL,
            (_, "warning") => WARNING,
            _ => NOTICE,
        },
        _ if line.kind == "gap" => WARNING,
        _ => INFORMATION,
    }
}

fn message_id(line: &Message) -> &str {
    match &line.of {
        Incoming::Finding(finding) => &finding.name,
        _ => &line.kind,
    }
}

fn text(line: &Message) -> String {
    match &line.of {
        Incoming::Finding(finding) => format!(
            "{} {} {}: {}",
            finding.name, finding.cause, finding.status, finding.summary
        ),
        Incoming::Start(start) => format!("conntracer {} watches this host", start.version),
        _ => line.whole.clone(),
    }
}

/// A header field has no spaces, and is at most 255 characters; `-` is none.
fn word(text: &str) -> String {
    let word: String = text
        .chars()
        .filter(char::is_ascii_graphic)
        .take(255)
        .collect();
    if word.is_empty() {
        "-".to_owned()
    } else {
        word
    }
}

/// Structured data of a finding; of anything else none.
fn data(line: &Message) -> String {
    let Incoming::Finding(finding) = &line.of else {
        return "-".to_owned();
    };
    let mut data = format!("[{SD_ID}");
    for (name, value) in parameters(finding) {
        let value = value.chars().fold(String::new(), |mut value, char| {
            if matches!(char, '"' | '\\' | ']') {
                value.push('\\');
            }
            value.push(char);
            value
        });
        let written = write!(data, " {name}=\"{value}\"");
        debug_assert!(written.is_ok(), "writing to a String cannot fail");
    }
    data.push(']');
    data
}

fn parameters(finding: &Finding) -> Vec<(&'static str, String)> {
    let mut parameters = vec![
        ("finding", finding.name.clone()),
        ("cause", finding.cause.clone()),
        ("status", finding.status.clone()),
        ("severity", finding.severity.clone()),
        ("id", finding.id.to_string()),
        ("incident", finding.incident.to_string()),
        ("count", finding.count.to_string()),
    ];
    for name in ["scope", "local", "remote", "prefix", "netns"] {
        let value = match finding.subject.get(name) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(serde_json::Value::Number(number)) => number.to_string(),
            _ => continue,
        };
        parameters.push((name, value));
    }
    if let Some(owner) = &finding.owner {
        parameters.push(("process", owner.comm.clone()));
        parameters.push(("pid", owner.pid.to_string()));
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender() -> Sender {
        Sender {
            hostname: "web 1".to_owned(),
            pid: 42,
            zone: TimeZone::UTC,
        }
    }

    fn said(form: Form, line: &str) -> String {
        let line = Message::parse(line).unwrap();
        String::from_utf8(message(form, &sender(), &line)).unwrap()
    }

    const FINDING: &str = r#"{"schema":1,"time":"2026-01-02T03:04:05.123456789Z","kind":"finding","id":7,
        "finding":"syn_drop","cause":"accept_queue_full","status":"open","severity":"critical","incident":5,"count":18,
        "subject":{"scope":"listener","netns":1,"local":"[::]:80"},"owner":{"pid":9,"comm":"a \"b\\"},
        "summary":"18 SYNs → dropped"}"#;

    #[test]
    fn a_finding_has_every_part_of_rfc_5424() {
        assert_eq!(
            said(Form::Rfc5424, FINDING),
            "<26>1 2026-01-02T03:04:05.123456Z web1 conntracer 42 syn_drop [conntracer@32473 finding=\"syn_drop\" \
             cause=\"accept_queue_full\" status=\"open\" severity=\"critical\" id=\"7\" incident=\"5\" count=\"18\" \
             scope=\"listener\" local=\"[::\\]:80\" netns=\"1\" process=\"a \\\"b\\\\\" pid=\"9\"] \
             \u{feff}syn_drop accept_queue_full open: 18 SYNs → dropped"
        );
    }

    #[test]
    fn the_local_socket_is_written_to_as_syslog_3_does() {
        assert_eq!(
            said(Form::Local, FINDING),
            "<26>Jan  2 03:04:05 conntracer[42]: syn_drop accept_queue_full open: 18 SYNs → dropped"
        );
    }

    #[test]
    fn the_severity_is_the_findings_and_an_end_is_no_trouble() {
        let priority = |line: &str| {
            said(Form::Local, line)
                .split_once('>')
                .unwrap()
                .0
                .to_owned()
        };
        assert_eq!(priority(&FINDING.replace("critical", "warning")), "<28");
        assert_eq!(priority(&FINDING.replace("critical", "notice")), "<29");
        assert_eq!(
            priority(&FINDING.replace("\"open\"", "\"resolved\"")),
            "<30"
        );
        let gap =
            r#"{"schema":1,"time":"2026-01-02T03:04:05Z","kind":"gap","hook":"syn","lost":3}"#;
        assert_eq!(priority(gap), "<28");
        let said = said(Form::Rfc5424, gap);
        assert!(said.contains(" conntracer 42 gap - \u{feff}{"), "{said}");
    }

    #[test]
    fn a_message_that_is_too_long_ends_with_a_whole_character() {
        let long = FINDING.replace("dropped", &"→".repeat(MOST));
        let long = said(Form::Rfc5424, &long);
        assert!((MOST - 3..=MOST).contains(&long.len()), "{}", long.len());
    }
}
