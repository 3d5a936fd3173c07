//! Every pattern of loss that a peer can show, one by one, each on a connection of its own.

use anyhow::{Context, Result};
use socket2::Socket;

use crate::{
    counters::Counters,
    family::Family,
    link::Pair,
    peer::{
        Peer, SEGMENT, Script,
        Step::{self, Ack, Hear, TooBig, Write},
    },
    socket,
    wait::{self, SOON},
};

/// A window of ten segments is written and heard.
const WINDOW: u32 = 10 * SEGMENT;
const LAST: u32 = WINDOW - 1;

/// What the peer does about a window, and the counter of the kernel's that has to rise by it.
#[derive(Clone, Copy, Debug)]
struct Pattern {
    name: &'static str,
    lost_syns: u32,
    timestamps: bool,
    script: &'static [Step],
    counter: fn(&Counters) -> u64,
}

impl Pattern {
    const fn script(&self) -> Script<'static> {
        Script {
            lost_syns: self.lost_syns,
            timestamps: self.timestamps,
            steps: self.script,
        }
    }
}

const SYN_LOST: Pattern = Pattern {
    name: "a SYN is lost",
    lost_syns: 1,
    timestamps: false,
    script: &[Write(SEGMENT), Hear(0), Ack(SEGMENT, &[])],
    counter: |counters| counters.syn_retrans,
};

const PATTERNS: [Pattern; 10] = [
    Pattern {
        name: "one segment is lost",
        lost_syns: 0,
        timestamps: false,
        script: &[
            Write(WINDOW),
            Hear(LAST),
            Ack(1000, &[(2000, 3000)]),
            Ack(1000, &[(2000, 4000)]),
            Ack(1000, &[(2000, 10_000)]),
            Hear(1000),
            Ack(WINDOW, &[]),
        ],
        counter: |counters| counters.fast_retrans,
    },
    Pattern {
        name: "the last segment is lost",
        lost_syns: 0,
        timestamps: false,
        script: &[
            Write(WINDOW),
            Hear(LAST),
            Ack(9000, &[]),
            Hear(9000),
            Ack(WINDOW, &[]),
        ],
        counter: |counters| counters.loss_probes,
    },
    Pattern {
        name: "everything is lost",
        lost_syns: 0,
        timestamps: false,
        script: &[
            Write(WINDOW),
            Hear(LAST),
            Hear(0),
            Ack(1000, &[]),
            Hear(1000),
            Ack(2000, &[]),
            Hear(2000),
            Ack(WINDOW, &[]),
        ],
        counter: |counters| counters.slow_start_retrans,
    },
    Pattern {
        name: "a segment is overtaken, and comes twice",
        lost_syns: 0,
        timestamps: false,
        script: &[
            Write(WINDOW),
            Hear(LAST),
            Ack(1000, &[(2000, 10_000)]),
            Hear(1000),
            Ack(WINDOW, &[]),
            Ack(WINDOW, &[(1000, 2000)]),
        ],
        counter: |counters| counters.dsack_recv,
    },
    Pattern {
        name: "the peer takes back what it said it had",
        lost_syns: 0,
        timestamps: false,
        script: &[
            Write(WINDOW),
            Hear(LAST),
            Ack(1000, &[(2000, 10_000)]),
            Hear(1000),
            Ack(2000, &[]),
            Hear(2000),
            Ack(WINDOW, &[]),
        ],
        counter: |counters| counters.sack_reneging,
    },
    Pattern {
        name: "a segment and its repeat are lost",
        lost_syns: 0,
        timestamps: false,
        script: &[
            Write(WINDOW),
            Hear(LAST),
            Ack(1000, &[(2000, 10_000)]),
            Hear(1000),
            Write(SEGMENT),
            Hear(WINDOW),
            Ack(1000, &[(2000, 11_000)]),
            Hear(1000),
            Ack(11_000, &[]),
        ],
        counter: |counters| counters.lost_retransmit,
    },
    Pattern {
        name: "everything is late",
        lost_syns: 0,
        timestamps: true,
        script: &[Write(WINDOW), Hear(LAST), Hear(0), Ack(WINDOW, &[])],
        counter: |counters| counters.loss_undo,
    },
    Pattern {
        name: "everything but one segment is late",
        lost_syns: 0,
        timestamps: false,
        script: &[
            Write(WINDOW),
            Hear(LAST),
            Hear(0),
            Ack(0, &[(1000, 9000)]),
            Ack(WINDOW, &[]),
        ],
        counter: |counters| counters.spurious_rtos,
    },
    OVERTAKEN,
    Pattern {
        name: "one of several segments is overtaken",
        lost_syns: 0,
        timestamps: true,
        script: &[
            Write(WINDOW),
            Hear(LAST),
            Hear(LAST),
            Ack(1000, &[(2000, 5000)]),
            Hear(1000),
            Ack(5000, &[]),
            Ack(WINDOW, &[]),
        ],
        counter: |counters| counters.partial_undo,
    },
];

