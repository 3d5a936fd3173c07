//! A small language of records: each input is read as one, so that few bytes of a fuzzer's lead deep.
//!
//! Records begin as one of a plain case. Those of one kind and socket go on from each other, so that sums
//! grow and states follow states; sockets, ports and namespaces are few, so that tables meet them again; what
//! is changed is set to an extreme, to the time of now, or moved by a little.
//!
//! The corpus is written in it: what a byte means stays, or the inputs that once found something are nothing.

use std::collections::BTreeMap;

use conntracer_common::record::{self, Header, Tcp, kind};

use super::plain::{START_NS, plain};

/// Every kind of record with its size; the first of them are a script's to name, by their places.
pub(crate) const KINDS: [(u16, usize); 36] = [
    (kind::CONNECT, size_of::<record::Connect>()),
    (kind::ACCEPT, size_of::<record::Accept>()),
    (kind::STATE, size_of::<record::State>()),
    (kind::RETRANSMIT, size_of::<record::Retransmit>()),
    (kind::RETRANSMITS, size_of::<record::Retransmits>()),
    (kind::UNDO, size_of::<record::Undo>()),
    (kind::SYNACK, size_of::<record::SynAck>()),
    (kind::SYN, size_of::<record::Syn>()),
    (kind::RESET, size_of::<record::Reset>()),
    (kind::DROP, size_of::<record::Drop>()),
    (kind::EARLY_DROP, size_of::<record::EarlyDrop>()),
    (kind::FAILURE, size_of::<record::Failure>()),
    (kind::CLOSE, size_of::<record::Close>()),
    (kind::PROBE, size_of::<record::Probe>()),
    (kind::SNAPSHOT, size_of::<record::Snapshot>()),
    (kind::CHECKPOINT, size_of::<record::Checkpoint>()),
    (kind::LOSS, size_of::<record::Loss>()),
    (kind::NETNS, size_of::<record::Netns>()),
    (kind::SOURCES, size_of::<record::Sources>()),
    (kind::SEED, size_of::<record::Seed>()),
    (kind::SEEDED, size_of::<record::Seeded>()),
    (kind::IDLE, size_of::<record::Idle>()),
    (kind::RECEIVE, size_of::<record::Receive>()),
    (kind::BIND, size_of::<record::Bind>()),
    (kind::BIND_HOLDERS, size_of::<record::BindHolders>()),
    (kind::IDLE_TOTALS, size_of::<record::IdleTotals>()),
    (kind::BESIDE, size_of::<record::Beside>()),
    (kind::CLOCK, size_of::<record::Clock>()),
    (kind::HALF_CLOSED, size_of::<record::HalfClosed>()),
    (kind::PROCESS, size_of::<record::Process>()),
    (kind::HOLDERS, size_of::<record::Holders>()),
    (kind::TICK, size_of::<record::Tick>()),
    (kind::ACCEPTOR, size_of::<record::Acceptor>()),
    (kind::NETNS_FACTS, size_of::<record::NetnsFacts>()),
    (kind::ACCEPT_QUEUE, size_of::<record::AcceptQueue>()),
    (kind::DROPPED, size_of::<record::Dropped>()),
];

/// From one tick to the next while a tracer runs.
const TICK_NS: u64 = 250_000_000;
/// By which time goes on before a record.
const STEPS_NS: [u64; 8] = [
    0,
    1_000_000,
    100_000_000,
    TICK_NS,
    1_000_000_000,
    5_000_000_000,
    30_000_000_000,
    700_000_000_000,
];
/// Longer scripts find no more, and slow the fuzzer down.
const MAX_STEPS: usize = 128;

/// What is done with the pipeline.
#[derive(Debug)]
pub(super) enum Step {
    Feed(Vec<u8>),
    /// A poll asks what it is to show.
    Poll,
    /// Somebody wants to see the totals.
    Account,
}

/// Reads bytes as steps; every byte means something.
pub(super) fn steps(bytes: &[u8]) -> Vec<Step> {
    let mut script = Script {
        bytes: bytes.iter(),
        now_ns: START_NS,
        last: BTreeMap::new(),
        again: None,
        steps: Vec::new(),
    };
    while script.steps.len() < MAX_STEPS && script.step().is_some() {}
    script.steps
}

struct Script<'a> {
    bytes: std::slice::Iter<'a, u8>,
    now_ns: u64,
    /// The last record of each kind and socket.
    last: BTreeMap<(usize, u8), Vec<u8>>,
    /// What the last record was made from: where it is kept, and how it was changed.
    again: Option<((usize, u8), Vec<Edit>)>,
    steps: Vec<Step>,
}

/// A change of one word of a record.
#[derive(Clone, Copy)]
struct Edit {
    word: usize,
    how: How,
}

