//! The register of claims: what each room can say, the records of which it is said, and the look-alikes of which it must
//! not be. A room keeps its own beside its words, in `claims.rs`; here are their form, the list of them, and the tests that
//! hold everything that any test hears against it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::LazyLock,
};

use super::{
    SPECS, accept_delay, bind_failure, connect_failure, connection_drop, early_drop,
    half_open::{dead_peer, half_closed, handshake, idle},
    receive_stall, retransmit_storm, send_stall, syn_drop,
};
use crate::{finding::Finding, testing::Run};

/// What is known: records, as they come.
pub(crate) type Records = fn(&mut Run);

/// They, and nothing before them, on a host that sees everything.
pub(crate) fn alone(records: Records) -> Run {
    let mut run = Run::new();
    records(&mut run);
    run
}

/// A clause of a sentence, by the part of it that is always the same.
pub(crate) struct Claim<R: 'static> {
    pub(crate) words: &'static str,
    /// What it is true of.
    pub(crate) said: &'static [R],
    /// Counter-examples: what it would be untrue of.
    pub(crate) never: &'static [R],
}

/// In place of a kind: claims that findings of every kind may have.
pub(crate) const EVERY: &str = "";

/// The claims of a room whose cases are told by `R`.
pub(crate) struct Register<R: 'static> {
    pub(crate) room: &'static str,
    /// Under which its findings are told.
    pub(crate) kind: &'static str,
    pub(crate) run: fn(R) -> Run,
    pub(crate) claims: &'static [Claim<R>],
}

/// A register, whatever its cases are told by.
pub(crate) trait Claims: Sync {
    fn room(&self) -> &'static str;

    fn kind(&self) -> &'static str;

    fn words(&self) -> Vec<&'static str>;

    /// How many counter-examples a claim has.
    fn counter_examples(&self) -> Vec<usize>;

    /// What does not hold.
    fn untrue(&self) -> Vec<String>;
}

impl<R: Copy + Sync> Register<R> {
    /// What the findings of its kind said last, when all was known.
    fn said(&self, case: R) -> String {
        let mut run = (self.run)(case);
        run.finish();
        let findings = run.last_words().into_iter();
        let texts: Vec<&str> = findings
            .filter(|finding| [finding.kind.name(), EVERY].contains(&self.kind))
            .flat_map(texts)
            .map(|(text, _)| text)
            .collect();
        texts.join("\n")
    }
}

impl<R: Copy + Sync> Claims for Register<R> {
    fn room(&self) -> &'static str {
        self.room
    }

    fn kind(&self) -> &'static str {
        self.kind
    }

    fn words(&self) -> Vec<&'static str> {
        self.claims.iter().map(|claim| claim.words).collect()
    }

    fn counter_examples(&self) -> Vec<usize> {
        self.claims.iter().map(|claim| claim.never.len()).collect()
    }

    fn untrue(&self) -> Vec<String> {
        let mut untrue = Vec::new();
        for Claim { words, said, never } in self.claims {
            if said.is_empty() || never.is_empty() {
                untrue.push(format!("{words:?} lacks what it is said of, or is not"));
            }
            let cases = said.iter().map(|case| (case, true));
            let cases = cases.chain(never.iter().map(|case| (case, false)));
            for (number, (case, expected)) in cases.enumerate() {
                let said = self.said(*case);
                if said.contains(words) != expected {
                    let what = if expected { "is not said" } else { "is said" };
                    untrue.push(format!("{words:?} {what} of case {number}: {said}"));
                }
            }
        }
        untrue
    }
}

static REGISTERS: &[&dyn Claims] = &[
    &syn_drop::claims::REGISTER,
    &syn_drop::claims::OF_COOKIES,
    &early_drop::claims::REGISTER,
    &connection_drop::claims::OF_ONE,
    &connection_drop::claims::OF_SEVERAL,
    &send_stall::claims::REGISTER,
    &receive_stall::claims::REGISTER,
    &handshake::claims::REGISTER,
    &dead_peer::claims::REGISTER,
    &half_closed::claims::REGISTER,
    &idle::claims::REGISTER,
    &connect_failure::claims::OF_ONE,
    &connect_failure::claims::OF_SEVERAL,
    &connect_failure::claims::OF_ANOTHER_NAMESPACE,
    &bind_failure::claims::REGISTER,
    &retransmit_storm::claims::REGISTER,
    &crate::alike::tests::REGISTER,
    &crate::incident::tests::REGISTER,
    &accept_delay::claims::REGISTER,
];

/// Ends of the clauses of a summary, and of advice, in which a colon leads to a command.
const SUMMARY: &[&str] = &[": ", "; "];
const ADVICE: &[&str] = &["; "];

fn texts(finding: &Finding) -> impl Iterator<Item = (&str, &'static [&'static str])> {
    let advice = finding.advice.iter().map(|text| (text.as_ref(), ADVICE));
    [(finding.summary.as_str(), SUMMARY)]
        .into_iter()
        .chain(advice)
}

