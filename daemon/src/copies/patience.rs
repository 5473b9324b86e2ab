//! Retries of a copy: when the next one comes, and when there are no more.

use std::time::Duration;

use tokio::time::Instant;

use super::source::Remedy;
use crate::limits::{COPY_FRUITLESS_MAX, COPY_MISMATCHES_MAX, COPY_PAUSES};

/// The next step of a copy after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Try again after this pause.
    After(Duration),
    /// The copy has failed: another try cannot help.
    Fail,
    /// The copy has failed: waiting has not helped for too long.
    GiveUp,
}

/// The retries of one copy.
#[derive(Debug)]
pub(super) struct Patience {
    pause: Duration,
    /// End of the last try that brought something, or else of the first try.
    fruitless_since: Option<Instant>,
    /// Number of tries from that one on that ended with a mismatch.
    mismatches: u32,
}

impl Patience {
    pub(super) const fn new() -> Self {
        Self {
            pause: COPY_PAUSES.0,
            fruitless_since: None,
            mismatches: 0,
        }
    }

    /// Decides after a failed try. `fruitful`: usable data has arrived.
    pub(super) fn after(&mut self, remedy: Remedy, fruitful: bool) -> Next {
        if fruitful {
            *self = Self::new();
        }
        let since = *self.fruitless_since.get_or_insert_with(Instant::now);
        match remedy {
            Remedy::None => Next::Fail,
            Remedy::AnotherTry => {
                self.mismatches += 1;
                if self.mismatches >= COPY_MISMATCHES_MAX {
                    return Next::Fail;
                }
                Next::After(COPY_PAUSES.0)
            }
            Remedy::Time if since.elapsed() >= COPY_FRUITLESS_MAX => Next::GiveUp,
            Remedy::Time => {
                let pause = self.pause;
                self.pause = (pause * 2).min(COPY_PAUSES.1);
                Next::After(pause)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_away_is_waited_for_a_day_after_the_last_byte() {
        let mut patience = Patience::new();
        let mut tries = 0;
        let mut waited = Duration::ZERO;
        loop {
            match patience.after(Remedy::Time, tries == 10) {
                Next::After(pause) => {
                    advance(pause).await;
                    tries += 1;
                    waited = if tries == 11 { pause } else { waited + pause };
                }
                end => break assert_eq!(end, Next::GiveUp),
            }
        }
        assert!(waited >= COPY_FRUITLESS_MAX);
        assert!(waited < COPY_FRUITLESS_MAX + 2 * COPY_PAUSES.1);
        assert!((1440..1480).contains(&tries), "{tries}");
    }

    #[test]
    fn what_does_not_match_is_fetched_again_and_not_for_ever() {
        let mut patience = Patience::new();
        for _ in 1..COPY_MISMATCHES_MAX {
            assert_eq!(
                patience.after(Remedy::AnotherTry, false),
                Next::After(COPY_PAUSES.0)
            );
        }
        assert_eq!(
            patience.after(Remedy::AnotherTry, true),
            Next::After(COPY_PAUSES.0),
            "something arrived in between"
        );
        for _ in 2..COPY_MISMATCHES_MAX {
            patience.after(Remedy::AnotherTry, false);
        }
        assert_eq!(patience.after(Remedy::AnotherTry, false), Next::Fail);
        assert_eq!(Patience::new().after(Remedy::None, true), Next::Fail);
    }
}
