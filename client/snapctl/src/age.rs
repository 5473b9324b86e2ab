//! Ages on the command line: a number with a unit.

use std::time::Duration;

/// Reads `90s`, `30m`, `12h`, `30d` or `2w`. Months and years have no fixed length.
pub(crate) fn parse_age(text: &str) -> Result<Duration, String> {
    const HOW: &str = "write a number with the unit s, m, h, d or w, as in 30d";
    let digits = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return Err(HOW.to_owned()),
    };
    if number.is_empty() {
        return Err(HOW.to_owned());
    }
    let seconds = number.parse::<u64>().ok();
    let seconds = seconds.and_then(|number| number.checked_mul(unit_seconds));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| "the number is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        for (text, seconds) in [
            ("0s", 0),
            ("90s", 90),
            ("30m", 1800),
            ("12h", 43_200),
            ("30d", 2_592_000),
            ("2w", 1_209_600),
        ] {
            assert_eq!(parse_age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_age_is_refused() {
        for (text, why) in [
            ("", "write a number"),
            ("d", "write a number"),
            ("30", "write a number"),
            ("-1d", "write a number"),
            ("1.5d", "write a number"),
            ("1 d", "write a number"),
            ("1D", "write a number"),
            ("1M", "write a number"),
            ("1y", "write a number"),
            ("1mo", "write a number"),
            ("18446744073709551615w", "too large"),
            ("99999999999999999999s", "too large"),
        ] {
            match parse_age(text) {
                Err(said) => assert!(said.contains(why), "{text}: {said}"),
                Ok(age) => panic!("{text} is taken for {age:?}"),
            }
        }
    }
}
