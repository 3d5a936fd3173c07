//! The life of a finding, the same for every detector: a case is watched in a bounded table until it is worth a
//! finding, which is said when it opens, when it has news, and when it is over.
//!
//! **Cadence.** A finding that goes on is said at growing intervals ([`Cadence`]); one that has another cause, stage or
//! severity is said a second after the last line, however long that would be.
//!
//! A room says what its cases are ([`Case`]) and when they are worth a finding; nobody but [`Cases`] opens, updates or
//! resolves one. Findings go in the order in which they were opened.

use std::{
    collections::BTreeMap,
    hash::Hash,
    mem,
    ops::{Deref, DerefMut},
};

use super::{
    context::{Context, Draft},
    dropped_here,
};
use crate::{
    cadence::Cadence,
    event::Side,
    finding::{Severity, Status},
    table::Bounded,
    time::Ktime,
};

/// Connections that a case is known to be about before it is worth a finding: as many as most need for one.
const MAX_MET: usize = 8;

/// What may become a finding.
pub(crate) trait Case {
    type Key: Copy + Eq + Hash;
    /// What its room judges by.
    type Rules;

    /// The words for it; `None` where there is nothing left to tell of.
    fn draft(&self, key: &Self::Key, at: &Saying<'_, '_, Self>) -> Option<Draft>;

    /// Changes with everything that is worth an update.
    fn news(&self) -> u64;

    /// Whether it has news beside [`Self::news`].
    fn has_other_news(&self) -> bool {
        false
    }

    /// A line told all there is.
    fn told(&mut self) {}

    /// A tick: whether it is over.
    fn is_over(&mut self, key: &Self::Key, rules: &Self::Rules, cx: &Context<'_>) -> bool;

    /// It was never worth a finding, and will not be for what is known of it.
    fn is_idle(&self, _rules: &Self::Rules, _now: Ktime) -> bool {
        false
    }

    /// The table has no room for it any more.
    fn forget(&mut self) {}

    /// Its finding is resolved: whether it stays in the table, begun anew.
    fn begins_anew(&mut self, _now: Ktime) -> bool {
        false
    }
}

/// When and by what a case is told of.
pub(crate) struct Saying<'a, 'b, C: Case + ?Sized> {
    pub(crate) status: Status,
    pub(crate) rules: &'a C::Rules,
    pub(crate) cx: &'a Context<'b>,
}

/// An open finding: its id and what was last said of it.
#[derive(Clone, Copy, Debug)]
struct Life {
    id: u64,
    /// The namespace that it is about.
    netns: Option<u32>,
    said: u64,
    /// Cause, stage and severity as last said.
    words: Words,
    cadence: Cadence,
    /// What was known by then of what this host dropped.
    drops: u64,
}

type Words = (&'static str, Option<&'static str>, Option<Severity>);

fn words(draft: &Draft) -> Words {
    (draft.cause, draft.stage, draft.severity)
}

/// A case with the finding that it is, if it is one.
#[derive(Clone, Debug)]
pub(crate) struct Entry<C> {
    life: Option<Life>,
    /// Connections that it met before it was worth a finding, the first of them.
    met: Vec<Side>,
    case: C,
}

impl<C> Entry<C> {
    pub(crate) const fn new(case: C) -> Self {
        Self {
            life: None,
            met: Vec::new(),
            case,
        }
    }

    pub(crate) const fn is_open(&self) -> bool {
        self.life.is_some()
    }

    /// Its finding's id.
    pub(crate) fn id(&self) -> Option<u64> {
        self.life.map(|life| life.id)
    }
}

impl<C> Deref for Entry<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.case
    }
}

impl<C> DerefMut for Entry<C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.case
    }
}

impl<C: Case> Entry<C> {
    /// Says it, as what it is by now; without words nothing is said, and nothing changes.
    fn say(&mut self, key: &C::Key, status: Status, rules: &C::Rules, cx: &mut Context<'_>) {
        if let Some(draft) = self.draft(key, &Saying { status, rules, cx }) {
            self.say_as(status, draft, cx);
        }
    }

    /// The words for it, with what this host dropped of it.
    fn draft(&self, key: &C::Key, at: &Saying<'_, '_, C>) -> Option<Draft> {
        let draft = self.case.draft(key, at)?;
        Some(dropped_here::told(draft, at.cx))
    }

