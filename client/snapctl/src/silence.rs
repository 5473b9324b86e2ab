//! A daemon that accepts connections and does not answer: a remark after a while, and an error
//! after `--timeout`.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use varve_client::{Activity, Client, Endpoint, Error, ErrorKind};

use crate::{Options, exit::Failure};

/// Time of silence after which a remark says what the command waits for.
const REMARK_AFTER: Duration = Duration::from_secs(5);
/// Interval between checks.
const PERIOD: Duration = Duration::from_millis(100);

/// The connections that are watched.
#[derive(Debug, Default)]
pub(crate) struct Silence(Mutex<Vec<(Activity, Endpoint)>>);

impl Silence {
    pub(crate) fn listen_to(&self, client: &Client) {
        let listened = (client.activity().clone(), client.endpoint().clone());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(listened);
    }

    /// Completes when a daemon has been silent for as long as the options allow.
    pub(crate) async fn watch(&self, options: &Options) -> Failure {
        let limit = options.timeout.map(Duration::from_secs);
        let mut said = false;
        loop {
            tokio::time::sleep(PERIOD).await;
            let Some((silence, endpoint)) = self.longest() else {
                said = false;
                continue;
            };
            if let Some(limit) = limit
                && silence >= limit
            {
                return gave_up(&endpoint, limit).into();
            }
            if silence < REMARK_AFTER {
                said = false;
            } else if !said {
                said = true;
                options.remark(format_args!(
                    "waiting for the daemon at {endpoint}, which has not answered for {} s",
                    silence.as_secs()
                ));
            }
        }
    }

    fn longest(&self) -> Option<(Duration, Endpoint)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = all
            .iter()
            .filter_map(|(activity, endpoint)| Some((activity.silent_for()?, endpoint.clone())));
        silent.max_by_key(|(silence, _)| *silence)
    }
}

/// The error for a daemon that has been silent for this long.
pub(crate) fn gave_up(endpoint: &Endpoint, limit: Duration) -> Error {
    let why = format!("it has not answered for {} s", limit.as_secs());
    Error::new(ErrorKind::Unreachable, format!("wait for {endpoint}"), why)
}
