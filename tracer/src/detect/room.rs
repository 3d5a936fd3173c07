//! What every detector does, whatever it is fed with.

use super::context::Context;

pub(crate) trait Room {
    /// Says what has news since a second or more, and resolves what is over.
    fn tick(&mut self, cx: &mut Context<'_>);

    /// Says what is open: what has news, or all of it.
    fn say_open(&mut self, all: bool, cx: &mut Context<'_>);

    /// What its tables had to forget for want of room, and under which name that is told.
    fn evicted(&self) -> (&'static str, u64);
}