    fn say_as(&mut self, status: Status, draft: Draft, cx: &mut Context<'_>) {
        let (netns, words) = (draft.subject.netns(), words(&draft));
        let mut cadence = self
            .life
            .map_or_else(|| Cadence::begin(cx.now), |life| life.cadence);
        cadence.said(cx.now);
        let id = match self.life {
            None => {
                let id = cx.open(draft);
                let met = mem::take(&mut self.met).into_iter();
                cx.meetings.extend(met.map(|met| (id, met)));
                id
            }
            Some(life) => {
                cx.say(life.id, status, draft);
                life.id
            }
        };
        self.life = Some(Life {
            id,
            netns,
            said: self.case.news(),
            words,
            cadence,
            drops: cx.dropped.changes(),
        });
        self.case.told();
    }

    /// The event that is judged belongs to it.
    fn meet(&mut self, cx: &mut Context<'_>) {
        let Some(met) = cx.met else { return };
        match self.life {
            Some(life) => cx.meetings.push((life.id, met)),
            None if self.met.len() < MAX_MET && !self.met.contains(&met) => self.met.push(met),
            None => {}
        }
    }

    fn has_news(&self) -> bool {
        self.life.is_some_and(|life| life.said != self.case.news()) || self.case.has_other_news()
    }

    /// Says an open one again that is worth a line.
    fn update(&mut self, key: &C::Key, rules: &C::Rules, cx: &mut Context<'_>) {
        let Some(life) = self.life else { return };
        // What this host drops is found out after the trouble, and is another cause without being its news.
        let may_have_other_words = life.drops != cx.dropped.changes();
        if !life.cadence.may_change(cx.now) || !self.has_news() && !may_have_other_words {
            return;
        }
        let status = Status::Update;
        let Some(draft) = self.draft(key, &Saying { status, rules, cx }) else {
            return;
        };
        let is_due = life.cadence.is_due(cx.now) && self.has_news();
        if !is_due && words(&draft) == life.words {
            if let Some(life) = &mut self.life {
                life.drops = cx.dropped.changes();
            }
            return;
        }
        self.say_as(status, draft, cx);
        if let Some(life) = &mut self.life {
            life.cadence.lengthen();
        }
    }
}

/// All cases of one sort. See the module.
#[derive(Debug)]
pub(crate) struct Cases<C: Case> {
    pub(crate) rules: C::Rules,
    table: Bounded<C::Key, Entry<C>>,
    open: BTreeMap<u64, C::Key>,
}

