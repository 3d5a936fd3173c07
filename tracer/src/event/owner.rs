//! The process a socket belongs to.

use std::borrow::Cow;

use conntracer_common::record::{self, owner_source};
use serde::Serialize;

use super::raw::DecodeError;
use crate::finding;

/// Where an owner was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerSource {
    Connect,
    Accept,
    Listener,
    Seeded,
    Passed,
    Forked,
}

impl OwnerSource {
    /// The word of the output contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Listener => "listener",
            Self::Seeded => "seeded",
            Self::Passed => "passed",
            Self::Forked => "forked",
        }
    }
}

/// `task_struct.comm`: at most 15 bytes of any value, NUL-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    /// The bytes before the first NUL; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn to_text(self) -> Cow<'static, str> {
        let end = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.0.len());
        Cow::Owned(String::from_utf8_lossy(&self.0[..end]).into_owned())
    }
}

/// The process a socket belongs to, as the record carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub cgroup_id: u64,
    pub comm: Comm,
    pub pid: u32,
    pub uid: u32,
    /// When the process started, milliseconds since boot modulo 2^32: with the pid an identity. 0 when not
    /// known.
    pub started_ms: u32,
    pub source: OwnerSource,
    /// Processes that hold the socket; `None` where nobody looked since it became this one's.
    pub holders: Option<u8>,
}

impl Owner {
    /// `None` of one that is not known.
    pub(super) fn decode(raw: &record::Owner) -> Result<Option<Self>, DecodeError> {
        let source = match raw.source {
            owner_source::UNKNOWN => return Ok(None),
            owner_source::CONNECT => OwnerSource::Connect,
            owner_source::ACCEPT => OwnerSource::Accept,
            owner_source::LISTENER => OwnerSource::Listener,
            owner_source::SEEDED => OwnerSource::Seeded,
            owner_source::PASSED => OwnerSource::Passed,
            owner_source::FORKED => OwnerSource::Forked,
            value => {
                return Err(DecodeError::Value {
                    field: "owner source",
                    value: value.into(),
                });
            }
        };
        Ok(Some(Self {
            cgroup_id: raw.cgroup_id,
            comm: Comm(raw.comm),
            pid: raw.pid,
            uid: raw.uid,
            started_ms: raw.started_ms,
            source,
            holders: (raw.holders != 0).then_some(raw.holders),
        }))
    }
}

impl From<Owner> for finding::Owner {
    fn from(owner: Owner) -> Self {
        Self {
            pid: owner.pid,
            comm: owner.comm.to_text().into_owned(),
            uid: owner.uid,
            cgroup_id: owner.cgroup_id,
            source: owner.source.name().into(),
            started_ms: owner.started_ms,
            names: finding::Names::default(),
        }
    }
}
