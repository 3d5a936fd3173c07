//! A firewall that drops at one of netfilter's hooks: a base chain whose policy is `drop`, or one rule in it
//! (`nft add rule … numgen random mod 100 < 30 drop`, `… meta length > 1400 drop`), set up over netlink. It
//! goes with its namespace.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::wait::SOON;

/// Where packets are dropped: `NF_INET_*` of linux/netfilter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
}

impl Hook {
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
        }
    }

    /// `NF_IP_PRI_RAW` before routing, else `NF_IP_PRI_FILTER`.
    const fn priority(self) -> i32 {
        match self {
            Self::Prerouting => -300,
            Self::Input | Self::Forward | Self::Output => 0,
        }
    }
}

/// What is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    Everything,
    /// So many of a hundred packets, at random.
    Percent(u8),
    /// So many of a thousand.
    PerMille(u8),
    /// Packets of more than so many bytes, IP header included.
    LargerThan(u32),
    /// And of fewer.
    SmallerThan(u32),
}

/// linux/netfilter/nfnetlink.h and nf_tables.h.
const NFPROTO_INET: u8 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYS_NFTABLES: u16 = 10;
const NEW_TABLE: u16 = SUBSYS_NFTABLES << 8;
const DELETE_TABLE: u16 = (SUBSYS_NFTABLES << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYS_NFTABLES << 8) | 3;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const NESTED: u16 = 1 << 15;
const POLICY_DROP: u32 = 0;
const POLICY_ACCEPT: u32 = 1;
const NEW_RULE: u16 = (SUBSYS_NFTABLES << 8) | 6;
const GET_RULE: u16 = (SUBSYS_NFTABLES << 8) | 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const COUNTER_PACKETS: u16 = 2;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const NF_DROP: u32 = 0;
/// Of `cmp`.
const EQUAL: u32 = 0;
const LESS: u32 = 2;
const GREATER: u32 = 4;
/// `NF_IP_PRI_NAT_DST` and `NF_IP_PRI_NAT_SRC`.
const DESTINATION_PRIORITY: i32 = -100;
const SOURCE_PRIORITY: i32 = 100;
/// `NFT_REG_VERDICT`, and the first register of data.
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
const HEADER: usize = 16;

const TABLE: &[u8] = b"ct-tests\0";
const CHAIN: &[u8] = b"ct-drop\0";

/// Drops every packet of both families that comes to `hook`, in the calling thread's namespace.
pub fn drop_at(hook: Hook) -> Result<()> {
    drop_some_at(hook, Match::Everything)
}

/// Answers every packet that comes to `hook` by an ICMP message "destination unreachable" of this code, in the calling
/// thread's namespace (`nft add rule … reject with icmp type host-prohibited`).
pub fn reject_at(hook: Hook, code: u8) -> Result<()> {
    const UNREACHABLE: u32 = 0;
    let reject = [numbers(&[(1, UNREACHABLE)]), attribute(2, &[code])].concat();
    rule_at(hook, POLICY_ACCEPT, Some(expression(b"reject\0", &reject)))
}

/// Answers every segment that comes to `hook` by a RST, in the calling thread's namespace (`nft add rule … reject with
/// tcp reset`).
pub fn reset_at(hook: Hook) -> Result<()> {
    const RESET: u32 = 1;
    let reject = expression(b"reject\0", &numbers(&[(1, RESET)]));
    rule_at(hook, POLICY_ACCEPT, Some(reject))
}

/// Lets conntrack follow every connection of the calling thread's namespace (`nft add rule … ct state new`).
pub fn track() -> Result<()> {
    const STATE: u32 = 0;
    let state = expression(b"ct\0", &numbers(&[(1, REGISTER), (2, STATE)]));
    rule_at(Hook::Input, POLICY_ACCEPT, Some(state))
}

/// Gives what comes for one port of TCP to another (`nft add rule … tcp dport A redirect to :B`), in the calling thread's
/// namespace.
pub fn redirect(from: u16, to: u16) -> Result<()> {
    let rule = [
        is_tcp_to(from),
        constant(&to.to_be_bytes()),
        expression(b"redir\0", &numbers(&[(1, REGISTER)])),
    ]
    .concat();
    let chain = Chain {
        hook: Hook::Prerouting,
        priority: DESTINATION_PRIORITY,
        kind: b"nat\0",
        policy: POLICY_ACCEPT,
    };
    change(&chain_with(&chain, Some(rule)))
}

