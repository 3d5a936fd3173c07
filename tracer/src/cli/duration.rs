//! Durations as people write them: `5s`, `250ms`, `1h30m`.

use std::time::Duration;

/// Units, longest spelling of a shared first letter first.
const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Parses a sum of whole numbers with units; more than zero.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || "write a time such as 250ms, 5s, 2m or 1h30m".to_owned();
    let mut rest = text;
    let mut total_ms = 0_u64;
    while !rest.is_empty() {
        let digits = rest
            .find(|character: char| !character.is_ascii_digit())
            .ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|character: char| !character.is_ascii_lowercase())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (_, unit_ms) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(wrong)?;
        total_ms = number
            .checked_mul(*unit_ms)
            .and_then(|part| total_ms.checked_add(part))
            .ok_or_else(wrong)?;
        rest = after;
    }
    // A deadline must be representable as an instant; ten years are forever for a tracer.
    if total_ms == 0 || total_ms > 3_650 * 86_400_000 {
        return Err(wrong());
    }
    Ok(Duration::from_millis(total_ms))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("250ms", 250)]
    #[case("5s", 5_000)]
    #[case("2m", 120_000)]
    #[case("1h30m", 5_400_000)]
    #[case("1d", 86_400_000)]
    fn reads_what_people_write(#[case] text: &str, #[case] expected_ms: u64) {
        assert_eq!(parse(text), Ok(Duration::from_millis(expected_ms)));
    }

    #[rstest]
    #[case("")]
    #[case("5")]
    #[case("s")]
    #[case("0s")]
    #[case("-1s")]
    #[case("1.5s")]
    #[case("5 s")]
    #[case("99999999999999999999s")]
    #[case("18446744073709551615d")]
    fn refuses_the_rest(#[case] text: &str) {
        assert!(parse(text).is_err(), "{text}");
    }

    proptest! {
        #[test]
        fn is_total(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
