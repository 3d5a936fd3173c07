//! What came back to an attempt to connect that failed, from the maps where the eBPF side keeps it: the ICMP message, and
//! whether a segment came that does not fit. Added here, for the program that sees the end has no room for it.

use std::{io, os::fd::AsFd as _};

use aya::{Ebpf, maps::MapData};
use conntracer_common::{
    record::{Failure, failure_how, kind},
    socket::{IcmpSaid, icmp_key},
};
use zerocopy::{FromBytes, IntoBytes};

use super::{error::CannotTrace, header::is_of, maps};

/// The maps.
pub(super) struct Answers {
    icmp: MapData,
    answered: MapData,
}

impl Answers {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Ok(Self {
            icmp: maps::take_hash(ebpf, "ICMP_SAID")?,
            answered: maps::take_hash(ebpf, "ANSWERED")?,
        })
    }

    /// Hands a record on, a failed attempt with what came back to its last one.
    pub(super) fn name(&self, record: &[u8], feed: &mut dyn FnMut(&[u8])) {
        if is_of(kind::FAILURE, record)
            && let Ok((mut failure, _)) = Failure::read_from_prefix(record)
            && failure.how & failure_how::AT_ONCE == 0
        {
            // A map that cannot be read knows nothing, which is said as such.
            let _unknown = self.complete(&mut failure);
            feed(failure.as_bytes());
        } else {
            feed(record);
        }
    }

    fn complete(&self, failure: &mut Failure) -> io::Result<()> {
        let socket = &failure.socket;
        let mut value = [0; size_of::<u64>()];
        if maps::lookup(self.answered.fd().as_fd(), socket.sk, &mut value)? {
            let is_its_own = u64::from_ne_bytes(value) >= socket.born_ns && socket.born_ns != 0;
            failure.how |= u8::from(is_its_own) * failure_how::ANSWERED;
        }
        let word = socket.remote_addr[3];
        let key = icmp_key(socket.netns, socket.local_port, socket.remote_port, word);
        let mut value = [0; size_of::<IcmpSaid>()];
        if maps::lookup(self.icmp.fd().as_fd(), key, &mut value)?
            && let Ok(said) = IcmpSaid::read_from_bytes(&value)
            && of(&said, failure)
        {
            failure.how |= failure_how::ICMP;
            failure.icmp_type = said.icmp_type;
            failure.icmp_code = said.icmp_code;
            failure.icmp_from = said.from;
        }
        Ok(())
    }
}

/// Whether a message is about this attempt, and came while it was under way.
fn of(said: &IcmpSaid, failure: &Failure) -> bool {
    let socket = &failure.socket;
    said.netns == socket.netns
        && said.remote_addr == socket.remote_addr
        && (socket.born_ns..=failure.last_ns).contains(&said.ktime_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_about_the_attempt_that_it_came_to() {
        let mut failure = Failure {
            last_ns: 9,
            ..Failure::default()
        };
        failure.socket.born_ns = 5;
        failure.socket.netns = 7;
        failure.socket.remote_addr = [0, 0, 1, 2];
        let said = IcmpSaid {
            remote_addr: [0, 0, 1, 2],
            ktime_ns: 6,
            netns: 7,
            ..IcmpSaid::default()
        };
        assert!(of(&said, &failure));
        for other in [
            IcmpSaid {
                ktime_ns: 4,
                ..said
            },
            IcmpSaid {
                ktime_ns: 10,
                ..said
            },
            IcmpSaid { netns: 8, ..said },
            IcmpSaid {
                remote_addr: [0, 0, 1, 3],
                ..said
            },
        ] {
            assert!(!of(&other, &failure), "{other:?}");
        }
    }
}
