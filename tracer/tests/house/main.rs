//! The house the source lives in: plain data on the ground, two wings on it that do not know each other, and on
//! top what assembles them (DESIGN.md, 2). No file stands on itself, and every arrow leads down.
//!
//! Read from the source as it lies in the repository; nothing is compiled.

mod graph;
mod tree;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use self::{
    graph::{Arrow, circles, listed},
    tree::{Arrows, Tree},
};

/// Crates by name and root file.
const CRATES: [(&str, &str); 6] = [
    ("conntracer_common", "tracer-common/src/lib.rs"),
    ("conntracer_ebpf", "tracer-ebpf/src/main.rs"),
    ("conntracer", "tracer/src/lib.rs"),
    ("main", "tracer/src/main.rs"),
    ("conntracer_tests", "tests/src/lib.rs"),
    ("xtask", "xtask/src/main.rs"),
];

/// The floors of `tracer/src` from the ground up, and what stands on each: modules with all below them, unless one
/// of those has a place of its own. Within a floor files may name each other, as long as none does in a circle.
const FLOORS: [(&str, &str); 13] = [
    (
        "ground",
        "bounded cadence conditions count emit event finding host id owner::path plan section source time",
    ),
    ("kernel", "kernel owner"),
    ("decode", "decode recording"),
    ("table", "table"),
    ("detect", "detect reconcile"),
    ("alike", "alike"),
    ("attribute", "attribute"),
    ("incident", "incident"),
    ("pipeline", "filter pipeline"),
    ("sink", "sink"),
    ("run", "run watch"),
    ("view", "cli config outlet privileges telemetry view"),
    ("command", "command fuzzing"),
];

/// The wings, by their floors: they meet through `source`, in `run`.
const KERNEL: [&str; 1] = ["kernel"];
const JUDGE: [&str; 8] = [
    "alike",
    "decode",
    "table",
    "detect",
    "attribute",
    "incident",
    "pipeline",
    "sink",
];