/// Where the clauses of a text are.
fn clauses(text: &str, marks: &'static [&'static str]) -> impl Iterator<Item = (usize, usize)> {
    let mut ends: Vec<usize> = marks
        .iter()
        .flat_map(|mark| text.match_indices(*mark).map(|(at, _)| at))
        // An IPv6 address ends so, too.
        .filter(|at| !text[..*at].ends_with(':'))
        .collect();
    ends.sort_unstable();
    ends.push(text.len());
    let mut from = 0;
    ends.into_iter().map(move |end| {
        let clause = (from, end);
        from = end + 2;
        clause
    })
}

/// The words of all claims, by the kind of their findings.
static WORDS: LazyLock<BTreeMap<&str, Vec<&str>>> = LazyLock::new(|| {
    let mut words: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for register in REGISTERS {
        words
            .entry(register.kind())
            .or_default()
            .extend(register.words());
    }
    words
});

thread_local! {
    /// What was found to be registered, but for its numbers: most of what a test hears it hears often.
    static KNOWN: RefCell<HashSet<u64>> = RefCell::default();
    static IS_RANDOM: Cell<bool> = const { Cell::new(false) };
}

/// What this test hears is led to by random records: it is not held against the register, or it would fail now and then.
pub(crate) fn hears_random_records() {
    IS_RANDOM.set(true);
}

fn shape(kind: &str, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    kind.hash(&mut hasher);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_digit()) {
        hasher.write_u8(byte);
    }
    hasher.finish()
}

/// The clauses of a finding that no claim of its kind has.
fn unknown(finding: &Finding) -> Vec<String> {
    let kind = finding.kind.name();
    let mut unknown = Vec::new();
    for (text, marks) in texts(finding) {
        let shape = shape(kind, text);
        if KNOWN.with_borrow(|known| known.contains(&shape)) {
            continue;
        }
        let before = unknown.len();
        let known: Vec<(usize, usize)> = [kind, EVERY]
            .iter()
            .flat_map(|kind| &WORDS[kind])
            .flat_map(|words| text.match_indices(words))
            .map(|(at, words)| (at, at + words.len()))
            .collect();
        for (from, end) in clauses(text, marks) {
            if !known.iter().any(|known| known.0 <= end && from < known.1) {
                unknown.push(format!("{:?} of {text:?}", &text[from..end]));
            }
        }
        if unknown.len() == before {
            KNOWN.with_borrow_mut(|known| known.insert(shape));
        }
    }
    unknown
}

/// Holds what a test was told against the register.
#[track_caller]
pub(crate) fn assert_registered(finding: &Finding) {
    if IS_RANDOM.get() {
        return;
    }
    let unknown = unknown(finding);
    assert!(
        unknown.is_empty(),
        "no claim of {} has {}: give it one in its room's claims.rs, with counter-examples",
        finding.kind.name(),
        unknown.join(", ")
    );
}

#[test]
fn each_claim_is_said_of_what_it_is_true_of_and_of_no_look_alike() {
    let mut untrue = Vec::new();
    let (mut claims, mut examples) = (0, 0);
    for register in REGISTERS {
        let counter_examples = register.counter_examples();
        let of_room = counter_examples.iter().sum::<usize>();
        eprintln!(
            "{:<24} {:>4} claims {of_room:>5} counter-examples",
            register.room(),
            counter_examples.len()
        );
        claims += counter_examples.len();
        examples += of_room;
        assert!(
            counter_examples.iter().all(|count| *count > 0),
            "{}: a claim without a counter-example",
            register.room()
        );
        let of_room = register.untrue().into_iter();
        untrue.extend(of_room.map(|untrue| format!("{}: {untrue}", register.room())));
    }
    eprintln!("{claims} claims, {examples} counter-examples");
    assert!(untrue.is_empty(), "{}", untrue.join("\n\n"));
}

#[test]
fn every_kind_of_finding_has_claims_and_no_two_are_alike() {
    let kinds: BTreeSet<&str> = SPECS.iter().map(|spec| spec.kind.name()).collect();
    let registered = REGISTERS.iter().map(|register| register.kind());
    let registered: BTreeSet<&str> = registered.filter(|kind| *kind != EVERY).collect();
    assert_eq!(kinds, registered);
    let mut known = BTreeSet::new();
    for register in REGISTERS {
        for words in register.words() {
            assert!(known.insert((register.kind(), words)), "twice: {words}");
        }
    }
}

#[test]
fn a_clause_of_a_summary_ends_at_a_colon_or_a_semicolon() {
    let text = "1 SYN to [::]:80 dropped: its queue is full; nobody accepts";
    let clauses: Vec<&str> = clauses(text, SUMMARY)
        .map(|(from, end)| &text[from..end])
        .collect();
    assert_eq!(
        clauses,
        [
            "1 SYN to [::]:80 dropped",
            "its queue is full",
            "nobody accepts"
        ]
    );
}
