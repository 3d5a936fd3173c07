//! What one look came to, for people: the verdict first.

use std::fmt::{self, Write as _};

use super::{
    fill::fill,
    paragraph::{INDENT, paragraph},
};
use crate::{
    count::plural,
    sink::{
        escape::Escaped,
        moment::{Filling, Moment, Store, Tight},
    },
};

pub(super) fn moment(text: &mut String, moment: &Moment, columns: usize) -> fmt::Result {
    let verdict = match (moment.findings, moment.incidents) {
        _ if moment.is_well() => "nothing is wrong".to_owned(),
        (0, _) => "no findings, and something is nearly used up".to_owned(),
        (findings, incidents) if findings == incidents => plural(findings, "finding"),
        (findings, incidents) => format!(
            "{} in {}",
            plural(findings, "finding"),
            plural(incidents, "incident")
        ),
    };
    let looked = format!(
        "{verdict}: looked at {}, {} and {}, and listened to events for {:.1} s",
        plural(moment.namespaces, "network namespace"),
        plural(moment.listeners, "listener"),
        plural(moment.connections, "connection"),
        moment.watched_s,
    );
    writeln!(text, "{}", fill(&looked, columns, 0, INDENT))?;
    for tight in &moment.tight {
        paragraph(text, columns, "", &said_tight(tight))?;
    }
    if moment.tight_left_out > 0 {
        paragraph(
            text,
            columns,
            "",
            &format!("and {} more", moment.tight_left_out),
        )?;
    }
    for filling in &moment.filling {
        paragraph(text, columns, "", &said_filling(filling))?;
    }
    if moment.filling_left_out > 0 {
        let more = plural(moment.filling_left_out, "listener");
        paragraph(
            text,
            columns,
            "",
            &format!("and the accept queues of {more} more"),
        )?;
    }
    if !moment.not_exact.is_empty() {
        let names = moment.not_exact.join(", ");
        let said =
            format!("not everything is seen here: {names} ('conntracer doctor' says what is not)");
        paragraph(text, columns, "", &said)?;
    }
    Ok(())
}

fn said_tight(tight: &Tight) -> String {
    let Tight {
        netns, used, limit, ..
    } = tight;
    match (tight.what, tight.local, tight.remote) {
        (Store::LocalPorts, Some(local), Some(remote)) => format!(
            "{used} of {limit} local ports are in use from {local} to {remote} in namespace {netns}: connect() fails when \
             none is left (sysctl net.ipv4.ip_local_port_range; 'ss -tan dst {remote}' shows them)"
        ),
        _ => format!(
            "conntrack holds {used} of {limit} entries in namespace {netns}: new connections are dropped when it is full \
             (sysctl net.netfilter.nf_conntrack_max)"
        ),
    }
}

fn said_filling(filling: &Filling) -> String {
    let whose = match (&filling.comm, filling.pid) {
        (Some(comm), Some(pid)) => format!(" of {}[{pid}]", Escaped(comm)),
        _ => String::new(),
    };
    format!(
        "the accept queue of {}{whose} in namespace {} held {} of {} connections",
        filling.local, filling.netns, filling.waiting, filling.most
    )
}
