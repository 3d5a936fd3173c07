//! The cause of a storm, from the types of its segments and from what the peer still acknowledged.

use super::segments::Segments;
use crate::event::RetransmitType;

/// Why segments have to be retransmitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    SynsUnanswered,
    PeerUnreachable,
    PathLoss,
    PathMtu,
    LocalDrop,
    ReceiverStalled,
    Reordering,
    Unknown,
}

impl Cause {
    /// From most to least certain. A segment that this host could not send needs no theory, nor one that
    /// was sent into a shut window. What the peer, or the kernel, says was retransmitted unnecessarily was not lost. Where the first segment that
    /// is not acknowledged is a full-sized one each time, and does not come through although the peer still
    /// talks, or has what came after it, size is what tells them apart, unless that is full-sized too. Where the
    /// peer acknowledges anything, or its duplicate ACKs called for the retransmissions, the path works and loses. Timeouts
    /// alone mean silence, of which SYNs tell less: no window, no path and no peer is known of before the first answer.
    pub(super) fn of(sum: &Segments) -> Self {
        if sum.failed > sum.count() {
            return Self::LocalDrop;
        }
        if sum.shut > sum.count() / 2 {
            return Self::ReceiverStalled;
        }
        if sum.spurious > 0 && sum.spurious >= sum.data().div_ceil(2) {
            return Self::Reordering;
        }
        let talks =
            sum.peer_spoke > 0 || sum.peer_has_later > 0 || sum.of_kind(RetransmitType::Fast) > 0;
        if talks && sum.carried == 0 && sum.is_stuck() && sum.heads == sum.full_heads {
            return Self::PathMtu;
        }
        if sum.progress > 0 || sum.of_kind(RetransmitType::Fast) > 0 {
            return Self::PathLoss;
        }
        if sum.of_kind(RetransmitType::Syn) > sum.data() {
            return Self::SynsUnanswered;
        }
        let silent = [RetransmitType::Timeout, RetransmitType::SynAck];
        if silent.iter().any(|kind| sum.of_kind(*kind) > 0) {
            return Self::PeerUnreachable;
        }
        Self::Unknown
    }

    /// What mends a storm reads like loss: what fitted is acknowledged, and the rest with it. Its cause stays
    /// what was told.
    pub(super) const fn after(self, told: Option<Self>) -> Self {
        match (self, told) {
            (
                Self::PathLoss,
                Some(told @ (Self::LocalDrop | Self::ReceiverStalled | Self::PathMtu)),
            ) => told,
            _ => self,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::SynsUnanswered => "syns_unanswered",
            Self::PeerUnreachable => "peer_unreachable",
            Self::PathLoss => "path_loss",
            Self::PathMtu => "path_mtu",
            Self::LocalDrop => "local_drop",
            Self::ReceiverStalled => "receiver_stalled",
            Self::Reordering => "reordering",
            Self::Unknown => "unknown",
        }
    }
}
