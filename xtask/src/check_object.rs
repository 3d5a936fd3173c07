//! `check-object`: rules on the built eBPF object that the compiler does not enforce and the
//! verifier reports late, in one line a violation.

use std::{collections::BTreeMap, fmt::Write as _, fs, process::ExitCode};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    packages::Installation,
    program::{Function, Functions},
    workspace::Workspace,
};

/// Check the built eBPF object: no library calls, stack, instruction budget
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write the budget of every program anew, from what it needs now.
    #[arg(long)]
    bless: bool,
}

/// Bytes of stack a program and all it calls may use (`MAX_BPF_STACK`).
const MAX_STACK_BYTES: u32 = 512;

/// Functions compilers call behind the source's back: loops over bytes, costly in a hook.
const LIBRARY_FUNCTIONS: [&str; 5] = ["bcmp", "memcmp", "memcpy", "memmove", "memset"];

/// Budgets are rounded up to this: releases of rustc differ by a few instructions a program.
const BUDGET_STEP: u32 = 32;

const BUDGET_FILE: &str = "tracer-ebpf/budget.txt";
const BUDGET_HEADER: &str = "\
# Instructions each program may have, with all it calls; checked by `cargo xtask check-object`.
# A program that grows beyond its budget costs every traced host: look at what grew, then --bless.
";

