//! conntracer's build, test and demo commands: `cargo xtask VERB`. One verb a module; what several
//! verbs need (the workspace's paths, child processes, packages, the BPF toolchain) has modules of
//! its own. Nothing here is part of the tracer.

mod again;
mod archive;
mod bench;
mod build;
mod check_object;
mod cpio;
mod demo;
mod excerpt;
mod fuzz;
mod kernel;
mod libtest;
mod machine;
mod modules;
mod packages;
mod process;
mod program;
mod programs;
mod record_data;
mod run;
mod ss;
mod table;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{packages::Installation, workspace::Workspace};

/// Builds, runs and tests conntracer, and gets what that needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    /// Install nothing; name what is missing instead.
    #[arg(long, global = true)]
    no_install: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Build(build::Arguments),
    Run(run::Arguments),
    Test(test::Arguments),
    Fuzz(fuzz::Arguments),
    Vm(vm::Arguments),
    Demo(demo::Arguments),
    Bench(bench::Arguments),
    CheckObject(check_object::Arguments),
    RecordData(record_data::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    let installation = Installation::from_no_install(arguments.no_install);
    match arguments.verb {
        Verb::Build(verb) => build::execute(&workspace, installation, &verb),
        Verb::Run(verb) => run::execute(&workspace, installation, &verb),
        Verb::Test(verb) => Ok(test::execute(&workspace, installation, &verb)),
        Verb::Fuzz(verb) => fuzz::execute(&workspace, installation, &verb),
        Verb::Vm(verb) => vm::execute(&workspace, installation, &verb),
        Verb::Demo(verb) => demo::execute(&workspace, installation, &verb),
        Verb::Bench(verb) => bench::execute(&workspace, installation, &verb),
        Verb::CheckObject(verb) => check_object::execute(&workspace, installation, &verb),
        Verb::RecordData(record_data::Arguments {}) => {
            record_data::execute(&workspace, installation)
        }
    }
}
