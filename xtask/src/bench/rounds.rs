//! What the workload says on a VM's console, and the figures that come of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::{
    cost::{FEWEST_RUNS, Load, Program},
    spread::spread,
};

/// How a line that is a figure begins; the workload's `count` says what follows.
const FIGURE: &str = "cost ";

/// All rounds of all loads.
#[derive(Debug, Default)]
pub(super) struct Rounds(BTreeMap<String, OfLoad>);

#[derive(Debug, Default)]
struct OfLoad {
    /// Instructions per unit, a round each.
    untraced: Vec<f64>,
    traced: Vec<f64>,
    user: Vec<f64>,
    programs: BTreeMap<String, Program>,
}

impl Rounds {
    /// Takes in a line of the console.
    pub(super) fn line(&mut self, line: &str) -> Result<()> {
        match line.trim().strip_prefix(FIGURE) {
            Some(figure) => self
                .figure(figure)
                .with_context(|| format!("{line:?} is no figure")),
            None => Ok(()),
        }
    }

    fn figure(&mut self, figure: &str) -> Result<()> {
        let words: Vec<&str> = figure.split(' ').collect();
        let [what, load, units, rest @ ..] = &*words else {
            bail!("too short");
        };
        let units: f64 = units.parse().context("units")?;
        ensure!(units > 0.0, "no units");
        let number = |word: &str| word.parse::<f64>().with_context(|| word.to_owned());
        let of_load = self.0.entry((*load).to_owned()).or_default();
        match (*what, rest) {
            ("untraced", [instructions]) => of_load.untraced.push(number(instructions)? / units),
            ("traced", [instructions, user]) => {
                of_load.traced.push(number(instructions)? / units);
                of_load.user.push(number(user)? / units);
            }
            ("program", [name, runs, instructions]) => {
                let count = number(runs)?;
                let program = Program {
                    runs: count / units,
                    instructions: whole(number(instructions)? / count),
                };
                if program.runs >= FEWEST_RUNS {
                    of_load.programs.insert((*name).to_owned(), program);
                }
            }
            _ => bail!("neither untraced, traced nor program"),
        }
        Ok(())
    }

    /// The medians: now and then the kernel does something else meanwhile. Of user space the mean, whose work comes
    /// in bursts.
    pub(super) fn loads(self) -> Result<BTreeMap<String, Load>> {
        ensure!(!self.0.is_empty(), "the workload counted nothing");
        self.0
            .into_iter()
            .map(|(name, of_load)| {
                let OfLoad {
                    untraced,
                    traced,
                    user,
                    programs,
                } = of_load;
                ensure!(
                    !untraced.is_empty() && !traced.is_empty() && !programs.is_empty(),
                    "the workload did not count all of load {name}"
                );
                let mean = user.iter().sum::<f64>() / user.len() as f64;
                let load = Load {
                    untraced: whole(spread(untraced)[1]),
                    traced: whole(spread(traced)[1]),
                    user: whole(mean),
                    programs,
                };
                Ok((name, load))
            })
            .collect()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of instructions, which were whole and positive before they were divided"
)]
fn whole(instructions: f64) -> u64 {
    instructions.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(console: &str) -> Result<BTreeMap<String, Load>> {
        let mut rounds = Rounds::default();
        for line in console.lines() {
            rounds.line(line)?;
        }
        rounds.loads()
    }

    const CONSOLE: &str = "\
[    1.000000] a message: costly
cost untraced connection 10 750
cost untraced connection 10 760
cost untraced connection 10 7000\r
cost traced connection 10 850 0
cost traced connection 10 860 90
cost traced connection 10 840 0
cost program connection 10 state 100 20049
cost program connection 10 snapshot 2 9999
init: success
";

    #[test]
    fn figures_are_medians_per_unit_and_rare_programs_left_out() {
        let state = Program {
            runs: 10.0,
            instructions: 200,
        };
        let expected = Load {
            untraced: 76,
            traced: 85,
            user: 3,
            programs: BTreeMap::from([("state".to_owned(), state)]),
        };
        assert_eq!(
            loads(CONSOLE).unwrap(),
            BTreeMap::from([("connection".to_owned(), expected)])
        );
    }

    #[rstest::rstest]
    #[case::nothing("init: success\n")]
    #[case::garbled("cost untraced connection 10 7[ 1.0] x\n")]
    #[case::short("cost untraced\n")]
    #[case::no_units("cost untraced connection 0 750\n")]
    #[case::unknown("cost half connection 10 750\n")]
    #[case::no_traced("cost untraced connection 10 750\n")]
    fn what_is_incomplete_is_an_error(#[case] console: &str) {
        assert!(loads(console).is_err());
    }
}