#[derive(Clone, Copy)]
enum How {
    Set(u32),
    Add(u32),
    SetLong(u64),
    AddLong(u64),
    /// Nanoseconds before the record's own time.
    Ago(u64),
    Byte(usize, u8),
    /// So many words at once.
    Fill(usize, u32),
    /// As many words as a `Tcp` has, each an extreme or anything.
    Noise(u8),
}

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.bytes.next().copied()
    }

    /// `None` where the bytes are over.
    fn step(&mut self) -> Option<()> {
        let op = self.byte()?;
        let socket = op >> 5;
        match usize::from(op & 31) {
            at @ ..27 => {
                let how = self.byte()?;
                self.pass(how >> 5);
                let edits = (0..how & 7).map_while(|_| self.edit()).collect();
                self.again = Some(((at, socket), edits));
                self.record();
            }
            27 => {
                let length = usize::from(self.byte()?) | usize::from(socket) << 8;
                let record: Vec<u8> = self.bytes.by_ref().take(length).copied().collect();
                self.steps.push(Step::Feed(record));
            }
            28 => self.steps.push(Step::Poll),
            29 => self.steps.push(Step::Account),
            30 => {
                let times = self.byte()?;
                for _ in 0..=times & 15 {
                    self.pass(socket);
                    self.record();
                }
            }
            _ => {
                self.pass(socket);
                self.tick();
            }
        }
        Some(())
    }

    fn edit(&mut self) -> Option<Edit> {
        let word = usize::from(self.byte()?);
        let how = self.byte()?;
        let little = u32::from(how & 15);
        let how = match how >> 4 {
            0 => How::Set(0),
            1 => How::Set(u32::MAX),
            2 => How::Add(little + 1),
            3 => How::Set(little),
            4 => How::Set(self.word()),
            5 => How::Ago(0),
            6 => How::Ago(1_000_000 << little),
            7 => How::SetLong(u64::MAX),
            8 => How::SetLong(u64::from(self.word()) | u64::from(self.word()) << 32),
            9 => How::Byte(usize::from(how & 3), self.byte().unwrap_or_default()),
            10 => How::Noise(self.byte().unwrap_or_default()),
            11 => How::AddLong(1 << (little * 4)),
            12 => How::Set(1 << (little * 2)),
            13 => How::Add(u32::MAX - little),
            14 => How::Fill(1 << (little & 7), if little < 8 { u32::MAX } else { 0 }),
            _ => How::SetLong(u64::MAX >> little),
        };
        Some(Edit { word, how })
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte().unwrap_or_default()))
    }

    fn pass(&mut self, step: u8) {
        let step_ns = STEPS_NS.get(usize::from(step)).copied().unwrap_or_default();
        self.now_ns = self.now_ns.saturating_add(step_ns);
        if step_ns >= TICK_NS {
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.steps
            .push(Step::Feed(plain(kind::TICK, 0, self.now_ns)));
    }

    /// The next record of the kind and socket that were named last.
    fn record(&mut self) {
        let Some((key, edits)) = &self.again else {
            return;
        };
        let now_ns = self.now_ns;
        let record = self
            .last
            .entry(*key)
            .or_insert_with(|| plain(KINDS[key.0].0, key.1, now_ns));
        // Its time begins a header.
        record[..8].copy_from_slice(&now_ns.to_ne_bytes());
        for edit in edits {
            edit.change(record, now_ns);
        }
        self.steps.push(Step::Feed(record.clone()));
    }
}

impl Edit {
    /// Changes a word behind the header, which is not for a script to choose.
    fn change(self, record: &mut [u8], now_ns: u64) {
        let body = record.get_mut(size_of::<Header>()..).unwrap_or_default();
        let words = body.len() / 4;
        if words < 2 {
            return;
        }
        let word = self.word % words;
        // Long numbers begin at even words.
        let long = word & !1;
        match self.how {
            How::Set(value) => put(body, word, value),
            How::Add(value) => put(body, word, get(body, word).wrapping_add(value)),
            How::SetLong(value) => put_long(body, long, value),
            How::AddLong(value) => put_long(body, long, get_long(body, long).wrapping_add(value)),
            How::Ago(ns) => put_long(body, long, now_ns.saturating_sub(ns)),
            How::Byte(offset, value) => body[word * 4 + offset] = value,
            How::Fill(count, value) => {
                for word in word..words.min(word + count) {
                    put(body, word, value);
                }
            }
            How::Noise(seed) => {
                let mut random = u32::from(seed) + 1;
                for word in word..words.min(word + size_of::<Tcp>() / 4) {
                    // Marsaglia's xorshift, 2003.
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    let value = match random >> 30 {
                        0 => 0,
                        1 => u32::MAX,
                        2 => random & 15,
                        _ => random,
                    };
                    put(body, word, value);
                }
            }
        }
    }
}

fn get(body: &[u8], word: usize) -> u32 {
    let bytes = body[word * 4..]
        .first_chunk()
        .expect("a word of the record");
    u32::from_ne_bytes(*bytes)
}

fn put(body: &mut [u8], word: usize, value: u32) {
    body[word * 4..][..4].copy_from_slice(&value.to_ne_bytes());
}

fn get_long(body: &[u8], word: usize) -> u64 {
    let bytes = body[word * 4..]
        .first_chunk()
        .expect("two words of the record");
    u64::from_ne_bytes(*bytes)
}

fn put_long(body: &mut [u8], word: usize, value: u64) {
    body[word * 4..][..8].copy_from_slice(&value.to_ne_bytes());
}
