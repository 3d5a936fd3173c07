//! What of a VM's console explains a failure, short enough for a terminal: where nobody keeps the log, this is all that
//! is known of it.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// Lines at most, of all failed tests together.
const MOST_LINES: usize = 40;

/// Lines of a failed test at least, however many there are.
const FEWEST_LINES: usize = 4;

/// Characters of a line at most: a finding with its evidence and advice.
const MOST_CHARACTERS: usize = 2000;

/// What the harness says of each failed test; where it says nothing, the end.
fn excerpt(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim_end).collect();
    let failed = failed(&lines);
    if failed.is_empty() {
        return ends(&told(&lines), 0, MOST_LINES);
    }
    let share = (MOST_LINES / failed.len()).max(FEWEST_LINES);
    let excerpts: Vec<_> = failed
        .iter()
        // The panic's place and message come first; what was said until then, before the end.
        .map(|lines| ends(&told(lines), share.div_ceil(2), share / 2))
        .collect();
    excerpts.join("\n")
}

/// The lines of each failed test: from its heading to the next one, or to the list of their names.
fn failed<'a>(lines: &'a [&'a str]) -> Vec<&'a [&'a str]> {
    let is_heading = |line: &str| line.starts_with("---- ") && line.ends_with(" ----");
    let mut failed = Vec::new();
    let mut rest = lines;
    while let Some(start) = rest.iter().position(|line| is_heading(line)) {
        let after = &rest[start + 1..];
        let length = after
            .iter()
            .position(|line| {
                is_heading(line) || *line == "failures:" || line.starts_with("test result: ")
            })
            .unwrap_or(after.len());
        failed.push(&rest[start..=start + length]);
        rest = &after[length..];
    }
    failed
}

/// What tells: a value that is printed over several lines is one, and of a backtrace only what is this project's is
/// left.
fn told(lines: &[&str]) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    let mut in_backtrace = false;
    // Whether the last line has opened what this one may go on with.
    let mut is_open = false;
    for line in lines {
        let text = line.trim();
        if text.eq_ignore_ascii_case("stack backtrace:") {
            in_backtrace = true;
            is_open = false;
            continue;
        }
        if in_backtrace {
            let frame = text
                .split_once(": ")
                .filter(|(number, _)| is_number(number));
            let place = text.strip_prefix("at ");
            match (frame, place) {
                (Some((_, name)), _) if is_ours(name) => told.push(format!("  in {name}")),
                (Some(_), _) | (_, Some(_)) => {}
                _ => in_backtrace = false,
            }
            if in_backtrace {
                continue;
            }
        }
        let opens = text.ends_with(['{', '[', '(']);
        let closes = line.starts_with(['}', ']', ')']);
        match told.last_mut() {
            Some(last) if is_open && (closes || line.starts_with(' ')) => {
                last.push(' ');
                last.push_str(text);
                is_open = !closes || opens;
            }
            _ if text.is_empty() => {}
            _ => {
                told.push((*line).to_owned());
                is_open = opens;
            }
        }
    }
    told
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A function of the live tests, of their harness or of a workload, and not the closure that the harness calls.
fn is_ours(name: &str) -> bool {
    let name = name.trim_start_matches('<');
    (name.starts_with("kernel::") || name.starts_with("conntracer"))
        && !name.contains("::{{closure}}")
}

/// The first and the last lines, and how many are left out between them.
fn ends(lines: &[String], first: usize, last: usize) -> String {
    let short = |line: &String| {
        let mut short: String = line.chars().take(MOST_CHARACTERS).collect();
        if short.len() < line.len() {
            short.push('…');
        }
        short
    };
    let left_out = lines.len().saturating_sub(first + last);
    if left_out == 0 {
        return lines.iter().map(short).collect::<Vec<_>>().join("\n");
    }
    let (before, after) = (&lines[..first], &lines[first + left_out..]);
    let said = (before.iter().map(short))
        .chain([format!("[{left_out} lines left out]")])
        .chain(after.iter().map(short));
    said.collect::<Vec<_>>().join("\n")
}

/// Prints what a VM said about its failure; its log has it all.
pub(crate) fn print_failure(name: &str, reason: &str, log: &Path) -> Result<()> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    println!("\n{name}: {reason}; {}\n{}", log.display(), excerpt(&text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = "\
[    0.100000] Linux version\r
running 2 tests
test a::b ... FAILED
test c ... ok

failures:

---- a::b stdout ----

thread 'a::b' (9) panicked at tests/tests/kernel/a.rs:7:5:
assertion `left == right` failed: Finding {
    id: 1,
    evidence: {
        \"n\": 2,
    },
}
  left: 1
 right: 2
stack backtrace:
   0: __rustc::rust_begin_unwind
             at /rustc/library/std/src/panicking.rs:689:5
   1: kernel::support::assert_counted
   2: kernel::a::b::{{closure}}
note: Some details are omitted


failures:
    a::b

test result: FAILED. 1 passed; 1 failed
init: failure
";

    #[test]
    fn a_failed_test_is_told_by_its_panic_and_what_led_there() {
        assert_eq!(
            excerpt(FAILED),
            "---- a::b stdout ----\n\
             thread 'a::b' (9) panicked at tests/tests/kernel/a.rs:7:5:\n\
             assertion `left == right` failed: Finding { id: 1, evidence: { \"n\": 2, }, }\n  \
             left: 1\n \
             right: 2\n  \
             in kernel::support::assert_counted\n\
             note: Some details are omitted"
        );
    }

    #[test]
    fn what_was_judged_of_a_whole_run_is_told_too() {
        let whole = "---- shared::plain::stops ----\nit ended with exit status: 1\n\
                     \ntest result: FAILED. 5 passed; 1 failed\ninit: failure";
        assert_eq!(
            excerpt(whole),
            "---- shared::plain::stops ----\nit ended with exit status: 1"
        );
    }

    #[test]
    fn without_a_failed_test_the_end_is_told() {
        let cost = format!(
            "{}Error: load retransmit\n\nCaused by:\n    65 segments\n\nStack backtrace:\n   0: anyhow::error\n   \
             1: conntracer_workload::loads::retransmit\ninit: failure\n",
            "cost untraced line 1 2\n".repeat(100)
        );
        let told = excerpt(&cost);
        assert_eq!(told.lines().count(), MOST_LINES + 1, "{told}");
        assert!(
            told.ends_with(
                "cost untraced line 1 2\nError: load retransmit\nCaused by:\n    65 segments\n  \
                 in conntracer_workload::loads::retransmit\ninit: failure"
            ),
            "{told}"
        );
        assert!(told.starts_with("[65 lines left out]\n"), "{told}");
    }

    #[test]
    fn many_failed_tests_share_the_lines_and_long_lines_end() {
        let long = "x".repeat(MOST_CHARACTERS + 1);
        let one = format!("---- a ----\npanicked\n{}", format!("{long}\n").repeat(50));
        let told = excerpt(&one.repeat(5));
        assert_eq!(told.lines().count(), 5 * (MOST_LINES / 5 + 1), "{told}");
        let width = told.lines().map(|line| line.chars().count()).max();
        assert_eq!(width, Some(MOST_CHARACTERS + 1));
    }
}
