//! An event as the fields of one output line: flat, keys stable, OpenTelemetry's where it has one.
//!
//! `schema`, `time` and `kind` are the sink's; everything a process or a peer can choose leaves here
//! as it is, and the sink escapes it.

use std::{collections::BTreeMap, time::Duration};

use conntracer_common::record::{close_flag, syn_outcome};
use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeMap},
};

use crate::{
    event::{
        Body, Close, Event, Opened, Owner, Probe, RetransmitType, Role, Seed, Socket, State, Syn,
        Tcp, TcpState,
    },
    host::Host,
    plan::HookType,
    time::Ktime,
};

/// An [`Event`] and the host whose kernel names its numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub(super) event: &'a Event,
    pub(super) host: &'a Host,
}

impl Serialize for Named<'_> {
    /// A flat map without `time` and `kind`, which the sink writes itself. Keys are OpenTelemetry's
    /// where it has one; an unknown value's key is left out.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("cpu", &self.event.cpu)?;
        let about = self.event.body.about();
        if let Some(socket) = about.socket {
            socket_entries(&mut map, socket)?;
        }
        if let Some(owner) = about.owner {
            owner_entries(&mut map, owner)?;
            // A seed says it itself, with or without an owner.
            if let Some(holders) = owner.holders
                && !matches!(self.event.body, Body::Seed(_))
            {
                map.serialize_entry("holders", &holders)?;
            }
        }
        self.body_entries(&mut map)?;
        map.end()
    }
}

impl Named<'_> {
    fn body_entries<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        match &self.event.body {
            Body::Accept(body) => self.waited_entry(map, body),
            Body::State(body) => {
                map.serialize_entry("old_state", &body.old)?;
                map.serialize_entry("new_state", &body.new)?;
                errno_entry(map, body.errno)?;
                map.serialize_entry("consecutive_timeouts", &body.retransmits)?;
                map.serialize_entry("probes_unanswered", &body.probes_out)?;
                self.connected_entry(map, body)
            }
            Body::Retransmit(body) => {
                map.serialize_entry("tcp.retransmit.type", &body.kind)?;
                map.serialize_entry("segments", &body.segments)?;
                map.serialize_entry("seq", &body.seq)?;
                map.serialize_entry("end_seq", &body.end_seq)?;
                errno_entry(map, body.errno)?;
                tcp_entries(map, &body.tcp)
            }
            Body::Undo(body) => {
                map.serialize_entry("undos", &body.totals.undos())?;
                map.serialize_entry("segments", &body.totals.segments)
            }
            Body::SynAck(body) => {
                map.serialize_entry("tcp.retransmit.type", &RetransmitType::SynAck)?;
                map.serialize_entry("segments", &1)?;
                map.serialize_entry("repeats_before", &body.num_retrans)?;
                map.serialize_entry("third_ack_discarded", &body.acked)?;
                map.serialize_entry("ack_backlog", &body.ack_backlog)?;
                map.serialize_entry("max_ack_backlog", &body.max_ack_backlog)?;
                map.serialize_entry("syn_qlen", &body.syn_qlen)
            }
            Body::Syn(body) => syn_entries(map, body),
            Body::Sources(body) => map.serialize_entry("syns", &body.syns),
            Body::Reset(body) => {
                let direction = if body.received { "receive" } else { "transmit" };
                map.serialize_entry("network.io.direction", direction)?;
                map.serialize_entry("consecutive_timeouts", &body.retransmits)?;
                reason_entry(map, body.reason, &self.host.reset_reasons)
            }
            Body::Drop(body) => {
                map.serialize_entry("seq", &body.seq)?;
                map.serialize_entry("tcp_flags", &body.tcp_flags)?;
                reason_entry(map, body.reason, &self.host.drop_reasons)
            }
            Body::EarlyDrop(body) => {
                map.serialize_entry("count", &body.count)?;
                map.serialize_entry("remotes_at_least", &body.remotes.count_ones())?;
                if let Some(listener) = body.listener {
                    map.serialize_entry("listener", &listener)?;
                }
                if let Some(path) = body.path {
                    map.serialize_entry("path", &path)?;
                }
                if let Some(device) = body.device {
                    map.serialize_entry("interface", &device.to_text())?;
                }
                map.serialize_entry("ifindex", &body.ifindex)?;
                reason_entry(map, body.reason, &self.host.drop_reasons)
            }
            Body::Failure(body) => {
                map.serialize_entry("count", &body.count)?;
                errno_entry(map, body.errno)?;
                map.serialize_entry("syns", &body.syns)?;
                map.serialize_entry("longest_ms", &body.longest.as_millis())
            }
            Body::Close(body) => self.close_entries(map, body),
            Body::Probe(body) => probe_entries(map, body),
            Body::Snapshot(body) => tcp_entries(map, &body.tcp),
            Body::Idle(body) => {
                map.serialize_entry("idle_ms", &body.idle.as_millis())?;
                tcp_entries(map, &body.tcp)
            }
            Body::Seed(body) => seed_entries(map, body, self.event.time),
            Body::Loss(body) => {
                map.serialize_entry("hook", body.hook_name())?;
                map.serialize_entry("lost", &body.lost)
            }
            _ => Ok(()),
        }
    }

    /// How long it waited for accept(), since its handshake was over; where the time of accept() is known, and not that of
    /// the first receive.
    fn waited_entry<M: SerializeMap>(&self, map: &mut M, body: &Opened) -> Result<(), M::Error> {
        let is_seen = self.host.plan.hook_type("accept") == HookType::Fentry;
        if !is_seen || !is_from_birth(&body.socket) {
            return Ok(());
        }
        let waited = self.event.time.since(body.socket.id.born);
        map.serialize_entry("waited_ms", &milliseconds(waited))
    }

    /// How long connect() took, from before the SYN until it was established.
    fn connected_entry<M: SerializeMap>(&self, map: &mut M, body: &State) -> Result<(), M::Error> {
        let is_end = (body.old, body.new) == (TcpState::SynSent, TcpState::Established);
        if !is_end || !is_from_birth(&body.socket) {
            return Ok(());
        }
        let took = self.event.time.since(body.socket.id.born);
        map.serialize_entry("connect_ms", &milliseconds(took))
    }

    fn close_entries<M: SerializeMap>(&self, map: &mut M, body: &Close) -> Result<(), M::Error> {
        map.serialize_entry("old_state", &body.old)?;
        map.serialize_entry("orderly", &body.is_orderly())?;
        map.serialize_entry("closed_first", &body.closed_first())?;
        map.serialize_entry("reset_received", &body.has(close_flag::RST_RECEIVED))?;
        map.serialize_entry("reset_sent", &body.reset_sent())?;
        map.serialize_entry("bytes_sent", &body.bytes_sent())?;
        map.serialize_entry("bytes_received", &body.bytes_received())?;
        map.serialize_entry("unread_bytes", &body.unread_bytes)?;
        if let Some(age) = body.age {
            map.serialize_entry("age_ms", &age.as_millis())?;
        }
        if let Some(idle) = body.idle {
            map.serialize_entry("idle_ms", &idle.as_millis())?;
        }
        errno_entry(map, body.errno)?;
        reason_entry(map, body.reason, &self.host.reset_reasons)?;
        tcp_entries(map, &body.tcp)
    }
}

