//! The tracked file of what tracing costs in instructions, and when a figure is too high.

use std::{collections::BTreeMap, fmt::Write as _, fs, io::ErrorKind, str::FromStr};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

const FILE: &str = "tracer-ebpf/cost.txt";
const HEADER: &str = "\
# What tracing costs, in instructions of an emulated CPU; written by `cargo xtask bench --vm --write`.
#
# KERNEL HOOKS LOAD UNTRACED TRACED RATIO USER
#   per healthy loopback connection, attempt at a full accept queue (overflow), retransmitted segment and streamed
#   line of `--emit state` (ten of a connection): of the workload and the kernel untraced, the same traced, and
#   of conntracer's user space besides
# KERNEL HOOKS LOAD program NAME RUNS INSTRUCTIONS
#   of each program, as the kernel calls it: runs per unit of the load, instructions per run with the some 65 that
#   counting them takes
";

/// How much more than tracked a figure may be. Two runs differ by less than 2 %, releases of rustc by a few
/// instructions a program.
const BOUND: f64 = 1.03;

/// Programs that run more rarely than for every second unit follow something else, mostly the time.
pub(super) const FEWEST_RUNS: f64 = 0.5;

/// The load whose user space follows its units; that of the others follows the time and the findings.
const WRITTEN: &str = "line";

/// What was counted on one kernel in one hook mode.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counted {
    /// What `uname -r` says there.
    pub(super) release: String,
    /// By name.
    pub(super) loads: BTreeMap<String, Load>,
}

/// Instructions per unit of a load.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Load {
    pub(super) untraced: u64,
    pub(super) traced: u64,
    pub(super) user: u64,
    /// By name.
    pub(super) programs: BTreeMap<String, Program>,
}

/// What a BPF program does for a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Program {
    /// Per unit.
    pub(super) runs: f64,
    /// Per run.
    pub(super) instructions: u64,
}

/// Kernel line and hook mode.
pub(super) type Key = (String, String);

/// All that is tracked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tracked(pub(super) BTreeMap<Key, Counted>);

impl Load {
    fn ratio(&self) -> f64 {
        self.traced as f64 / self.untraced as f64
    }

    /// Of all programs together, per unit.
    fn of_programs(&self) -> f64 {
        self.programs.values().map(Program::per_unit).sum()
    }
}

impl Program {
    fn per_unit(&self) -> f64 {
        self.runs * self.instructions as f64
    }
}

