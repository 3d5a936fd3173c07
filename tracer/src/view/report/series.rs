//! Values over time, in as many steps as a chart has room for: where they last longer, two steps become one.

use std::collections::BTreeMap;

/// Steps of a series at most.
pub(super) const MAX_STEPS: usize = 240;
/// The shortest step.
const SHORTEST_NS: i128 = 1_000_000_000;

/// What steps can be made of.
pub(super) trait Step: Clone + Default {
    /// Two steps become one.
    fn join(&mut self, later: &Self);
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Series<T> {
    /// The length of a step.
    pub(super) step_ns: i128,
    /// By number since the epoch.
    steps: BTreeMap<i128, T>,
}

impl<T> Default for Series<T> {
    fn default() -> Self {
        Self {
            step_ns: SHORTEST_NS,
            steps: BTreeMap::new(),
        }
    }
}

impl<T: Step> Series<T> {
    /// The step of a moment.
    pub(super) fn at(&mut self, ns: i128) -> &mut T {
        while self.spans_too_much(ns.div_euclid(self.step_ns)) {
            self.halve();
        }
        self.steps.entry(ns.div_euclid(self.step_ns)).or_default()
    }

    fn spans_too_much(&self, step: i128) -> bool {
        let most = i128::try_from(MAX_STEPS).unwrap_or(i128::MAX);
        let first = self.steps.keys().next();
        let last = self.steps.keys().next_back();
        match (first, last) {
            (Some(first), Some(last)) => step.max(*last).saturating_sub(step.min(*first)) >= most,
            _ => false,
        }
    }

    fn halve(&mut self) {
        self.step_ns = self.step_ns.saturating_mul(2);
        for (step, value) in std::mem::take(&mut self.steps) {
            self.steps
                .entry(step.div_euclid(2))
                .and_modify(|known| known.join(&value))
                .or_insert(value);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// When each step begins, nanoseconds since the epoch, and what it holds.
    pub(super) fn steps(&self) -> impl Iterator<Item = (i128, &T)> {
        self.steps
            .iter()
            .map(|(step, value)| (step.saturating_mul(self.step_ns), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Sum(u64);

    impl Step for Sum {
        fn join(&mut self, later: &Self) {
            self.0 += later.0;
        }
    }

    #[test]
    fn a_long_time_has_as_many_steps_as_a_short_one_and_loses_nothing() {
        let mut series = Series::<Sum>::default();
        for second in 0..100_000_i128 {
            series.at(second * 1_000_000_000).0 += 1;
        }
        let steps: Vec<u64> = series.steps().map(|(_, sum)| sum.0).collect();
        assert!(steps.len() <= MAX_STEPS, "{}", steps.len());
        assert_eq!(steps.iter().sum::<u64>(), 100_000);
        assert_eq!(steps[0], 512);
    }

    /// A damaged file may hold any time.
    #[test]
    fn far_apart_and_before_the_epoch_is_still_a_series() {
        let mut series = Series::<Sum>::default();
        for ns in [i128::from(i64::MAX), i128::from(i64::MIN), 0] {
            series.at(ns).0 += 1;
        }
        assert_eq!(series.steps().map(|(_, sum)| sum.0).sum::<u64>(), 3);
    }
}
