//! How many columns there are.

use std::fs::File;

/// Columns where nobody says how many: what fits most windows, and a mail.
const USUAL: usize = 98;
/// Fewer are told as so many: there is no room for an address and a cause.
const FEWEST: usize = 60;
/// More are not used: a sentence that goes from one end of a wide screen to the other is read twice.
const MOST: usize = 200;

/// Asked for each line: a terminal's user may change it.
#[derive(Debug)]
pub enum Width {
    Fixed(usize),
    Terminal(File),
}

impl Default for Width {
    fn default() -> Self {
        Self::Fixed(USUAL)
    }
}

impl Width {
    pub(super) fn columns(&self) -> usize {
        let columns = match self {
            Self::Fixed(columns) => *columns,
            Self::Terminal(file) => rustix::termios::tcgetwinsize(file)
                .ok()
                .map(|size| usize::from(size.ws_col))
                .filter(|columns| *columns > 0)
                .unwrap_or(USUAL),
        };
        columns.clamp(FEWEST, MOST)
    }
}

/// The first characters of a text, of which as many as fit; what is cut ends in `…`.
pub(super) fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let kept = text.chars().take(columns.saturating_sub(1));
    kept.chain((columns > 0).then_some('…')).collect()
}

/// The last characters of a text in the same way.
pub(super) fn cut_front(text: &str, columns: usize) -> String {
    let chars = text.chars().count();
    if chars <= columns {
        return text.to_owned();
    }
    let gone = chars.saturating_sub(columns.saturating_sub(1));
    (columns > 0)
        .then_some('…')
        .into_iter()
        .chain(text.chars().skip(gone))
        .take(columns)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_and_says_so() {
        assert_eq!(cut("nginx", 5), "nginx");
        assert_eq!(cut("nginx", 4), "ngi…");
        assert_eq!(cut("nginx", 1), "…");
        assert_eq!(cut("nginx", 0), "");
        assert_eq!(cut("", 0), "");
        assert_eq!(cut_front("10.0.0.1:80", 11), "10.0.0.1:80");
        assert_eq!(cut_front("10.0.0.1:80", 6), "….1:80");
        assert_eq!(cut_front("nginx", 1), "…");
        assert_eq!(cut_front("nginx", 0), "");
    }

    #[test]
    fn a_width_has_bounds() {
        assert_eq!(Width::Fixed(20).columns(), FEWEST);
        assert_eq!(Width::Fixed(80).columns(), 80);
        assert_eq!(Width::Fixed(5000).columns(), MOST);
        // No terminal at all.
        let file = File::open("/dev/null").unwrap();
        assert_eq!(Width::Terminal(file).columns(), USUAL);
    }
}
