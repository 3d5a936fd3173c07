//! What `explain` says of `send_stall`: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "send_stall",
        text: "\
A connection has data to send and sends none of it: the persist timer asks, at growing intervals, whether
it may. Nothing is lost and nothing is repeated, so this is no storm. `ss -to` shows timer:(persist).

window_bytes tells the two cases apart: no room for a segment is the peer's doing, an open window is this
host's.",
    },
];
