//! /proc/PID/stat (proc_pid_stat(5)): the name, which may hold anything, a closing parenthesis included, and the fields
//! behind it.

/// One of them, split.
pub(crate) struct Stat<'a> {
    pub(super) comm: &'a [u8],
    behind: &'a str,
}

impl<'a> Stat<'a> {
    pub(crate) fn split(text: &'a [u8]) -> Option<Self> {
        let begin = text.iter().position(|byte| *byte == b'(')? + 1;
        let end = text.iter().rposition(|byte| *byte == b')')?;
        Some(Self {
            comm: text.get(begin..end)?,
            behind: std::str::from_utf8(text.get(end + 1..)?).ok()?,
        })
    }

    /// A field behind the name, by its number in the manual: the first is the state, the third.
    pub(crate) fn field(&self, number: usize) -> Option<&'a str> {
        let at = number.checked_sub(3)?;
        self.behind.split_ascii_whitespace().nth(at)
    }

    pub(crate) fn number(&self, field: usize) -> Option<u64> {
        self.field(field)?.parse().ok()
    }
}
