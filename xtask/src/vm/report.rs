//! What is printed of VMs that have ended.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::trial::Outcome;

/// Prints what the failed VMs said about their failures.
pub(crate) fn print_failures(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        if let Some(reason) = &outcome.failure {
            let stage = &outcome.row.stage;
            println!("\n{stage}: {reason}; {}", outcome.log.display());
            println!("{}", excerpt(&read_log(&outcome.log)?));
        }
    }
    Ok(())
}

fn read_log(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The part of a console log that explains a failure: what the harness prints about failed tests,
/// or else the end. The log has it all.
fn excerpt(log: &str) -> String {
    const MAX_LINES: usize = 100;
    let lines: Vec<&str> = log.lines().collect();
    let end = lines.len();
    let start = match lines.iter().position(|line| line.trim() == "failures:") {
        Some(start) => start,
        None => end.saturating_sub(MAX_LINES),
    };
    if end - start <= MAX_LINES {
        return lines[start..].join("\n");
    }
    // The first failure's message, and the end with the list of all of them.
    let half = MAX_LINES / 2;
    let (first, last) = (start + half, end - half);
    format!(
        "{}\n[{} lines left out]\n{}",
        lines[start..first].join("\n"),
        last - first,
        lines[last..].join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpt_is_what_explains_the_failure() {
        assert_eq!(
            excerpt("boot\nfailures:\n\n---- a ----"),
            "failures:\n\n---- a ----"
        );
        let silent = vec!["x"; 150].join("\n");
        assert_eq!(excerpt(&silent).lines().count(), 100);
        let long = format!("boot\nfailures:\n{silent}\nlast");
        let excerpt = excerpt(&long);
        assert!(excerpt.starts_with("failures:\n"), "{excerpt}");
        assert!(excerpt.contains("[52 lines left out]"), "{excerpt}");
        assert!(excerpt.ends_with("\nlast"), "{excerpt}");
    }
}
