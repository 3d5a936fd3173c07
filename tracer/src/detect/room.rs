//! What every detector does, whatever it is fed with; and what its room is built of.

pub(crate) use super::{
    case::{Case, Cases, Entry, Open, Saying},
    context::{Context, Draft},
    facts::Facts,
    limits::Limits,
    phrase::{process, said_seconds, who},
    spec::Spec,
};
pub(crate) use crate::count::plural;

pub(crate) trait Room {
    /// Its cases; their findings go in the order in which all of them were opened.
    fn cases(&mut self) -> Vec<&mut dyn Open>;

    /// What its tables had to forget for want of room, and under which name that is told.
    fn evicted(&self) -> (&'static str, u64);

    /// Judges what is judged by time, before anything is told.
    fn judge(&mut self, _cx: &mut Context<'_>) {}

    /// Judges what waited for more to come: none will.
    fn finish(&mut self, _cx: &mut Context<'_>) {}

    /// Forgets what waits for more of a namespace that is gone.
    fn forget_netns(&mut self, _netns: u32) {}

    /// Says what has news since a second or more, and resolves what is over.
    fn tick(&mut self, cx: &mut Context<'_>) {
        self.judge(cx);
        let mut all = self.cases();
        for id in ids(&all) {
            for cases in &mut all {
                cases.tick_one(id, cx);
            }
        }
        for cases in &mut all {
            cases.forget_idle(cx.now);
        }
    }

    /// Resolves what is about a namespace that is gone.
    fn end_of(&mut self, netns: u32, cx: &mut Context<'_>) {
        self.forget_netns(netns);
        let mut cases = self.cases();
        for id in ids(&cases) {
            for cases in &mut cases {
                cases.end_one_of(netns, id, cx);
            }
        }
    }

    /// Says what is open: what has news, or all of it.
    fn say_open(&mut self, all: bool, cx: &mut Context<'_>) {
        self.judge(cx);
        let mut cases = self.cases();
        for id in ids(&cases) {
            for cases in &mut cases {
                cases.say_one(id, all, cx);
            }
        }
    }
}

fn ids(all: &[&mut dyn Open]) -> Vec<u64> {
    let mut ids: Vec<u64> = all.iter().flat_map(|cases| cases.ids()).collect();
    ids.sort_unstable();
    ids
}
