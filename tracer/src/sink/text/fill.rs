//! Filling paragraphs, with the following lines indented under the first.

/// Breaks `text` between words so that no line is longer than `columns`; a word that is longer is broken itself.
/// Every line but the first starts with `indent` spaces; `taken` columns of the first are in use.
#[must_use]
pub fn fill(text: &str, columns: usize, taken: usize, indent: usize) -> String {
    let mut filled = String::new();
    let mut column = taken;
    let mut starts_line = true;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if !starts_line && column + 1 + width > columns {
            filled.push('\n');
            filled.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if !starts_line {
            filled.push(' ');
            column += 1;
        }
        for character in word.chars() {
            if column >= columns.max(indent + 1) {
                filled.push('\n');
                filled.extend(std::iter::repeat_n(' ', indent));
                column = indent;
            }
            filled.push(character);
            column += 1;
        }
        starts_line = false;
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_and_hang() {
        assert_eq!(fill("one two three", 9, 0, 2), "one two\n  three");
        assert_eq!(fill("one two", 9, 4, 4), "one\n    two");
        assert_eq!(fill("unbreakable", 6, 0, 2), "unbrea\n  kabl\n  e");
        assert_eq!(fill("abcd", 1, 0, 2), "abc\n  d", "room for one at least");
        assert_eq!(fill("", 4, 0, 2), "");
    }
}
