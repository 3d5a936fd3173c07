//! Who is behind the SYNs of one listener that come to nothing: how many addresses, of how many networks.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use conntracer_common::sketch::{ADDRESSES, PREFIXES};

use crate::event::Sources;

/// Addresses remembered by name: enough to count a few exactly, which the registers may take for one
/// less, and to name the only one. The registers count the rest.
const NAMED: usize = 16;

/// The sources of one listener address, by name and by the eBPF side's registers.
#[derive(Debug)]
pub(super) struct Crowd {
    named: BTreeSet<IpAddr>,
    addresses: [u8; ADDRESSES],
    prefixes: [u8; PREFIXES],
}

impl Crowd {
    pub(super) const fn new() -> Self {
        Self {
            named: BTreeSet::new(),
            addresses: [0; ADDRESSES],
            prefixes: [0; PREFIXES],
        }
    }

    /// One source, as a record names it.
    pub(super) fn saw(&mut self, source: IpAddr) {
        if self.named.len() < NAMED {
            self.named.insert(source);
        }
    }

    /// The registers of one listening socket; those of a `SO_REUSEPORT` group add up.
    pub(super) fn join(&mut self, sources: &Sources) {
        for (mine, theirs) in self.addresses.iter_mut().zip(sources.addresses) {
            *mine = (*mine).max(theirs);
        }
        for (mine, theirs) in self.prefixes.iter_mut().zip(sources.prefixes) {
            *mine = (*mine).max(theirs);
        }
    }

    /// Distinct addresses: up to a few exact, beyond with a standard error of 6.5 %.
    pub(super) fn sources(&self) -> u64 {
        estimate(&self.addresses).max(self.named.len() as u64)
    }

    /// Distinct networks (/24 and /48), with a standard error of 13 %.
    pub(super) fn prefixes(&self) -> u64 {
        let named: BTreeSet<IpAddr> = self.named.iter().map(|source| network(*source)).collect();
        estimate(&self.prefixes).max(named.len() as u64)
    }

    /// The source, where there is one and it was named.
    pub(super) fn only(&self) -> Option<IpAddr> {
        self.named.first().copied().filter(|_| self.sources() == 1)
    }
}

/// See `conntracer_common::sketch::prefix`.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(v4) => Ipv4Addr::from(v4.to_bits() & 0xffff_ff00).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(v6.to_bits() & !(u128::MAX >> 48)).into(),
    }
}

/// What the registers count: Flajolet et al. 2007, figure 3, without its correction for 32-bit hashes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "never negative; beyond 64 bits it saturates"
)]
fn estimate(registers: &[u8]) -> u64 {
    let count = registers.len() as f64;
    let alpha = if registers.len() == PREFIXES {
        0.709
    } else {
        0.7213 / (1.0 + 1.079 / count)
    };
    let sum: f64 = registers
        .iter()
        .map(|register| 0.5_f64.powi(i32::from(*register)))
        .sum();
    let raw = alpha * count * count / sum;
    let empty: f64 = registers
        .iter()
        .map(|register| f64::from(u8::from(*register == 0)))
        .sum();
    // Few: the share of registers hit tells better.
    if raw <= 2.5 * count && empty > 0.0 {
        (count * (count / empty).ln()).round() as u64
    } else {
        raw.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::sketch::{hash, prefix, rank};
    use proptest::prelude::*;

    use super::*;

    const fn v4(number: u32) -> [u32; 4] {
        [0, 0, 0xffff_u32.to_be(), number.to_be()]
    }

    /// Registers as the eBPF side fills them.
    fn crowd(sources: impl Iterator<Item = [u32; 4]>, seed: u64) -> Crowd {
        let mut crowd = Crowd::new();
        for source in sources {
            let address = hash(&source, seed);
            let register =
                &mut crowd.addresses[usize::try_from(address % ADDRESSES as u64).unwrap()];
            *register = (*register).max(rank(address, ADDRESSES));
            let network = hash(&prefix(&source), seed);
            let register = &mut crowd.prefixes[usize::try_from(network % PREFIXES as u64).unwrap()];
            *register = (*register).max(rank(network, PREFIXES));
        }
        crowd
    }

    #[test]
    fn nobody_is_nobody_and_one_is_one() {
        assert_eq!(Crowd::new().sources(), 0);
        let one = crowd([v4(0x0a00_0001), v4(0x0a00_0001)].into_iter(), 7);
        assert_eq!((one.sources(), one.prefixes()), (1, 1));
    }

    #[test]
    fn named_sources_are_counted_exactly() {
        let mut crowd = Crowd::new();
        for host in 1..=5 {
            crowd.saw(Ipv4Addr::new(192, 0, 2, host).into());
        }
        assert_eq!((crowd.sources(), crowd.prefixes()), (5, 1));
        crowd.saw(Ipv4Addr::new(198, 51, 100, 1).into());
        assert_eq!((crowd.sources(), crowd.prefixes()), (6, 2));
    }

    #[test]
    fn a_network_is_24_bits_of_ipv4_and_48_of_ipv6() {
        let v4: IpAddr = "192.0.2.77".parse().unwrap();
        assert_eq!(network(v4).to_string(), "192.0.2.0");
        let v6: IpAddr = "2001:db8:7:9::1".parse().unwrap();
        assert_eq!(network(v6).to_string(), "2001:db8:7::");
    }

    #[test]
    fn groups_that_share_a_port_are_joined() {
        let half = |range: std::ops::Range<u32>| crowd(range.map(v4), 3);
        let (mut left, right) = (half(0..3000), half(2000..5000));
        left.join(&Sources {
            addresses: right.addresses,
            prefixes: right.prefixes,
            ..crate::testing::sources()
        });
        let all = crowd((0..5000).map(v4), 3);
        assert_eq!(left.sources(), all.sources());
        assert_eq!(left.prefixes(), all.prefixes());
    }

    proptest! {
        // A case hashes thousands of addresses.
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Five standard errors: whoever chooses the addresses does not know the seed, so that hashes
        /// are as good as random.
        #[test]
        fn an_estimate_is_near_the_truth(seed in any::<u64>(), sources in 1_u32..20_000) {
            let crowd = crowd((0..sources).map(|number| v4(0x0b00_0000 + number)), seed);
            let near = |estimate: u64, truth: f64, error: f64| {
                (estimate as f64 - truth).abs() <= 5.0 * error * truth + 2.0
            };
            prop_assert!(
                near(crowd.sources(), f64::from(sources), 0.065), "{} of {sources}", crowd.sources()
            );
            let networks = sources.div_ceil(256);
            prop_assert!(
                near(crowd.prefixes(), f64::from(networks), 0.13), "{} of {networks}", crowd.prefixes()
            );
        }

        #[test]
        fn any_registers_give_a_number(registers in prop::collection::vec(any::<u8>(), 256)) {
            let _total = estimate(&registers);
            let _total = estimate(&registers[..PREFIXES]);
        }
    }
}
