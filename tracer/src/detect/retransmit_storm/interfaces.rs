//! By which interfaces segments left: whether a storm is one's, or everybody's.

use crate::{detect::facts::Facts, event::Egress};

/// Interfaces told apart in one scope: more than a host commonly has to the outside. Of the rest, the segments
/// are counted.
const MANY: usize = 4;

/// An interface has its number in its network namespace; its name may be another's elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interface {
    netns: u32,
    egress: Egress,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Interfaces {
    /// The first ones, and how many segments each had.
    known: [Option<(Interface, u64)>; MANY],
    others: u64,
}

impl Interfaces {
    pub(super) fn of(netns: u32, egress: Option<Egress>, segments: u64) -> Self {
        let interface = egress.map(|egress| (Interface { netns, egress }, segments));
        Self {
            known: [interface, None, None, None],
            others: 0,
        }
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.others = self.others.saturating_add(more.others);
        for (interface, segments) in more.known.into_iter().flatten() {
            let place = self
                .known
                .iter_mut()
                .find(|known| known.is_none_or(|(known, _)| known == interface));
            match place {
                Some(known) => {
                    let before = known.map_or(0, |(_, before)| before);
                    *known = Some((interface, before.saturating_add(segments)));
                }
                None => self.others = self.others.saturating_add(segments),
            }
        }
    }

    pub(super) fn facts(&self, facts: Facts) -> Facts {
        let known = || self.known.iter().flatten();
        let count = known().count().saturating_add((self.others > 0).into());
        let mut top = None;
        for (interface, segments) in known() {
            if top.is_none_or(|(_, most)| *segments > most) {
                top = Some((interface, *segments));
            }
        }
        let Some((interface, segments)) = top else {
            return facts;
        };
        let name = interface.egress.device.to_text();
        if count == 1 {
            return facts.text("interface", name);
        }
        facts
            .count("interfaces", count as u64)
            .text("top_interface", name)
            .count("top_interface_segments", segments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Device;

    fn egress(ifindex: u32) -> Egress {
        let mut device = [0; 16];
        device[..3].copy_from_slice(b"eth");
        Egress {
            device: Device(device),
            ifindex,
        }
    }

    #[test]
    fn what_is_beyond_the_bound_is_counted_together() {
        let mut all = Interfaces::default();
        for ifindex in 1..=6 {
            all.add(&Interfaces::of(1, Some(egress(ifindex)), ifindex.into()));
        }
        all.add(&Interfaces::of(1, Some(egress(2)), 7));
        all.add(&Interfaces::of(1, None, 100));
        assert_eq!(all.others, 5 + 6);
        assert_eq!(all.known[1].map(|(_, segments)| segments), Some(2 + 7));
        let mut twice = all;
        twice.add(&all);
        assert_eq!(twice.others, 2 * (5 + 6));
        assert_eq!(twice.known[3].map(|(_, segments)| segments), Some(2 * 4));
    }

    #[test]
    fn a_number_is_anothers_in_another_namespace() {
        let mut all = Interfaces::of(1, Some(egress(2)), 1);
        all.add(&Interfaces::of(9, Some(egress(2)), 1));
        assert_eq!(all.known.iter().flatten().count(), 2);
    }
}
