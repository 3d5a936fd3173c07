//! An event: one decoded record, in the types of the standard library.
//!
//! Made by [`crate::decode`], read by the tables and detectors, and serialised by the sinks as the
//! fields of one output line. Plain and `Copy`: a healthy event costs no allocation. Kernel numbers
//! that only the running kernel can name (drop and reset reasons) stay numbers until a sink names them.
//!
//! What a record of each kind says, and how it is read, is in the file of its subject; here is which kinds there
//! are, and what they have in common ([`About`]).

mod accept_queue;
mod acceptor;
mod bind;
mod connection;
mod device;
mod dropped;
mod early_drop;
mod idle;
mod listener;
mod netns_facts;
mod owner;
mod raw;
mod receive;
mod retransmit;
mod seed;
mod side;
mod snapshot;
mod socket;
mod tcp;
mod userspace;

use conntracer_common::record::{self, Header, kind};

use self::raw::read;
pub use self::{
    accept_queue::*, acceptor::*, bind::*, connection::*, device::*, dropped::*, early_drop::*,
    idle::*, listener::*, netns_facts::*, owner::*, raw::DecodeError, receive::*, retransmit::*,
    seed::*, side::*, snapshot::*, socket::*, tcp::*, userspace::*,
};
use crate::time::Ktime;

/// One decoded record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    pub time: Ktime,
    pub cpu: u32,
    pub body: Body,
}

/// What happened, by record kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Body {
    Connect(Opened),
    Accept(Opened),
    State(State),
    Retransmit(Retransmit),
    Undo(Undo),
    SynAck(SynAck),
    Syn(Syn),
    Sources(Sources),
    Reset(Reset),
    Drop(Drop),
    EarlyDrop(EarlyDrop),
    Failure(Failure),
    Bind(Bind),
    BindHolders(BindHolders),
    Close(Close),
    Probe(Probe),
    Snapshot(Snapshot),
    Tick,
    Checkpoint,
    Loss(Loss),
    Netns(Netns),
    Seed(Seed),
    Seeded(Seeded),
    Idle(Idle),
    Receive(Receive),
    IdleTotals(IdleTotals),
    HalfClosed(HalfClosed),
    Beside(Beside),
    Clock(Clock),
    Process(Process),
    Holders(Holders),
    Acceptor(Acceptor),
    AcceptQueue(AcceptQueue),
    NetnsFacts(NetnsFacts),
    Dropped(Dropped),
}

/// What all kinds have, as far as each has it.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The `kind` of the output contract. A retransmitted SYN-ACK is a `retransmit` of type `syn_ack`.
    pub name: &'static str,
    /// One of [`kind`], which `--emit` goes by.
    pub kind: u16,
    /// The socket that the kernel tells of; `None` of what userspace adds.
    pub socket: Option<&'a Socket>,
    /// That socket's, where it is known.
    pub owner: Option<&'a Owner>,
}

impl<'a> About<'a> {
    #[expect(clippy::ref_option, reason = "one line a kind")]
    const fn of(
        name: &'static str,
        kind: u16,
        socket: &'a Socket,
        owner: &'a Option<Owner>,
    ) -> Self {
        Self {
            name,
            kind,
            socket: Some(socket),
            owner: owner.as_ref(),
        }
    }

    const fn nobody(name: &'static str, kind: u16) -> Self {
        Self {
            name,
            kind,
            socket: None,
            owner: None,
        }
    }
}

