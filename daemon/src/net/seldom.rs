//! Rate limit for log lines that peers can cause.

use std::fmt;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::limits::LOG_INTERVAL;

/// Decides when such a line may be written, and counts the others.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

/// Number of lines like this one that were left out. Displayed as nothing if there were none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LeftOut(u64);

impl Seldom {
    /// Permission to write now, with the number of lines left out since the last one.
    pub fn may_log(&self) -> Option<LeftOut> {
        let mut state = self.0.lock();
        let now = Instant::now();
        if state.last.is_some_and(|last| now - last < LOG_INTERVAL) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(LeftOut(std::mem::take(&mut state.left_out)))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} more like this were not logged)"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_a_second_that_says_how_many_were_left_out() {
        let seldom = Seldom::default();
        assert_eq!(seldom.may_log().unwrap().to_string(), "");
        for _ in 0..1000 {
            assert_eq!(seldom.may_log(), None);
        }
        tokio::time::advance(LOG_INTERVAL).await;
        let left_out = seldom.may_log().unwrap().to_string();
        assert_eq!(left_out, " (1000 more like this were not logged)");
        tokio::time::advance(LOG_INTERVAL).await;
        assert_eq!(seldom.may_log().unwrap().to_string(), "");
    }
}
