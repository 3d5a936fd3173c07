//! The spread of a few figures.

/// Least, median and most.
pub(super) fn spread(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
    let last = figures.len().saturating_sub(1);
    [
        at(0),
        f64::midpoint(at(last / 2), at(last.div_ceil(2))),
        at(last),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        let spread = |figures: &[f64]| format!("{:?}", spread(figures.to_vec()));
        assert_eq!(spread(&[4.0, 1.0, 2.0]), "[1.0, 2.0, 4.0]");
        assert_eq!(spread(&[3.0, 1.0]), "[1.0, 2.0, 3.0]");
    }
}
