//! The settings of garbage collection: its times, its thresholds and its rate.

use std::{num::NonZeroU64, str::FromStr, time::Duration};

use varve_store::GcSettings;

use super::{ConfigError, Values};
use crate::limits;

/// The times and the settings of collections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcConfig {
    /// When the daemon begins collections by itself.
    pub when: GcTime,
    /// The thresholds and the rate.
    pub settings: GcSettings,
}

/// When the daemon begins collections by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcTime {
    /// Never.
    Off,
    /// This long after the last one began.
    Every(Duration),
    /// Once a day, in these hours.
    Window(DailyWindow),
}

/// A part of each day, by local time. It may go beyond midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DailyWindow {
    /// The minute of the day at which it begins.
    pub from_minute: u16,
    /// The minute of the day at which it ends.
    pub to_minute: u16,
}

/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

impl Default for GcConfig {
    fn default() -> Self {
        Self {
            when: GcTime::Every(Duration::from_hours(24)),
            settings: GcSettings::default(),
        }
    }
}

impl GcConfig {
    pub(super) fn resolve(values: &Values) -> Result<Self, ConfigError> {
        let default = Self::default();
        let every = values.parse("gc.every", parse_every)?;
        let window = values.parse("gc.window", DailyWindow::from_str)?;
        let when = match (every, window) {
            (Some(GcTime::Off), _) => GcTime::Off,
            (_, Some(window)) => GcTime::Window(window),
            (every, None) => every.unwrap_or(default.when),
        };
        let percent = values.parse("gc.rewrite_dead", parse_percent)?;
        let rate = values.parse("gc.bytes_per_second", parse_rate)?;
        Ok(Self {
            when,
            settings: GcSettings {
                rewrite_dead_percent: percent.unwrap_or(default.settings.rewrite_dead_percent),
                bytes_per_second: rate.unwrap_or(default.settings.bytes_per_second),
                ..default.settings
            },
        })
    }
}

impl DailyWindow {
    /// Minutes from its last beginning to `minute` of the day; `None` outside of it.
    #[must_use]
    pub fn minutes_in(&self, minute: u16) -> Option<u16> {
        let since = |from: u16, to: u16| (to + DAY_MINUTES - from) % DAY_MINUTES;
        let (passed, all) = (
            since(self.from_minute, minute),
            since(self.from_minute, self.to_minute),
        );
        (passed < all).then_some(passed)
    }
}

impl FromStr for DailyWindow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let window = text.split_once('-').and_then(|(from, to)| {
            let (from_minute, to_minute) = (parse_minute(from)?, parse_minute(to)?);
            (from_minute != to_minute).then_some(Self {
                from_minute,
                to_minute,
            })
        });
        window.ok_or_else(|| "expected two times of the day, as in 01:00-05:00".to_owned())
    }
}

/// A time of the day: two digits each for hours and minutes.
fn parse_minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |digits: &str, below: u16| {
        let is_plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u16 = digits.parse().ok().filter(|_| is_plain)?;
        (number < below).then_some(number)
    };
    Some(number(hours, 24)? * 60 + number(minutes, 60)?)
}

fn parse_every(text: &str) -> Result<GcTime, String> {
    if text == "off" {
        return Ok(GcTime::Off);
    }
    let unit_seconds = |unit| match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(60 * 60),
        "d" => Some(24 * 60 * 60),
        _ => None,
    };
    let (number, unit) = number_and_unit(text);
    let seconds = number.zip(unit_seconds(unit));
    let seconds = seconds.and_then(|(number, unit)| number.checked_mul(unit));
    match seconds {
        Some(seconds @ 1..) => Ok(GcTime::Every(Duration::from_secs(seconds))),
        _ => Err(
            "expected off, or a number above 0 with the unit s, m, h or d, as in 24h".to_owned(),
        ),
    }
}

