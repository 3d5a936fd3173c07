//! Counting that stops at the largest number. Records of a damaged recording count anything, and a
//! count too high to hold is still a high count (law 7).

/// A number that grows.
pub(crate) trait Grow {
    /// Adds `by`, or as much of it as there is room for.
    fn grow(&mut self, by: Self);
}

impl Grow for u64 {
    fn grow(&mut self, by: Self) {
        *self = self.saturating_add(by);
    }
}

impl Grow for u32 {
    fn grow(&mut self, by: Self) {
        *self = self.saturating_add(by);
    }
}

impl Grow for u8 {
    fn grow(&mut self, by: Self) {
        *self = self.saturating_add(by);
    }
}

/// "1 SYN", "2 SYNs".
pub(crate) fn plural(count: u64, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_stays_at_the_top() {
        let mut count = u32::MAX - 1;
        count.grow(1);
        assert_eq!(count, u32::MAX);
        count.grow(7);
        assert_eq!(count, u32::MAX);
    }
}