impl<C: Case> Cases<C> {
    /// Room for `limit` cases.
    pub(crate) fn new(limit: usize, rules: C::Rules) -> Self {
        Self {
            rules,
            table: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    /// Cases that had to make room.
    pub(crate) const fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    pub(crate) fn get(&self, key: &C::Key) -> Option<&Entry<C>> {
        self.table.get(key)
    }

    /// The case, without counting as use.
    pub(crate) fn get_mut(&mut self, key: &C::Key) -> Option<&mut Entry<C>> {
        self.table.get_mut(key)
    }

    /// All cases, the longest untouched first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&C::Key, &Entry<C>)> {
        self.table.iter()
    }

    /// Those with an open finding, in the order of opening.
    pub(crate) fn open(&self) -> impl Iterator<Item = (&C::Key, &Entry<C>)> {
        self.open
            .values()
            .filter_map(|key| Some((key, self.table.get(key)?)))
    }

    /// The case of `key`, which the event that is judged belongs to, made the newest; `new` is what it begins as.
    pub(crate) fn begin(
        &mut self,
        key: C::Key,
        cx: &mut Context<'_>,
        new: impl FnOnce() -> C,
    ) -> Option<&mut Entry<C>> {
        if self.table.touch(&key).is_none() {
            let gone = self.table.insert(key, Entry::new(new()));
            self.forget(gone, cx);
        }
        self.meet(&key, cx)
    }

    /// [`Self::begin`] that lets the oldest spare case make room before any that is none, of an event that may or may not be
    /// one of its trouble ([`Self::meet`]).
    pub(crate) fn begin_over(
        &mut self,
        key: C::Key,
        cx: &mut Context<'_>,
        new: impl FnOnce() -> C,
        is_spare: impl Fn(&C) -> bool,
    ) -> Option<&mut Entry<C>> {
        if self.table.touch(&key).is_none() {
            let gone = self
                .table
                .insert_over(key, Entry::new(new()), |entry| is_spare(entry));
            self.forget(gone, cx);
        }
        self.table.get_mut(&key)
    }

    /// The event that is judged belongs to a case.
    pub(crate) fn meet(&mut self, key: &C::Key, cx: &mut Context<'_>) -> Option<&mut Entry<C>> {
        let entry = self.table.get_mut(key)?;
        entry.meet(cx);
        Some(entry)
    }

    fn forget(&mut self, gone: Option<(C::Key, Entry<C>)>, cx: &mut Context<'_>) {
        if let Some((key, mut entry)) = gone {
            if let Some(id) = entry.id() {
                self.open.remove(&id);
            }
            entry.forget();
            self.close(&key, entry, cx);
        }
    }

    /// Opens the finding of a case, unless it has one.
    pub(crate) fn raise(&mut self, key: &C::Key, cx: &mut Context<'_>) {
        if let Some(entry) = self.table.get_mut(key)
            && !entry.is_open()
        {
            entry.say(key, Status::Open, &self.rules, cx);
            if let Some(id) = entry.id() {
                self.open.insert(id, *key);
            }
        }
    }

    /// Opens the finding of a case that is worth one, and says an open one again where that is due.
    pub(crate) fn judge(&mut self, key: &C::Key, is_worth: bool, cx: &mut Context<'_>) {
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
        if entry.is_open() {
            entry.update(key, &self.rules, cx);
        } else if is_worth {
            self.raise(key, cx);
        }
    }

    /// Takes a case out of the table, with its finding, if it has one.
    pub(crate) fn take(&mut self, key: &C::Key) -> Option<Entry<C>> {
        let entry = self.table.remove(key)?;
        if let Some(id) = entry.id() {
            self.open.remove(&id);
        }
        Some(entry)
    }

    /// The case is over: its finding is resolved, if it has one.
    pub(crate) fn end(&mut self, key: &C::Key, cx: &mut Context<'_>) {
        if let Some(entry) = self.take(key) {
            self.close(key, entry, cx);
        }
    }

    /// Ends a case that was taken out of the table.
    pub(crate) fn close(&self, key: &C::Key, mut entry: Entry<C>, cx: &mut Context<'_>) {
        if entry.is_open() {
            entry.say(key, Status::Resolved, &self.rules, cx);
        }
    }

    /// The same with words of the room's own.
    pub(crate) fn close_as(entry: &Entry<C>, draft: Draft, cx: &mut Context<'_>) {
        if let Some(id) = entry.id() {
            let draft = dropped_here::told(draft, cx);
            cx.say(id, Status::Resolved, draft);
        }
    }

    /// Ends one that was worth a finding, whether or not anybody had known of it in time.
    pub(crate) fn close_worth(&self, key: &C::Key, mut entry: Entry<C>, cx: &mut Context<'_>) {
        if !entry.is_open() {
            entry.say(key, Status::Open, &self.rules, cx);
        }
        self.close(key, entry, cx);
    }
}

/// Cases whose findings go with those of others, in the order in which all of them were opened.
pub(crate) trait Open {
    /// Their findings.
    fn ids(&self) -> Vec<u64>;
    /// Says one that has news since a second or more, and resolves one that is over.
    fn tick_one(&mut self, id: u64, cx: &mut Context<'_>);
    fn say_one(&mut self, id: u64, even_without_news: bool, cx: &mut Context<'_>);
    /// Resolves one that is about a namespace which is gone.
    fn end_one_of(&mut self, netns: u32, id: u64, cx: &mut Context<'_>);
    /// Forgets the oldest cases, as long as they are idle.
    fn forget_idle(&mut self, now: Ktime);
}

impl<C: Case> Open for Cases<C> {
    fn ids(&self) -> Vec<u64> {
        self.open.keys().copied().collect()
    }

    fn tick_one(&mut self, id: u64, cx: &mut Context<'_>) {
        let Some(key) = self.open.get(&id) else {
            return;
        };
        let Some(entry) = self.table.get_mut(key) else {
            return;
        };
        if entry.case.is_over(key, &self.rules, cx) {
            entry.say(key, Status::Resolved, &self.rules, cx);
            entry.life = None;
            if !entry.case.begins_anew(cx.now) {
                self.table.remove(key);
            }
            self.open.remove(&id);
        } else {
            entry.update(key, &self.rules, cx);
        }
    }

    fn say_one(&mut self, id: u64, even_without_news: bool, cx: &mut Context<'_>) {
        if let Some(key) = self.open.get(&id)
            && let Some(entry) = self.table.get_mut(key)
            && (even_without_news || entry.has_news())
        {
            entry.say(key, Status::Update, &self.rules, cx);
        }
    }

    fn end_one_of(&mut self, netns: u32, id: u64, cx: &mut Context<'_>) {
        let Some(key) = self.open.get(&id).copied() else {
            return;
        };
        let life = self.table.get(&key).and_then(|entry| entry.life);
        if life.is_some_and(|life| life.netns == Some(netns)) {
            self.end(&key, cx);
        }
    }

    fn forget_idle(&mut self, now: Ktime) {
        while let Some((_, entry)) = self.table.oldest()
            && !entry.is_open()
            && entry.is_idle(&self.rules, now)
        {
            self.table.pop_oldest();
        }
    }
}
