//! What `explain` says of `half_closed`: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "half_closed",
        text: "\
Sockets that one side has closed, for longer than a minute. CLOSE_WAIT: the peer closed, and this
process has not: it did not notice the end of the stream, or lost the descriptor. FIN_WAIT2: this
process shut its side down, and the peer keeps its own open.

`looks_like` reads it. `leak`: the number grows again and again (`gained_sockets`); in the end accept() and open()
fail with EMFILE. Find the path that returns without close(), usually an error path, or a pool that never checks
its idle connections. `slow_peer`: nothing grows, and it is the peer that takes its time: it does not close
(FIN_WAIT2), or takes slowly what it is still sent (CLOSE_WAIT, `still_sending`). `forgotten`: nothing grows, and
nothing is left to do on them; a task is stuck, or forgot one. Of thousands some are counted and not looked at
(`unlisted_sockets`): `slow_peer` is then said by the others.

A socket that several processes hold (`shared_sockets`) closes with the last of them: a parent that forgot
its copy after fork(), or a child that inherited one it never uses, keeps it in CLOSE_WAIT for ever.

No sysctl mends CLOSE_WAIT: only the process can close its descriptor. `ls -l /proc/PID/fd` and `ss -tnp
state close-wait` name them.",
    },
];