impl Body {
    #[must_use]
    pub const fn about(&self) -> About<'_> {
        match self {
            Self::Connect(body) => About::of("connect", kind::CONNECT, &body.socket, &body.owner),
            Self::Accept(body) => About::of("accept", kind::ACCEPT, &body.socket, &body.owner),
            Self::State(body) => About::of("state", kind::STATE, &body.socket, &body.owner),
            // The answer to a poll repeats what its connection's records tell one by one.
            Self::Retransmit(body) if body.is_polled() => {
                About::of("retransmit", kind::RETRANSMITS, &body.socket, &body.owner)
            }
            Self::Retransmit(body) => {
                About::of("retransmit", kind::RETRANSMIT, &body.socket, &body.owner)
            }
            Self::Undo(body) => About::of("undo", kind::UNDO, &body.socket, &body.owner),
            Self::SynAck(body) => About::of("retransmit", kind::SYNACK, &body.socket, &body.owner),
            Self::Syn(body) => About::of("syn", kind::SYN, &body.socket, &body.owner),
            Self::AcceptQueue(body) => About::of(
                "accept_queue",
                kind::ACCEPT_QUEUE,
                &body.socket,
                &body.owner,
            ),
            Self::Sources(body) => About {
                socket: Some(&body.socket),
                ..About::nobody("sources", kind::SOURCES)
            },
            Self::Reset(body) => About::of("reset", kind::RESET, &body.socket, &body.owner),
            Self::Drop(body) => About::of("drop", kind::DROP, &body.socket, &body.owner),
            Self::EarlyDrop(body) => {
                About::of("early_drop", kind::EARLY_DROP, &body.socket, &body.owner)
            }
            Self::Failure(body) => About::of("failure", kind::FAILURE, &body.socket, &body.owner),
            Self::Close(body) => About::of("connection", kind::CLOSE, &body.socket, &body.owner),
            Self::Probe(body) => About::of("probe", kind::PROBE, &body.socket, &body.owner),
            Self::Snapshot(body) => {
                About::of("snapshot", kind::SNAPSHOT, &body.socket, &body.owner)
            }
            Self::Seed(body) => About::of("seed", kind::SEED, &body.socket, &body.owner),
            Self::Idle(body) => About::of("idle", kind::IDLE, &body.socket, &body.owner),
            Self::Receive(body) => About::of("receive", kind::RECEIVE, &body.socket, &body.owner),
            Self::Bind(body) => About::of("bind", kind::BIND, &body.socket, &body.owner),
            Self::BindHolders(_) => About::nobody("bind_holders", kind::BIND_HOLDERS),
            Self::Tick => About::nobody("tick", kind::TICK),
            Self::Checkpoint => About::nobody("checkpoint", kind::CHECKPOINT),
            Self::Loss(_) => About::nobody("gap", kind::LOSS),
            Self::Netns(_) => About::nobody("netns", kind::NETNS),
            Self::Seeded(_) => About::nobody("seeded", kind::SEEDED),
            Self::IdleTotals(_) => About::nobody("idle_totals", kind::IDLE_TOTALS),
            Self::Beside(_) => About::nobody("beside", kind::BESIDE),
            Self::HalfClosed(_) => About::nobody("half_closed", kind::HALF_CLOSED),
            Self::Clock(_) => About::nobody("clock", kind::CLOCK),
            Self::Process(_) => About::nobody("process", kind::PROCESS),
            Self::Holders(_) => About::nobody("holders", kind::HOLDERS),
            Self::Acceptor(_) => About::nobody("acceptor", kind::ACCEPTOR),
            Self::NetnsFacts(_) => About::nobody("netns_facts", kind::NETNS_FACTS),
            Self::Dropped(_) => About::nobody("dropped", kind::DROPPED),
        }
    }

    /// Reads a record of any kind; `bytes` are as many as its header says.
    pub(crate) fn decode(header: &Header, bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(match header.kind {
            kind::CONNECT => {
                let raw: record::Connect = read(bytes, header)?;
                Self::Connect(Opened::decode(&raw.socket, &raw.owner)?)
            }
            kind::ACCEPT => {
                let raw: record::Accept = read(bytes, header)?;
                Self::Accept(Opened::decode(&raw.socket, &raw.owner)?)
            }
            kind::STATE => Self::State(State::decode(&read(bytes, header)?)?),
            kind::RESET => Self::Reset(Reset::decode(&read(bytes, header)?)?),
            kind::FAILURE => Self::Failure(Failure::decode(bytes, header)?),
            kind::BIND => Self::Bind(Bind::decode(&read(bytes, header)?)?),
            kind::BIND_HOLDERS => Self::BindHolders(BindHolders::decode(&read(bytes, header)?)?),
            kind::CLOSE => Self::Close(Close::decode(bytes, header)?),
            kind::PROBE => Self::Probe(Probe::decode(&read(bytes, header)?)?),
            kind::RETRANSMIT => Self::Retransmit(Retransmit::decode(&read(bytes, header)?)?),
            kind::RETRANSMITS => Self::Retransmit(Retransmit::decode_all(bytes, header)?),
            kind::UNDO => Self::Undo(Undo::decode(&read(bytes, header)?)?),
            kind::SYNACK => Self::SynAck(SynAck::decode(&read(bytes, header)?)?),
            kind::SYN => Self::Syn(Syn::decode(&read(bytes, header)?)?),
            kind::SOURCES => Self::Sources(Sources::decode(&read(bytes, header)?)),
            kind::DROP => Self::Drop(Drop::decode(&read(bytes, header)?)?),
            kind::EARLY_DROP => Self::EarlyDrop(EarlyDrop::decode(&read(bytes, header)?)?),
            kind::SNAPSHOT => Self::Snapshot(Snapshot::decode(bytes, header)?),
            kind::SEED => Self::Seed(Seed::decode(bytes, header)?),
            kind::IDLE => Self::Idle(Idle::decode(&read(bytes, header)?)?),
            kind::RECEIVE => Self::Receive(Receive::decode(&read(bytes, header)?)?),
            kind::TICK => {
                let _: record::Tick = read(bytes, header)?;
                Self::Tick
            }
            kind::CHECKPOINT => {
                let _: record::Checkpoint = read(bytes, header)?;
                Self::Checkpoint
            }
            kind::LOSS => Self::Loss(Loss::decode(&read(bytes, header)?)?),
            kind::SEEDED => Self::Seeded(Seeded::decode(&read(bytes, header)?)),
            kind::IDLE_TOTALS => Self::IdleTotals(IdleTotals::decode(&read(bytes, header)?)),
            kind::CLOCK => Self::Clock(Clock::decode(&read(bytes, header)?)),
            kind::HALF_CLOSED => Self::HalfClosed(HalfClosed::decode(&read(bytes, header)?)?),
            kind::BESIDE => Self::Beside(Beside::decode(&read(bytes, header)?)),
            kind::PROCESS => Self::Process(Process::decode(&read(bytes, header)?)),
            kind::HOLDERS => Self::Holders(Holders::decode(&read(bytes, header)?)?),
            kind::ACCEPTOR => Self::Acceptor(Acceptor::decode(&read(bytes, header)?)),
            kind::ACCEPT_QUEUE => Self::AcceptQueue(AcceptQueue::decode(&read(bytes, header)?)?),
            kind::NETNS_FACTS => Self::NetnsFacts(NetnsFacts::decode(&read(bytes, header)?)),
            kind::DROPPED => Self::Dropped(Dropped::decode(&read(bytes, header)?)?),
            kind::NETNS => Self::Netns(Netns::decode(bytes, header)?),
            kind => return Err(DecodeError::Kind { kind }),
        })
    }
}