impl Tracked {
    /// What the file says; nothing where there is none yet.
    pub(super) fn read(workspace: &Workspace) -> Result<Self> {
        let path = workspace.root().join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => text.parse().with_context(|| path.display().to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    pub(super) fn write(&self, workspace: &Workspace) -> Result<()> {
        let path = workspace.root().join(FILE);
        let mut text = HEADER.to_owned();
        for (key, counted) in &self.0 {
            text.push('\n');
            text.push_str(&lines(key, counted));
        }
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Everything of `now` that costs more than is tracked, a sentence each.
    pub(super) fn violations(&self, key: &Key, now: &Counted) -> Vec<String> {
        let (kernel, hooks) = key;
        let place = format!("Linux {} ({hooks})", now.release);
        let remedy = format!(
            "look at what grew, or write what is worth it: `cargo xtask bench --vm {kernel} --hooks {hooks} --write`"
        );
        let Some(tracked) = self.0.get(key) else {
            return vec![format!("{place}: {FILE} has no figures of it: {remedy}")];
        };
        let mut violations = Vec::new();
        let mut add = |name: &str, what: String| {
            violations.push(format!(
                "{place}: {name}: {what}; tracked on {}, and {:.0} % more would do: {remedy}",
                tracked.release,
                (BOUND - 1.0) * 100.0
            ));
        };
        for (name, load) in &tracked.loads {
            match now.loads.get(name) {
                Some(now) => {
                    for what in excesses(name, load, now) {
                        add(name, what);
                    }
                }
                None => add(name, "was not counted".to_owned()),
            }
        }
        for name in now.loads.keys() {
            if !tracked.loads.contains_key(name) {
                add(name, "is not tracked".to_owned());
            }
        }
        violations
    }
}

/// What of a load is beyond its bound.
fn excesses(name: &str, tracked: &Load, now: &Load) -> Vec<String> {
    let mut excesses = Vec::new();
    let more = |ratio: f64| (ratio - 1.0) * 100.0;
    // The ratio, as another release of the kernel takes more or less by itself.
    if now.ratio() > tracked.ratio() * BOUND {
        excesses.push(format!(
            "{} instructions traced after {} untraced (+{:.1} %), not {} after {} (+{:.1} %)",
            now.traced,
            now.untraced,
            more(now.ratio()),
            tracked.traced,
            tracked.untraced,
            more(tracked.ratio())
        ));
    }
    if name == WRITTEN && now.user as f64 > tracked.user as f64 * BOUND {
        excesses.push(format!(
            "{} instructions of user space, not {}",
            now.user, tracked.user
        ));
    }
    let (of_now, of_tracked) = (now.of_programs(), tracked.of_programs());
    if of_now > of_tracked * BOUND {
        let grown: Vec<String> = now
            .programs
            .iter()
            .filter_map(|(name, now)| {
                let before = tracked.programs.get(name).map_or(0.0, Program::per_unit);
                let now = now.per_unit();
                (now > before * BOUND).then(|| format!("{name} {now:.0}, not {before:.0}"))
            })
            .collect();
        excesses.push(format!(
            "{of_now:.0} instructions of BPF programs, not {of_tracked:.0} ({})",
            grown.join("; ")
        ));
    }
    excesses
}

/// The file's lines of one kernel and hook mode.
pub(super) fn lines((kernel, hooks): &Key, counted: &Counted) -> String {
    let mut text = String::new();
    let mut line = |what: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{kernel} {hooks} {what}");
    };
    line(format_args!("release {}", counted.release));
    for (name, load) in &counted.loads {
        line(format_args!(
            "{name} {} {} {:.3} {}",
            load.untraced,
            load.traced,
            load.ratio(),
            load.user
        ));
    }
    for (name, load) in &counted.loads {
        for (program, Program { runs, instructions }) in &load.programs {
            line(format_args!(
                "{name} program {program} {runs:.2} {instructions}"
            ));
        }
    }
    text
}

impl FromStr for Tracked {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut tracked = Self::default();
        for line in text.lines() {
            if !line.is_empty() && !line.starts_with('#') {
                tracked
                    .line(line)
                    .with_context(|| format!("{line:?} is no line of it"))?;
            }
        }
        Ok(tracked)
    }
}

impl Tracked {
    fn line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [kernel, hooks, what @ ..] = &*words else {
            bail!("no kernel and hook mode");
        };
        let counted = self
            .0
            .entry(((*kernel).to_owned(), (*hooks).to_owned()))
            .or_default();
        match *what {
            ["release", release] => release.clone_into(&mut counted.release),
            [name, "program", program, runs, instructions] => {
                let load = counted
                    .loads
                    .get_mut(name)
                    .context("a program of a load that is not there")?;
                let figures = Program {
                    runs: runs.parse().context("runs")?,
                    instructions: instructions.parse().context("instructions")?,
                };
                if load.programs.insert(program.to_owned(), figures).is_some() {
                    bail!("a program twice");
                }
            }
            // The ratio is for people.
            [name, untraced, traced, _, user] => {
                let load = Load {
                    untraced: untraced.parse().context("untraced")?,
                    traced: traced.parse().context("traced")?,
                    user: user.parse().context("user")?,
                    programs: BTreeMap::new(),
                };
                if counted.loads.insert(name.to_owned(), load).is_some() {
                    bail!("a load twice");
                }
            }
            _ => bail!("neither release, load nor program"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a remark

6.12 auto release 6.12.94-cloud
6.12 auto connection 75000 85000 1.133 12
6.12 auto line 7500 10200 1.360 27000
6.12 auto connection program connect 1.00 880
6.12 auto connection program state 10.00 200
";

    fn key() -> Key {
        ("6.12".to_owned(), "auto".to_owned())
    }

    fn tracked() -> Tracked {
        TEXT.parse().unwrap()
    }

    /// What is said when the tracked figures have changed so.
    fn violations(change: impl FnOnce(&mut Counted)) -> Vec<String> {
        let mut now = tracked().0.remove(&key()).unwrap();
        change(&mut now);
        tracked().violations(&key(), &now)
    }

    fn load<'a>(counted: &'a mut Counted, name: &str) -> &'a mut Load {
        counted.loads.get_mut(name).unwrap()
    }

