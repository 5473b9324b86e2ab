//! Decides when a collection is due. Pure.
//!
//! Time only decides what is worth doing. No time makes a collection safe or unsafe.

use std::time::Duration;

use crate::{
    config::GcTime,
    limits::{FREE_PERCENT_LOW, GC_LOW_SPACE_INTERVAL},
};

/// The facts for the decision at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Nanoseconds since 1970.
    pub(super) unix_ns: u64,
    /// Minutes since midnight, by local time.
    pub(super) minute_of_day: u16,
    /// Bytes of the file system that are free, and all of them.
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
}

/// Why a collection is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The interval since the last collection has passed.
    Interval,
    /// The window of the day has begun.
    Window,
    /// The file system is nearly full.
    LowSpace,
}

impl Moment {
    /// Returns true if so little space is free that more packs are worth a rewrite.
    pub(super) fn is_low_on_space(&self) -> bool {
        u128::from(self.free_bytes) * 100 < u128::from(self.total_bytes) * FREE_PERCENT_LOW
    }

    /// The reason for a collection now, if there is one. `last_ns` is when the last one began.
    pub(super) fn due(&self, when: GcTime, last_ns: Option<u64>) -> Option<Reason> {
        // After a clock was set back, the time of the last collection is unknown.
        let since = last_ns.and_then(|last| self.unix_ns.checked_sub(last));
        let since = since.map(Duration::from_nanos);
        let has_passed = |time: Duration| since.is_none_or(|since| since >= time);
        let is_due = match when {
            GcTime::Off => return None,
            GcTime::Every(time) if has_passed(time) => Some(Reason::Interval),
            GcTime::Every(_) => None,
            GcTime::Window(window) => {
                let minutes = window.minutes_in(self.minute_of_day);
                let passed = minutes.map(|minutes| Duration::from_mins(minutes.into()));
                // The last collection began before the window did.
                let is_first = passed.is_some_and(|passed| since.is_none_or(|it| it > passed));
                is_first.then_some(Reason::Window)
            }
        };
        let is_urgent = self.is_low_on_space() && has_passed(GC_LOW_SPACE_INTERVAL);
        is_due.or(is_urgent.then_some(Reason::LowSpace))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const NOON: Moment = Moment {
        unix_ns: 1_700_000_000_000_000_000,
        minute_of_day: 12 * 60,
        free_bytes: 50,
        total_bytes: 100,
    };

    fn ago(time: Duration) -> Option<u64> {
        Some(NOON.unix_ns - u64::try_from(time.as_nanos()).unwrap())
    }

    #[test]
    fn one_begins_so_long_after_the_last_one_began() {
        let every = GcTime::Every(24 * HOUR);
        assert_eq!(NOON.due(every, None), Some(Reason::Interval));
        assert_eq!(NOON.due(every, ago(23 * HOUR)), None);
        assert_eq!(NOON.due(every, ago(24 * HOUR)), Some(Reason::Interval));
        let ahead = Some(NOON.unix_ns + 1);
        assert_eq!(NOON.due(every, ahead), Some(Reason::Interval));
        assert_eq!(NOON.due(GcTime::Off, None), None);
    }

    #[test]
    fn a_window_has_one() {
        let at_noon = GcTime::Window("11:00-14:00".parse().unwrap());
        assert_eq!(NOON.due(at_noon, None), Some(Reason::Window));
        assert_eq!(NOON.due(at_noon, ago(2 * HOUR)), Some(Reason::Window));
        assert_eq!(NOON.due(at_noon, ago(HOUR / 2)), None);
        let at_night = GcTime::Window("23:00-04:00".parse().unwrap());
        assert_eq!(NOON.due(at_night, None), None);
        let night = Moment {
            minute_of_day: 60,
            ..NOON
        };
        assert_eq!(night.due(at_night, ago(HOUR)), None);
        assert_eq!(night.due(at_night, ago(3 * HOUR)), Some(Reason::Window));
    }

    #[test]
    fn low_space_brings_one_each_hour_unless_they_are_off() {
        let low = Moment {
            free_bytes: 14,
            ..NOON
        };
        assert!(low.is_low_on_space() && !NOON.is_low_on_space());
        for when in ["01:00-02:00", "13:00-14:00"] {
            let when = GcTime::Window(when.parse().unwrap());
            assert_eq!(low.due(when, ago(HOUR / 2)), None);
            assert_eq!(low.due(when, ago(HOUR)), Some(Reason::LowSpace));
        }
        let often = GcTime::Every(HOUR / 4);
        assert_eq!(low.due(often, ago(HOUR / 3)), Some(Reason::Interval));
        assert_eq!(low.due(GcTime::Off, None), None);
    }
}