type Known = (&'static str, &'static str, &'static str);

/// Arrows that are wrong and on their way out: from a module with all below it, to a file or to a module with all
/// below it (`::*`), and with what they go. An entry that nothing needs any more fails: the list can only shrink.
const NOT_YET: &[Known] = &[];

fn house() -> Tree {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tree = Tree::default();
    for (name, file) in CRATES {
        tree.add(name, &root.join(file));
    }
    let programs = std::fs::read_dir(root.join("tests/src/bin")).expect("the test programs");
    for entry in programs {
        let path = entry.expect("a directory entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy();
        let file = if path.is_dir() {
            path.join("main.rs")
        } else {
            path.clone()
        };
        tree.add(&name.replace('-', "_"), &file);
    }
    tree
}

/// The floor of a file of `tracer/src`, and which one from the ground it is.
fn floor(module: &str) -> Option<(usize, &'static str)> {
    let module = module.strip_prefix("conntracer::")?;
    let places = (0..).zip(FLOORS).flat_map(|(height, (floor, modules))| {
        let below = modules
            .split_whitespace()
            .filter(|of| graph::is_in(module, of));
        below.map(move |of| (of.len(), height, floor))
    });
    places.max().map(|(_, height, floor)| (height, floor))
}

/// What is wrong with one arrow, in words, and what mends it.
fn wrong(arrow: &Arrow<'_>) -> Option<String> {
    let (from, to) = (floor(arrow.from)?, floor(arrow.to)?);
    let within = |wing: &[&str], (_, floor)| wing.contains(&floor);
    let crosses =
        within(&KERNEL, from) && within(&JUDGE, to) || within(&JUDGE, from) && within(&KERNEL, to);
    if crosses {
        return Some(format!(
            "{arrow}: the wings do not know each other; plain data that both need belongs on the ground"
        ));
    }
    (from.0 < to.0).then(|| {
        format!(
            "{arrow}: {} lies below {}; what both need belongs on the lower floor, or the caller hands it in",
            from.1, to.1
        )
    })
}

/// All that is wrong with the arrows that are not known as [`NOT_YET`] has them.
fn faults(arrows: &Arrows, known: &[Known]) -> Vec<String> {
    let mut kept = Arrows::new();
    for arrow in listed(arrows) {
        let is_known = known
            .iter()
            .any(|(from, to, _)| graph::is_in(arrow.from, from) && graph::is_named(arrow.to, to));
        if !is_known {
            let of_file = kept.entry(arrow.from.to_owned()).or_default();
            of_file.insert(arrow.to.to_owned(), arrow.place.clone());
        }
    }
    let up = listed(&kept).filter_map(|arrow| wrong(&arrow));
    up.chain(circles(&kept)).collect()
}

#[test]
fn no_file_stands_on_itself_and_every_arrow_leads_down() {
    let faults = faults(&house().arrows(), NOT_YET);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_has_its_floor_and_every_place_its_file() {
    let tree = house();
    let without: Vec<&PathBuf> = tree
        .files
        .iter()
        .filter(|(module, _)| module.starts_with("conntracer::") && floor(module).is_none())
        .map(|(_, path)| path)
        .collect();
    assert!(
        without.is_empty(),
        "give these a floor in FLOORS: {without:?}"
    );
    let empty: Vec<&str> = FLOORS
        .iter()
        .flat_map(|(_, modules)| modules.split_whitespace())
        .filter(|of| !tree.files.contains_key(&format!("conntracer::{of}")))
        .collect();
    assert!(empty.is_empty(), "take these out of FLOORS: {empty:?}");
}

#[test]
fn what_is_not_mended_yet_is_still_wrong() {
    let arrows = house().arrows();
    let known = faults(&arrows, NOT_YET);
    for (at, (from, to, subject)) in NOT_YET.iter().enumerate() {
        let others = [&NOT_YET[..at], &NOT_YET[at + 1..]].concat();
        assert!(
            faults(&arrows, &others) != known,
            "{subject}: nothing is wrong any more from {from} to {to}; take it out of NOT_YET"
        );
    }
}

/// A crate of these files, and what is wrong with it.
fn faults_of(files: &[(&str, &str)]) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }
    let mut tree = Tree::default();
    tree.add("conntracer", &directory.path().join("lib.rs"));
    faults(&tree.arrows(), &[])
}

#[test]
fn a_circle_is_found_through_re_exports_and_renamed_imports() {
    let faults = faults_of(&[
        ("lib.rs", "pub mod kernel;"),
        (
            "kernel/mod.rs",
            "mod a; mod b; pub(crate) use self::a::Apple;",
        ),
        (
            "kernel/a.rs",
            "use super::b as other; pub struct Apple(other::Bean);",
        ),
        (
            "kernel/b.rs",
            "pub struct Bean; fn eat(apple: crate::kernel::Apple) {}",
        ),
    ]);
    let [circle] = faults.as_slice() else {
        panic!("one circle: {faults:?}");
    };
    for said in [
        "kernel::a",
        "kernel::b",
        "other::Bean",
        "crate::kernel::Apple",
    ] {
        assert!(circle.contains(said), "{circle}");
    }
}

#[test]
fn an_arrow_up_or_into_the_other_wing_is_found_and_one_in_a_test_is_none() {
    let files = |decode: &'static str| {
        faults_of(&[
            ("lib.rs", "mod kernel; mod decode; mod table; mod time;"),
            ("kernel.rs", "use crate::time::Ktime; pub fn open() {}"),
            ("table.rs", "pub struct Table;"),
            ("time.rs", "pub struct Ktime;"),
            ("decode.rs", decode),
        ])
    };
    assert_eq!(files("fn f() { crate::time::Ktime; }"), [""; 0]);
    assert!(files("use super::table::{Table};")[0].contains("decode lies below table"));
    assert!(files("fn f() { g(|| crate::kernel::open()) }")[0].contains("wings"));
    assert_eq!(
        files("#[cfg(test)] mod tests { use crate::table::Table; }"),
        [""; 0]
    );
    let said: BTreeSet<_> = files(
        "/// See [`crate::table::Table`].\nfn f() -> &'static str { \"crate::kernel::open\" }",
    )
    .into_iter()
    .collect();
    assert!(said.is_empty(), "{said:?}");
}