/// Program names to instructions.
type Budget = BTreeMap<String, u32>;

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> Result<ExitCode> {
    let functions = built_functions(workspace, installation)?;
    let path = workspace.root().join(BUDGET_FILE);
    if arguments.bless {
        fs::write(&path, format_budget(&blessed(&functions)))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    print_programs(&functions)?;
    let violations = violations(&functions, &read_budget(workspace)?)?;
    for violation in &violations {
        eprintln!("error: {violation}");
    }
    Ok(ExitCode::from(u8::from(!violations.is_empty())))
}

/// Builds the object and gives every violation of its rules.
pub(crate) fn check(workspace: &Workspace, installation: Installation) -> Result<Vec<String>> {
    let functions = built_functions(workspace, installation)?;
    violations(&functions, &read_budget(workspace)?)
}

fn built_functions(workspace: &Workspace, installation: Installation) -> Result<Functions> {
    let object = build::object(workspace, installation)?;
    let bytes = fs::read(&object).with_context(|| format!("reading {}", object.display()))?;
    Functions::parse(&bytes)
}

fn print_programs(functions: &Functions) -> Result<()> {
    println!(
        "{:<40} {:>12} {:>12}",
        "program", "instructions", "stack bytes"
    );
    for program in functions.programs() {
        println!(
            "{:<40} {:>12} {:>12}",
            program.name,
            functions.loaded_instructions(program),
            functions.chain_stack_bytes(program)?
        );
    }
    Ok(())
}

fn violations(functions: &Functions, budget: &Budget) -> Result<Vec<String>> {
    let mut violations = Vec::new();
    if functions.programs().next().is_none() {
        violations.push("the object holds no program".to_owned());
    }
    for function in functions.iter() {
        violations.extend(
            function
                .calls
                .iter()
                .filter(|callee| is_forbidden(callee))
                .map(|callee| format!("{} calls {callee}", function.name)),
        );
    }
    for program in functions.programs() {
        let stack_bytes = functions.chain_stack_bytes(program)?;
        if stack_bytes > MAX_STACK_BYTES {
            violations.push(format!(
                "{} uses {stack_bytes} bytes of stack, of {MAX_STACK_BYTES}",
                program.name
            ));
        }
        violations.extend(over_budget(functions, program, budget));
    }
    for name in budget.keys() {
        if !functions.programs().any(|program| program.name == *name) {
            violations.push(format!("{BUDGET_FILE} lists {name}, which is no program"));
        }
    }
    Ok(violations)
}

fn over_budget(functions: &Functions, program: &Function, budget: &Budget) -> Option<String> {
    let name = &program.name;
    let instructions = functions.loaded_instructions(program);
    match budget.get(name) {
        None => Some(format!(
            "{name} ({instructions} instructions) has no budget in {BUDGET_FILE}: run `cargo xtask \
             check-object --bless`"
        )),
        Some(allowed) if instructions > *allowed => Some(format!(
            "{name} has {instructions} instructions, {} over its budget of {allowed}",
            instructions - allowed
        )),
        Some(_) => None,
    }
}

fn is_forbidden(callee: &str) -> bool {
    // Mangled, the panics of core are `…4core9panicking…`.
    LIBRARY_FUNCTIONS.contains(&callee) || callee.contains("panic")
}

fn blessed(functions: &Functions) -> Budget {
    functions
        .programs()
        .map(|program| {
            let instructions = functions.loaded_instructions(program);
            (
                program.name.clone(),
                instructions.next_multiple_of(BUDGET_STEP),
            )
        })
        .collect()
}

fn read_budget(workspace: &Workspace) -> Result<Budget> {
    let path = workspace.root().join(BUDGET_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => parse_budget(&text).with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Budget::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn parse_budget(text: &str) -> Result<Budget> {
    let mut budget = Budget::new();
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, count) = line
            .split_once(' ')
            .with_context(|| format!("{line:?} is not `name instructions`"))?;
        let count = count
            .trim()
            .parse()
            .with_context(|| format!("{line:?}: number of instructions"))?;
        if budget.insert(name.to_owned(), count).is_some() {
            bail!("{name} has two budgets");
        }
    }
    Ok(budget)
}

fn format_budget(budget: &Budget) -> String {
    let mut text = BUDGET_HEADER.to_owned();
    for (name, count) in budget {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} {count}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, instructions: u32, stack_bytes: u32, calls: &[&str]) -> Function {
        Function {
            name: name.to_owned(),
            is_program: true,
            instructions,
            stack_bytes,
            calls: calls.iter().map(|call| (*call).to_owned()).collect(),
        }
    }

    fn violations_of(function: Function, budget: &str) -> Vec<String> {
        violations(&Functions::new([function]), &parse_budget(budget).unwrap()).unwrap()
    }

    #[test]
    fn program_within_its_limits_passes() {
        let function = program("tcp_connect", 64, 512, &[]);
        assert_eq!(violations_of(function, "tcp_connect 64\n"), [""; 0]);
    }

    #[rstest::rstest]
    #[case::memset(program("p", 1, 0, &["memset"]), "p 32", "p calls memset")]
    #[case::panic(
        program("p", 1, 0, &["_ZN4core9panicking5panic17h0E"]),
        "p 32",
        "p calls _ZN4core9panicking5panic17h0E"
    )]
    #[case::stack(program("p", 1, 520, &[]), "p 32", "p uses 520 bytes of stack, of 512")]
    #[case::grown(
        program("p", 40, 0, &[]),
        "p 32",
        "p has 40 instructions, 8 over its budget of 32"
    )]
    #[case::unlisted(
        program("p", 40, 0, &[]),
        "",
        "p (40 instructions) has no budget in tracer-ebpf/budget.txt: run `cargo xtask \
         check-object --bless`"
    )]
    #[case::gone(
        program("p", 4, 0, &[]),
        "p 32\nq 32",
        "tracer-ebpf/budget.txt lists q, which is no program"
    )]
    fn violation_is_named(#[case] function: Function, #[case] budget: &str, #[case] said: &str) {
        assert_eq!(violations_of(function, budget), [said]);
    }

    #[test]
    fn empty_object_is_a_violation() {
        let violations = violations(&Functions::default(), &Budget::new()).unwrap();
        assert_eq!(violations, ["the object holds no program"]);
    }

    #[test]
    fn budget_reads_back_as_written() {
        let functions = Functions::new([program("a", 33, 0, &[]), program("b", 1, 0, &[])]);
        let budget = blessed(&functions);
        assert_eq!(budget["a"], 64);
        assert_eq!(parse_budget(&format_budget(&budget)).unwrap(), budget);
    }

    #[rstest::rstest]
    #[case::no_number("a\n")]
    #[case::words("a many\n")]
    #[case::twice("a 1\na 2\n")]
    fn malformed_budget_is_refused(#[case] text: &str) {
        assert!(parse_budget(text).is_err());
    }
}