/// Makes every connection to a port of TCP come from one port (`nft add rule … tcp dport A snat to :B`, at input), in the
/// calling thread's namespace: there is room for one from each address.
pub fn share_a_source_port(to: u16, source: u16) -> Result<()> {
    const SOURCE: u32 = 0;
    const SPECIFIED: u32 = 1 << 1;
    let ipv4 = u32::try_from(libc::AF_INET).expect("a small number");
    let translate = numbers(&[
        (1, SOURCE),
        (2, ipv4),
        (5, REGISTER),
        (6, REGISTER),
        (7, SPECIFIED),
    ]);
    let rule = [
        is_tcp_to(to),
        constant(&source.to_be_bytes()),
        expression(b"nat\0", &translate),
    ]
    .concat();
    let chain = Chain {
        hook: Hook::Input,
        priority: SOURCE_PRIORITY,
        kind: b"nat\0",
        policy: POLICY_ACCEPT,
    };
    change(&chain_with(&chain, Some(rule)))
}

/// Drops the packets of both families that come to `hook` and match, in the calling thread's namespace.
pub fn drop_some_at(hook: Hook, matches: Match) -> Result<()> {
    let (policy, test) = match matches {
        Match::Everything => (POLICY_DROP, None),
        Match::Percent(percent) => (POLICY_ACCEPT, Some(is_drawn(percent, 100))),
        Match::PerMille(share) => (POLICY_ACCEPT, Some(is_drawn(share, 1000))),
        Match::LargerThan(bytes) => (POLICY_ACCEPT, Some(length_is(GREATER, bytes))),
        Match::SmallerThan(bytes) => (POLICY_ACCEPT, Some(length_is(LESS, bytes))),
    };
    rule_at(hook, policy, test.map(|test| [test, drop_it()].concat()))
}

/// Which segments of TCP a [`Rule`] drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// To a port.
    To(u16),
    /// From a port.
    From(u16),
    /// Those to a port that have a FIN.
    FinTo(u16),
}

/// A rule with a counter that drops, in a table and a chain of its own.
#[derive(Clone, Debug)]
pub struct Rule {
    pub table: String,
    pub chain: String,
    /// What `nft -a` shows.
    pub handle: u64,
}

impl Rule {
    /// Makes one at `hook`, behind one that drops nothing, in the calling thread's namespace (`nft add rule inet TABLE CHAIN
    /// tcp dport 8080 counter drop`).
    pub fn drop(table: &str, chain: &str, hook: Hook, segments: Segments) -> Result<Self> {
        let (table, chain) = (table.to_owned(), chain.to_owned());
        let base = Chain {
            hook,
            priority: hook.priority(),
            kind: b"filter\0",
            policy: POLICY_ACCEPT,
        };
        let counter = expression(b"counter\0", &[]);
        let nothing = [is_tcp_at(2, 9), counter.clone(), drop_it()].concat();
        let drops = [segments.expressions(), counter, drop_it()].concat();
        let names = (nul(&table), nul(&chain));
        let mut messages = chain_of(&base, (&names.0, &names.1), Some(nothing));
        messages.push(rule_message((&names.0, &names.1), &drops));
        change(&messages)?;
        let mut rule = Self {
            table,
            chain,
            handle: 0,
        };
        let (handle, _) = rule.last()?;
        rule.handle = handle;
        Ok(rule)
    }

    /// Packets that it has dropped.
    pub fn counted(&self) -> Result<u64> {
        let (handle, packets) = self.last()?;
        ensure!(handle == self.handle, "another rule than {self:?}");
        Ok(packets)
    }

