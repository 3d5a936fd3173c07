//! Segments of one connection that this host dropped.

use std::net::SocketAddr;

use conntracer_common::record::{self, drop_hook, drop_layer, drop_rule};

use super::{
    device::Device,
    raw::{DecodeError, reason},
    socket::address,
};
use crate::time::Ktime;

/// One of [`drop_layer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DropLayer(u8);

impl DropLayer {
    /// The word of the output contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        drop_layer::NAMES
            .get(usize::from(self.0))
            .copied()
            .unwrap_or("unknown")
    }

    /// One of [`drop_layer`].
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// What of a netfilter chain dropped them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropRule {
    Unknown,
    /// The rule with this handle.
    Rule(u64),
    /// The policy of the chain.
    Policy,
}

/// A name that the kernel has, cut off where it is longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelName(pub [u8; 32]);

impl KernelName {
    /// The bytes before the first NUL; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn to_text(self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0);
        let bytes = self
            .0
            .get(..end.unwrap_or(self.0.len()))
            .unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// Segments between two ends that this host dropped at one place for one reason, cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Where they were to go, and whose they were.
    pub to: SocketAddr,
    pub from: SocketAddr,
    pub count: u64,
    pub first: Ktime,
    pub last: Ktime,
    /// Those with a FIN.
    pub fins: u64,
    /// Inode of the namespace; 0 when not known.
    pub netns: u32,
    /// `enum skb_drop_reason`, where the kernel gives one.
    pub reason: Option<u32>,
    pub seq: u32,
    pub layer: DropLayer,
    /// Netfilter's name of the hook, where it is known.
    pub hook: Option<&'static str>,
    pub rule: DropRule,
    /// `NFPROTO_*` of the table.
    pub table_family: u8,
    pub table: Option<KernelName>,
    pub chain: Option<KernelName>,
    pub device: Option<Device>,
}

impl Dropped {
    pub(super) fn decode(raw: &record::Dropped) -> Result<Self, DecodeError> {
        let bad = |field, value: u8| DecodeError::Value {
            field,
            value: value.into(),
        };
        if usize::from(raw.layer) >= drop_layer::NAMES.len() {
            return Err(bad("layer of a drop", raw.layer));
        }
        let hook = drop_hook::NAMES
            .get(usize::from(raw.hook))
            .ok_or_else(|| bad("hook of a drop", raw.hook))?;
        let rule = match raw.rule {
            drop_rule::UNKNOWN => DropRule::Unknown,
            drop_rule::RULE => DropRule::Rule(raw.rule_handle),
            drop_rule::POLICY => DropRule::Policy,
            value => return Err(bad("rule of a drop", value)),
        };
        let end = |addr, port| SocketAddr::new(address(addr, raw.family), port);
        let name = |bytes: [u8; 32]| (bytes[0] != 0).then_some(KernelName(bytes));
        Ok(Self {
            to: end(&raw.local_addr, raw.local_port),
            from: end(&raw.remote_addr, raw.remote_port),
            count: raw.count,
            first: Ktime(raw.first_ns),
            last: Ktime(raw.last_ns),
            fins: raw.fins,
            netns: raw.netns,
            reason: reason(raw.reason),
            seq: raw.seq,
            layer: DropLayer(raw.layer),
            hook: (raw.hook != drop_hook::UNKNOWN).then_some(*hook),
            rule,
            table_family: raw.table_family,
            table: name(raw.table),
            chain: name(raw.chain),
            device: (raw.device[0] != 0).then_some(Device(raw.device)),
        })
    }
}