    #[test]
    fn what_is_written_reads_back() {
        let lines = lines(&key(), &tracked().0[&key()]);
        assert_eq!(
            lines,
            TEXT.split_once("\n\n").unwrap().1,
            "without remarks, in this order"
        );
        assert_eq!(lines.parse::<Tracked>().unwrap(), tracked());
    }

    #[rstest::rstest]
    #[case::short("6.12\n")]
    #[case::word("6.12 auto connection 1 many 1.0 0\n")]
    #[case::no_load("6.12 auto connection program state 1.00 2\n")]
    #[case::twice("6.12 auto line 1 2 2.0 0\n6.12 auto line 1 2 2.0 0\n")]
    #[case::long("6.12 auto line 1 2 2.0 0 0\n")]
    fn a_malformed_line_is_refused(#[case] text: &str) {
        assert!(text.parse::<Tracked>().is_err());
    }

    #[test]
    fn what_is_within_the_bound_or_less_is_no_violation() {
        assert_eq!(violations(|_| ()), [""; 0]);
        let less = violations(|now| {
            load(now, "connection").traced = 80_000;
            load(now, "connection").programs.clear();
            load(now, "line").user = 2_700;
        });
        assert_eq!(less, [""; 0]);
        let little = violations(|now| {
            load(now, "connection").traced = 87_000;
            load(now, "connection").user = 1_000;
            load(now, "line").user = 27_500;
        });
        assert_eq!(little, [""; 0]);
    }

    #[test]
    fn a_kernel_that_takes_more_by_itself_is_no_violation() {
        let slower = violations(|now| {
            load(now, "connection").untraced = 90_000;
            load(now, "connection").traced = 102_000;
        });
        assert_eq!(slower, [""; 0]);
    }

    #[test]
    fn a_load_beyond_its_bound_is_named_with_both_figures_and_the_remedy() {
        let said = violations(|now| load(now, "connection").traced = 88_000);
        assert_eq!(
            said,
            [
                "Linux 6.12.94-cloud (auto): connection: 88000 instructions traced after 75000 untraced (+17.3 %), \
                 not 85000 after 75000 (+13.3 %); tracked on 6.12.94-cloud, and 3 % more would do: look at what \
                 grew, or write what is worth it: `cargo xtask bench --vm 6.12 --hooks auto --write`"
            ]
        );
    }

    #[test]
    fn a_line_that_takes_more_of_user_space_is_a_violation() {
        let said = violations(|now| load(now, "line").user = 28_000);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("line: 28000 instructions of user space, not 27000;"),
            "{said:?}"
        );
    }

    #[test]
    fn programs_that_grew_are_named() {
        let said = violations(|now| {
            let programs = &mut load(now, "connection").programs;
            programs.get_mut("state").unwrap().instructions = 300;
            let added = Program {
                runs: 2.0,
                instructions: 50,
            };
            programs.insert("added".to_owned(), added);
        });
        assert_eq!(said.len(), 1, "{said:?}");
        let expected =
            "3980 instructions of BPF programs, not 2880 (added 100, not 0; state 3000, not 2000);";
        assert!(said[0].contains(expected), "{said:?}");
    }

    #[test]
    fn a_load_that_is_not_on_both_sides_is_a_violation() {
        let said = violations(|now| {
            let load = now.loads.remove("line").unwrap();
            now.loads.insert("lines".to_owned(), load);
        });
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("line: was not counted;"), "{said:?}");
        assert!(said[1].contains("lines: is not tracked;"), "{said:?}");
    }

    #[test]
    fn a_mode_without_figures_is_a_violation() {
        let key = ("6.12".to_owned(), "kprobe".to_owned());
        let said = tracked().violations(&key, &Counted::default());
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].contains("tracer-ebpf/cost.txt has no figures of it"),
            "{said:?}"
        );
    }
}