    /// Handle and counter of the last rule of the chain.
    fn last(&self) -> Result<(u64, u64)> {
        let socket = open()?;
        let asked = [
            attribute(RULE_TABLE, &nul(&self.table)),
            attribute(RULE_CHAIN, &nul(&self.chain)),
        ]
        .concat();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        socket
            .send(&message(GET_RULE, flags, NFPROTO_INET, 0, &asked))
            .context("asking for rules")?;
        let mut last = None;
        let mut buffer = vec![0; 32_768];
        loop {
            let length = std::io::Read::read(&mut &socket, &mut buffer)
                .context("reading from a netfilter socket")?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while rest.len() >= HEADER {
                let size = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]);
                let size = usize::try_from(size)?;
                match u16::from_ne_bytes([rest[4], rest[5]]) {
                    NEW_RULE => {
                        let rule = attributes(rest.get(HEADER + 4..size).context("cut short")?);
                        last = Some(read_rule(&rule)?);
                    }
                    kind if i32::from(kind) == libc::NLMSG_DONE => {
                        return last.context("no rule");
                    }
                    kind => bail!("netfilter answered with a message of type {kind}"),
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

impl Segments {
    fn expressions(self) -> Vec<u8> {
        match self {
            Self::To(port) => is_tcp_at(2, port),
            Self::From(port) => is_tcp_at(0, port),
            Self::FinTo(port) => [is_tcp_at(2, port), has_fin()].concat(),
        }
    }
}

/// A name as netlink has it.
fn nul(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The attributes of a message, by their kinds.
fn attributes(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [a, b, c, d, ..] = rest {
        let size = usize::from(u16::from_ne_bytes([*a, *b]));
        let kind = u16::from_ne_bytes([*c, *d]) & !NESTED;
        found.push((kind, rest.get(4..size).unwrap_or_default()));
        rest = rest
            .get(size.max(4).next_multiple_of(4)..)
            .unwrap_or_default();
    }
    found
}

fn number(bytes: &[u8]) -> Result<u64> {
    Ok(u64::from_be_bytes(
        bytes.try_into().context("no number of 64 bits")?,
    ))
}

/// Handle and counter of a rule.
fn read_rule(rule: &[(u16, &[u8])]) -> Result<(u64, u64)> {
    let find = |of: &[(u16, &[u8])], wanted: u16| {
        of.iter()
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value.to_vec())
    };
    let handle = number(&find(rule, RULE_HANDLE).context("a rule without a handle")?)?;
    let expressions = find(rule, RULE_EXPRESSIONS).context("a rule without expressions")?;
    for (_, expression) in attributes(&expressions) {
        let expression = attributes(expression);
        if find(&expression, EXPRESSION_NAME).is_some_and(|name| name.starts_with(b"counter")) {
            let data = find(&expression, EXPRESSION_DATA).context("a counter without data")?;
            let packets = find(&attributes(&data), COUNTER_PACKETS).context("no packets")?;
            return Ok((handle, number(&packets)?));
        }
    }
    bail!("a rule without a counter")
}

/// A base chain, at one of netfilter's hooks.
struct Chain {
    hook: Hook,
    priority: i32,
    kind: &'static [u8],
    policy: u32,
}

/// A chain of filters at `hook`, with a rule of these expressions in it.
fn rule_at(hook: Hook, policy: u32, rule: Option<Vec<u8>>) -> Result<()> {
    let chain = Chain {
        hook,
        priority: hook.priority(),
        kind: b"filter\0",
        policy,
    };
    change(&chain_with(&chain, rule))
}

/// The changes that make a chain, with a rule of these expressions in it.
fn chain_with(chain: &Chain, rule: Option<Vec<u8>>) -> Vec<Vec<u8>> {
    chain_of(chain, (TABLE, CHAIN), rule)
}

/// The same by the names of a table and a chain.
fn chain_of(chain: &Chain, names: (&[u8], &[u8]), rule: Option<Vec<u8>>) -> Vec<Vec<u8>> {
    let chain_hook = [
        attribute(HOOK_NUMBER, &chain.hook.number().to_be_bytes()),
        attribute(HOOK_PRIORITY, &chain.priority.to_be_bytes()),
    ]
    .concat();
    let chain = [
        attribute(CHAIN_TABLE, names.0),
        attribute(CHAIN_NAME, names.1),
        attribute(CHAIN_HOOK | NESTED, &chain_hook),
        attribute(CHAIN_POLICY, &chain.policy.to_be_bytes()),
        attribute(CHAIN_TYPE, chain.kind),
    ]
    .concat();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE;
    let mut messages = vec![
        message(
            NEW_TABLE,
            flags,
            NFPROTO_INET,
            0,
            &attribute(TABLE_NAME, names.0),
        ),
        message(NEW_CHAIN, flags, NFPROTO_INET, 0, &chain),
    ];
    messages.extend(rule.map(|expressions| rule_message(names, &expressions)));
    messages
}

/// The change that appends a rule of these expressions.
fn rule_message(names: (&[u8], &[u8]), expressions: &[u8]) -> Vec<u8> {
    let rule = [
        attribute(RULE_TABLE, names.0),
        attribute(RULE_CHAIN, names.1),
        attribute(RULE_EXPRESSIONS | NESTED, expressions),
    ]
    .concat();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_APPEND;
    message(NEW_RULE, flags, NFPROTO_INET, 0, &rule)
}

/// Whether a packet is a segment of TCP to a port.
fn is_tcp_to(port: u16) -> Vec<u8> {
    is_tcp_at(2, port)
}

/// Whether a packet is a segment of TCP whose header has this port at `offset`: 0 the source's, 2 the destination's.
fn is_tcp_at(offset: u32, port: u16) -> Vec<u8> {
    const META_PROTOCOL: u32 = 16;
    // Base, offset and length of the port.
    let place = [(1, REGISTER), (2, 2), (3, offset), (4, 2)];
    let tcp = u8::try_from(libc::IPPROTO_TCP).expect("a small number");
    [
        expression(b"meta\0", &numbers(&[(1, REGISTER), (2, META_PROTOCOL)])),
        compare(EQUAL, &[tcp]),
        expression(b"payload\0", &numbers(&place)),
        compare(EQUAL, &port.to_be_bytes()),
    ]
    .concat()
}

/// Whether a segment has a FIN.
fn has_fin() -> Vec<u8> {
    const NOT_EQUAL: u32 = 1;
    const FLAGS: [(u16, u32); 4] = [(1, REGISTER), (2, 2), (3, 13), (4, 1)];
    let data = |bytes: &[u8]| attribute(DATA_VALUE, bytes);
    let masked = [
        numbers(&[(1, REGISTER), (2, REGISTER), (3, 1)]),
        attribute(4 | NESTED, &data(&[1])),
        attribute(5 | NESTED, &data(&[0])),
    ]
    .concat();
    [
        expression(b"payload\0", &numbers(&FLAGS)),
        expression(b"bitwise\0", &masked),
        compare(NOT_EQUAL, &[0]),
    ]
    .concat()
}

/// Puts a constant into the register.
fn constant(value: &[u8]) -> Vec<u8> {
    let data = [
        attribute(1, &REGISTER.to_be_bytes()),
        attribute(2 | NESTED, &attribute(DATA_VALUE, value)),
    ]
    .concat();
    expression(b"immediate\0", &data)
}

/// Whether a number drawn from `of` is below `share`.
fn is_drawn(share: u8, of: u32) -> Vec<u8> {
    const RANDOM: u32 = 1;
    let draw = numbers(&[(1, REGISTER), (2, of), (3, RANDOM), (4, 0)]);
    [
        expression(b"numgen\0", &draw),
        swapped(),
        compare(LESS, &u32::from(share).to_be_bytes()),
    ]
    .concat()
}

/// Whether the length of a packet compares so with `bytes`.
fn length_is(operation: u32, bytes: u32) -> Vec<u8> {
    const META_LENGTH: u32 = 0;
    [
        expression(b"meta\0", &numbers(&[(1, REGISTER), (2, META_LENGTH)])),
        swapped(),
        compare(operation, &bytes.to_be_bytes()),
    ]
    .concat()
}

/// Puts the register's number, which is in the host's byte order, in the network's: bytes are compared as they stand.
fn swapped() -> Vec<u8> {
    const HOST_TO_NETWORK: u32 = 1;
    let swap = numbers(&[
        (1, REGISTER),
        (2, REGISTER),
        (3, HOST_TO_NETWORK),
        (4, 4),
        (5, 4),
    ]);
    expression(b"byteorder\0", &swap)
}

fn compare(operation: u32, with: &[u8]) -> Vec<u8> {
    let data = [
        numbers(&[(1, REGISTER), (2, operation)]),
        attribute(3 | NESTED, &attribute(DATA_VALUE, with)),
    ]
    .concat();
    expression(b"cmp\0", &data)
}

fn drop_it() -> Vec<u8> {
    let verdict = attribute(VERDICT_CODE, &NF_DROP.to_be_bytes());
    let data = [
        attribute(1, &VERDICT_REGISTER.to_be_bytes()),
        attribute(2 | NESTED, &attribute(DATA_VERDICT | NESTED, &verdict)),
    ]
    .concat();
    expression(b"immediate\0", &data)
}

/// Attributes that are numbers.
fn numbers(attributes: &[(u16, u32)]) -> Vec<u8> {
    attributes
        .iter()
        .flat_map(|(kind, number)| attribute(*kind, &number.to_be_bytes()))
        .collect()
}

fn expression(name: &[u8], data: &[u8]) -> Vec<u8> {
    let expression = [
        attribute(EXPRESSION_NAME, name),
        attribute(EXPRESSION_DATA | NESTED, data),
    ]
    .concat();
    attribute(LIST_ELEMENT | NESTED, &expression)
}

/// Ends [`drop_at`] and [`drop_some_at`].
pub fn let_pass() -> Result<()> {
    change(&[message(
        DELETE_TABLE,
        libc::NLM_F_REQUEST | libc::NLM_F_ACK,
        NFPROTO_INET,
        0,
        &attribute(TABLE_NAME, TABLE),
    )])
}

fn open() -> Result<Socket> {
    let socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW,
        Some(Protocol::from(libc::NETLINK_NETFILTER)),
    )
    .context("opening a netfilter socket")?;
    socket
        .set_read_timeout(Some(SOON.max(Duration::from_secs(1))))
        .context("setting SO_RCVTIMEO")?;
    Ok(socket)
}

/// Makes all of these changes, or none.
fn change(messages: &[Vec<u8>]) -> Result<()> {
    let socket = open()?;
    let batch = [
        message(BATCH_BEGIN, libc::NLM_F_REQUEST, 0, SUBSYS_NFTABLES, &[]),
        messages.concat(),
        message(BATCH_END, libc::NLM_F_REQUEST, 0, SUBSYS_NFTABLES, &[]),
    ]
    .concat();
    socket.send(&batch).context("sending a netfilter batch")?;
    let mut acknowledged = 0;
    while acknowledged < messages.len() {
        acknowledged += read_acknowledgements(&socket)?;
    }
    Ok(())
}

/// Reads one datagram of acknowledgements and returns how many were in it.
fn read_acknowledgements(mut socket: &Socket) -> Result<usize> {
    let mut buffer = [0; 8192];
    let length =
        std::io::Read::read(&mut socket, &mut buffer).context("reading from a netfilter socket")?;
    let mut rest = &buffer[..length];
    let mut acknowledged = 0;
    while !rest.is_empty() {
        ensure!(rest.len() >= HEADER + 4, "a netlink message cut short");
        let size = usize::try_from(u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]))?;
        let kind = u16::from_ne_bytes([rest[4], rest[5]]);
        let errno = i32::from_ne_bytes([rest[16], rest[17], rest[18], rest[19]]);
        if i32::from(kind) != libc::NLMSG_ERROR {
            bail!("netfilter answered with a message of type {kind}");
        }
        if errno != 0 {
            return Err(std::io::Error::from_raw_os_error(-errno)).context("changing the firewall");
        }
        acknowledged += 1;
        rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(acknowledged)
}

/// A netlink message: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn message(kind: u16, flags: libc::c_int, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    const GENERAL: usize = 4;
    let size = u32::try_from(HEADER + GENERAL + attributes.len()).expect("a small message");
    let flags = u16::try_from(flags).expect("netlink flags are 16 bits");
    let mut message = Vec::new();
    message.extend(size.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    message
}

/// A netlink attribute, padded to 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let size = 4 + value.len();
    let mut attribute = Vec::new();
    attribute.extend(
        u16::try_from(size)
            .expect("a small attribute")
            .to_ne_bytes(),
    );
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(size.next_multiple_of(4), 0);
    attribute
}
