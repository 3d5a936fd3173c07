//! What was lost since the last poll, by hook.

use std::io;

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::{
    record::{Loss, kind},
    socket::FORKS_UNSEEN,
    stats::{HOOKS, hook},
};
use zerocopy::IntoBytes;

use super::Poll;
use crate::kernel::{error::CannotTrace, header::header, maps};

pub(crate) struct Losses {
    told: [u64; HOOKS.len()],
    missed: [u64; HOOKS.len()],
    forks: Array<MapData, u64>,
}

impl Losses {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Ok(Self {
            told: [0; HOOKS.len()],
            missed: [0; HOOKS.len()],
            forks: maps::take(ebpf, "FORKS")?,
        })
    }

    /// A `Loss` of each hook that lost any. After a fork that was not seen, any owner may have forked.
    pub(crate) fn poll(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        for ((hook, told), missed) in (0..).zip(&mut self.told).zip(&mut self.missed) {
            let now = poll.accounts.of(hook)?.lost;
            if now <= *told {
                continue;
            }
            let unseen = poll.accounts.missed(hook);
            let loss = Loss {
                header: header::<Loss>(kind::LOSS, poll.now_ns),
                lost: now - *told,
                hook,
                missed: u32::try_from(unseen.saturating_sub(*missed)).unwrap_or(u32::MAX),
            };
            (poll.feed)(loss.as_bytes());
            *told = now;
            *missed = unseen;
            if hook == hook::FORK {
                self.forks
                    .set(FORKS_UNSEEN, poll.now_ns, 0)
                    .map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}