/// A clock of milliseconds tells a segment from its repeat only where time passes between them: the tail loss
/// probe is waited for, although the last segment is not lost.
const OVERTAKEN: Pattern = Pattern {
    name: "a segment is overtaken",
    lost_syns: 0,
    timestamps: true,
    script: &[
        Write(WINDOW),
        Hear(LAST),
        Hear(LAST),
        Ack(1000, &[(2000, 9000)]),
        Hear(1000),
        Ack(WINDOW, &[]),
    ],
    counter: |counters| counters.full_undo,
};

/// Nine full-sized segments are too large for the path, and a small one behind them is not.
const NARROW: Pattern = Pattern {
    name: "the path is too narrow",
    lost_syns: 0,
    timestamps: false,
    script: &[
        Write(9100),
        Hear(9050),
        Ack(0, &[(9000, 9100)]),
        Hear(0),
        Hear(0),
        Hear(0),
        Hear(0),
    ],
    counter: |counters| counters.timeouts,
};

/// The same, of which a router tells that it carries more than it does.
const NARROWER: Pattern = Pattern {
    name: "the path is narrower than a router says",
    script: &[
        Write(9100),
        Hear(9050),
        TooBig(0, TOLD_BYTES),
        Ack(0, &[(9000, 9100)]),
        Hear(0),
        Hear(0),
        Hear(0),
        Hear(0),
    ],
    ..NARROW
};

/// A router says at once that the path is narrower than ten segments are: they are sent again, smaller, and no timer
/// fires.
const SHRUNK: Pattern = Pattern {
    name: "a router says that the path is narrower",
    lost_syns: 0,
    timestamps: false,
    script: &[
        Write(WINDOW),
        Hear(LAST),
        TooBig(0, 700),
        Hear(0),
        Ack(WINDOW, &[]),
    ],
    counter: |counters| counters.slow_start_retrans,
};

/// What the router says: less than the link, and more than the segments that are lost.
pub const TOLD_BYTES: u16 = 1400;

/// A pair whose server sends to scripted peers.
#[derive(Debug)]
pub struct Patterns {
    pub pair: Pair,
    family: Family,
}

impl Patterns {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            family,
        })
    }

    /// All patterns, each until its counter rises.
    pub fn provoke(&self) -> Result<()> {
        for (pattern, port) in PATTERNS.iter().zip(1000..) {
            self.show(port, pattern)?;
        }
        self.show(2000, &SYN_LOST)?;
        let peer = Peer::new(&self.pair, self.family, 2001)?;
        self.raises(
            "a SYN-ACK is lost",
            |counters| counters.syn_retrans,
            || peer.lose_syn_ack(&self.pair),
        )
    }

    /// A segment is overtaken, on so many connections one after the other.
    pub fn overtake(&self, connections: u16) -> Result<()> {
        for port in 3000..3000 + connections {
            let peer = Peer::new(&self.pair, self.family, port)?;
            let socket = peer.play(&self.pair, &OVERTAKEN.script())?;
            socket::wait_acknowledged(&socket, SOON)?;
        }
        Ok(())
    }

    /// The path is too narrow for one connection, until its third timeout; with or without a router that says more
    /// than is true. The connection lasts as long as what is returned.
    pub fn narrow(&self, told: bool) -> Result<Socket> {
        let peer = Peer::new(&self.pair, self.family, 4000)?;
        let pattern = if told { &NARROWER } else { &NARROW };
        peer.play(&self.pair, &pattern.script())
    }

    /// A router says that a path is narrower than it was. The connection lasts as long as what is returned.
    pub fn shrink(&self) -> Result<Socket> {
        let peer = Peer::new(&self.pair, self.family, 5000)?;
        let socket = peer.play(&self.pair, &SHRUNK.script())?;
        socket::wait_acknowledged(&socket, SOON)?;
        Ok(socket)
    }

    /// A SYN with data, of which only the SYN arrives.
    pub fn take_the_syn_alone(&self) -> Result<Socket> {
        let peer = Peer::new(&self.pair, self.family, 5001)?;
        let socket = peer.take_the_syn_alone(&self.pair, 100)?;
        socket::wait_acknowledged(&socket, SOON)?;
        Ok(socket)
    }

    fn show(&self, port: u16, pattern: &Pattern) -> Result<()> {
        let peer = Peer::new(&self.pair, self.family, port)?;
        let socket = self.raises(pattern.name, pattern.counter, || {
            peer.play(&self.pair, &pattern.script())
        })?;
        socket::wait_acknowledged(&socket, SOON)
    }

    /// Does it, and waits until the counter is higher than before.
    fn raises<T>(
        &self,
        name: &str,
        counter: fn(&Counters) -> u64,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let before = counter(&self.pair.server.counters()?);
        let done = act().with_context(|| name.to_owned())?;
        wait::until(name, SOON, || {
            Ok((counter(&self.pair.server.counters()?) > before).then_some(()))
        })?;
        Ok(done)
    }
}