fn parse_percent(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err("expected a whole number of percent from 1 to 100".to_owned()),
    }
}

/// The rate of a collection, in bytes a second; `None`: no limit.
pub(crate) fn limited_rate(bytes_per_second: u64) -> Result<Option<NonZeroU64>, String> {
    match NonZeroU64::new(bytes_per_second) {
        Some(rate) if rate.get() < limits::GC_RATE_MIN => Err(format!(
            "expected at least {} bytes a second, or 0 for no limit",
            limits::GC_RATE_MIN
        )),
        rate => Ok(rate),
    }
}

fn parse_rate(text: &str) -> Result<Option<NonZeroU64>, String> {
    let shift = |unit: &str| match unit {
        "" => Some(0),
        "K" | "k" => Some(10),
        "M" | "m" => Some(20),
        "G" | "g" => Some(30),
        _ => None,
    };
    let (number, unit) = number_and_unit(text);
    let rate = number.zip(shift(unit));
    let rate = rate.and_then(|(number, shift)| number.checked_mul(1 << shift));
    match rate {
        Some(rate) => limited_rate(rate),
        None => Err(
            "expected a number of bytes, or a number with the suffix K, M or G, as in 100M; 0 \
             means no limit"
                .to_owned(),
        ),
    }
}

/// The digits that a text begins with, as a number, and the rest.
fn number_and_unit(text: &str) -> (Option<u64>, &str) {
    let end = text.find(|char: char| !char.is_ascii_digit());
    let (digits, unit) = text.split_at(end.unwrap_or(text.len()));
    (digits.parse().ok(), unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn intervals_have_a_unit() {
        for (text, seconds) in [("1s", 1), ("90m", 5400), ("24h", 86_400), ("7d", 604_800)] {
            let every = GcTime::Every(Duration::from_secs(seconds));
            assert_eq!(parse_every(text), Ok(every), "{text}");
        }
        assert_eq!(parse_every("off"), Ok(GcTime::Off));
        for text in [
            "",
            "24",
            "h",
            "0h",
            "-1h",
            "1.5h",
            "1w",
            "999999999999999999d",
        ] {
            assert!(parse_every(text).unwrap_err().contains("24h"), "{text}");
        }
    }

    #[test]
    fn a_window_is_a_part_of_the_day_and_may_go_beyond_midnight() {
        let day: DailyWindow = "01:00-05:30".parse().unwrap();
        assert_eq!(day.minutes_in(59), None);
        assert_eq!(day.minutes_in(60), Some(0));
        assert_eq!(day.minutes_in(329), Some(269));
        assert_eq!(day.minutes_in(330), None);
        let night: DailyWindow = "22:00-04:00".parse().unwrap();
        assert_eq!(night.minutes_in(0), Some(120));
        assert_eq!(night.minutes_in(21 * 60 + 59), None);
        assert_eq!(night.minutes_in(4 * 60), None);
        for text in [
            "",
            "1:00-5:00",
            "01:00",
            "01:00-01:00",
            "24:00-05:00",
            "01:60-02:00",
        ] {
            let why = text.parse::<DailyWindow>().unwrap_err();
            assert!(why.contains("01:00-05:00"), "{text}");
        }
    }

    #[test]
    fn rates_are_bytes_with_a_suffix() {
        for (text, rate) in [
            ("0", 0),
            ("65536", 64 << 10),
            ("100M", 100 << 20),
            ("1g", 1 << 30),
        ] {
            assert_eq!(parse_rate(text), Ok(NonZeroU64::new(rate)), "{text}");
        }
        for text in ["", "M", "1.5M", "1T", "-1", "99999999999G"] {
            assert!(parse_rate(text).unwrap_err().contains("100M"), "{text}");
        }
        assert!(parse_rate("65535").unwrap_err().contains("at least 65536"));
        assert_eq!(parse_percent("100"), Ok(100));
        for text in ["0", "101", "40%", "x"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
    }
}