fn is_from_birth(socket: &Socket) -> bool {
    !socket.older && socket.id.born.0 != 0
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn socket_entries<M: SerializeMap>(map: &mut M, socket: &Socket) -> Result<(), M::Error> {
    map.serialize_entry("netns", &socket.netns)?;
    map.serialize_entry("network.local.address", &socket.local.ip())?;
    map.serialize_entry("network.local.port", &socket.local.port())?;
    if socket.remote.port() != 0 {
        map.serialize_entry("network.peer.address", &socket.remote.ip())?;
        map.serialize_entry("network.peer.port", &socket.remote.port())?;
    }
    if socket.state != TcpState::Unknown {
        map.serialize_entry("network.connection.state", &socket.state)?;
    }
    if socket.role != Role::Unknown {
        map.serialize_entry("role", &socket.role)?;
    }
    if socket.id.sk != 0 {
        // As text: JSON readers lose the low bits of integers above 2^53.
        map.serialize_entry("socket", &format_args!("{:#x}", socket.id.sk))?;
    }
    if socket.id.born.0 != 0 {
        map.serialize_entry("born_ktime_ns", &socket.id.born.0)?;
    }
    if socket.older {
        map.serialize_entry("older", &true)?;
    }
    Ok(())
}

fn owner_entries<M: SerializeMap>(map: &mut M, owner: &Owner) -> Result<(), M::Error> {
    map.serialize_entry("process.pid", &owner.pid)?;
    map.serialize_entry("process.command", &owner.comm.to_text())?;
    map.serialize_entry("user.id", &owner.uid)?;
    map.serialize_entry("cgroup_id", &owner.cgroup_id)?;
    map.serialize_entry("owner_source", &owner.source)
}

fn tcp_entries<M: SerializeMap>(map: &mut M, tcp: &Tcp) -> Result<(), M::Error> {
    map.serialize_entry("unacked_bytes", &tcp.unacked_bytes())?;
    map.serialize_entry("snd_wnd_bytes", &tcp.snd_wnd_bytes)?;
    map.serialize_entry("srtt_us", &tcp.srtt.as_micros())?;
    map.serialize_entry("total_retrans", &tcp.total_retrans)?;
    map.serialize_entry("data_segs_out", &tcp.data_segs_out)?;
    map.serialize_entry("consecutive_timeouts", &tcp.retransmits)?;
    map.serialize_entry("probes_unanswered", &tcp.probes_out)?;
    map.serialize_entry("backoff", &tcp.backoff)
}

fn syn_entries<M: SerializeMap>(map: &mut M, body: &Syn) -> Result<(), M::Error> {
    if let Some(outcome) = body.outcome {
        let name = syn_outcome::NAMES.get(outcome).copied();
        map.serialize_entry(
            "outcome",
            name.ok_or_else(|| M::Error::custom("SYN outcome out of range"))?,
        )?;
    }
    for (name, total) in syn_outcome::NAMES.iter().zip(body.totals) {
        map.serialize_entry(name, &total)?;
    }
    map.serialize_entry("ack_backlog", &body.ack_backlog)?;
    map.serialize_entry("max_ack_backlog", &body.max_ack_backlog)?;
    map.serialize_entry("syn_qlen", &body.syn_qlen)?;
    map.serialize_entry("max_syn_backlog", &body.max_syn_backlog)
}

fn probe_entries<M: SerializeMap>(map: &mut M, probe: &Probe) -> Result<(), M::Error> {
    let kind = if probe.keepalive {
        "keepalive"
    } else {
        "window"
    };
    map.serialize_entry("probe", kind)?;
    map.serialize_entry("result", &probe.result)?;
    tcp_entries(map, &probe.tcp)
}

/// What the kernel still knows of a socket that was there before.
fn seed_entries<M: SerializeMap>(map: &mut M, seed: &Seed, now: Ktime) -> Result<(), M::Error> {
    map.serialize_entry("holders", &seed.holders)?;
    match seed.socket.state {
        TcpState::Listen => {
            map.serialize_entry("ack_backlog", &seed.ack_backlog)?;
            map.serialize_entry("max_ack_backlog", &seed.max_ack_backlog)
        }
        TcpState::NewSynRecv => map.serialize_entry("repeats", &seed.num_retrans),
        _ => {
            if let Some(since) = seed.since {
                let at_least = now.since(since).as_millis();
                map.serialize_entry("half_closed_at_least_ms", &at_least)?;
            }
            let Some(active) = seed.active else {
                return Ok(());
            };
            map.serialize_entry("idle_ms", &now.since(active).as_millis())?;
            map.serialize_entry("bytes_acked", &seed.tcp.bytes_acked)?;
            map.serialize_entry("bytes_received", &seed.bytes_received)?;
            tcp_entries(map, &seed.tcp)
        }
    }
}

fn errno_entry<M: SerializeMap>(map: &mut M, errno: u32) -> Result<(), M::Error> {
    if errno == 0 {
        Ok(())
    } else {
        map.serialize_entry("errno", &errno)
    }
}

fn reason_entry<M: SerializeMap>(
    map: &mut M,
    reason: Option<u32>,
    names: &BTreeMap<u32, String>,
) -> Result<(), M::Error> {
    let Some(reason) = reason else { return Ok(()) };
    match names.get(&reason) {
        Some(name) => map.serialize_entry("reason", name),
        None => map.serialize_entry("reason", &reason),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::Named;
    use crate::{
        pipeline::Output,
        testing::{Run, host, listener, socket},
    };

    /// Every record kind that becomes a line, as that line's fields.
    fn lines() -> Vec<Value> {
        let mut source = Run::new();
        let connection = socket("10.0.0.1:80", "10.0.0.2:4000");
        source.closed(connection, |closed| closed.error = 110);
        source.retransmit(connection, |_| {});
        source.syn_ack(listener("[fd00::1]:80", "[fd00::2]:4000"), 1, true);
        source.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
            syn.outcome = 2;
        });
        source.reset_received(connection);
        source.probe(connection, |_| {});
        source.loss(conntracer_common::stats::hook::SYN, 3);
        source.seed(connection, |seed| {
            seed.socket.state = conntracer_common::tcp::state::CLOSE_WAIT;
            seed.since_ns = seed.active_ns;
        });
        let host = host();
        let mut run = Run::new();
        let mut lines = Vec::new();
        for record in &source.fed {
            run.pipeline.feed(record, &mut |output| {
                if let Output::Event(event) = output {
                    let fields =
                        serde_json::to_value(Named { event, host: &host }).expect("flat fields");
                    lines.push(serde_json::json!([event.body.about().name, fields]));
                }
            });
        }
        lines
    }

    #[test]
    fn the_fields_of_every_kind() {
        insta::assert_json_snapshot!(lines());
    }

    #[test]
    fn every_field_is_a_number_a_word_or_a_truth() {
        for line in lines() {
            let fields = line[1].as_object().expect("a map");
            let flat = fields
                .values()
                .all(|value| !value.is_object() && !value.is_array());
            assert!(flat, "{line}");
        }
    }
}
