//! Words that are of no finding: the texts, and nothing else.

use crate::detect::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "owner",
        text: "\
The process whose socket it is, never the one that happened to run when the kernel worked for it. An owner that
nobody knows is null. How it was learned, and what that is worth, says `source` (`owner_source` in events):

  connect, accept, listener   it called connect(), accept() or listen(); a connection that
                              waits to be accepted is its listener's
  passed                      the descriptor was passed to it, or it closed (without fentry:
                              read) what had been another's
  seeded                      it was found to hold a descriptor of the socket
  forked                      it is one of these and has forked since: it or descendants of it
                              hold the socket

`forked` is no fault. A child inherits every descriptor, and no hook tells which it closes: a server that forks for
each connection closes its own at once, and a helper that is started by exec() loses what has FD_CLOEXEC. If the
socket is in trouble, the open files of all processes are searched, within a second as a rule, and the finding is
said again with whoever holds it: one `owner`, `seeded`, or all `owners` of a socket that is shared.

A listener stays `forked` for as long as its process and its workers both hold it, which for a preforking server is
for ever. `ls -l /proc/PID/fd` and `ss -tnp` show who holds what.",
    },
];
