//! Text in a page. Whatever a process, a peer or a file can choose goes through [`Html`].

use std::fmt::{self, Write as _};

use jiff::Timestamp;

use crate::sink::escape::Escaped;

/// Text between tags or in a quoted attribute: no control character, and nothing that is markup.
pub(super) struct Html<'a>(pub(super) &'a str);

impl fmt::Display for Html<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in Escaped(self.0).to_string().chars() {
            match letter {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&#39;")?,
                other => formatter.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// A moment, to the second: the date only where a chart spans more than a day.
pub(super) fn clock(ns: i128, with_date: bool) -> String {
    let Ok(time) = Timestamp::from_nanosecond(ns) else {
        return String::new();
    };
    let format = if with_date { "%m-%d %H:%M" } else { "%H:%M:%S" };
    time.strftime(format).to_string()
}

/// A moment with its date, to the second.
pub(super) fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_markup() {
        let text = Html("<script>alert('x')&\"\u{1b}[31m").to_string();
        assert!(!text.contains(['<', '>', '"', '\'', '\u{1b}']), "{text}");
        assert!(text.starts_with("&lt;script&gt;"), "{text}");
    }
}
