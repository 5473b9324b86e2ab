//! The time for which a daemon has been silent while calls wait for it.
//!
//! An open connection does not prove that the daemon behind it runs. The daemon is active when it
//! answers a call, sends a part of an answer, or takes bytes that a call sends. A call that is not
//! polled, because its caller is busy, does not count as waiting.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{
    ConnectError, Status,
    body::Body,
    codegen::{
        Service,
        http::{self, HeaderValue, header::AUTHORIZATION},
    },
    transport::Channel,
};

type BoxError = Box<dyn StdError + Send + Sync>;

/// The time for which a daemon has been silent. Clones share one state.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Calls and answers that are waited for.
    waiting: usize,
    /// The time of the last sign of the daemon, or of the beginning of the wait.
    heard: Instant,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            waiting: 0,
            heard: Instant::now(),
        })))
    }
}

impl Activity {
    /// The time for which calls have waited without a sign of the daemon. `None` if none waits.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        let state = self.state();
        (state.waiting > 0).then(|| state.heard.elapsed())
    }

    fn heard(&self) {
        self.state().heard = Instant::now();
    }

    fn wait(&self) -> Wait {
        Wait {
            activity: self.clone(),
            waits: false,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call or an answer, counted while it waits.
#[derive(Debug)]
struct Wait {
    activity: Activity,
    waits: bool,
}

impl Wait {
    /// Records the outcome of a poll.
    fn note<T>(&mut self, poll: Poll<T>) -> Poll<T> {
        match (poll.is_pending(), self.waits) {
            (true, false) => {
                let mut state = self.activity.state();
                if state.waiting == 0 {
                    state.heard = Instant::now();
                }
                state.waiting += 1;
                self.waits = true;
            }
            (true, true) => {}
            (false, _) => {
                self.end();
                self.activity.heard();
            }
        }
        poll
    }

    fn end(&mut self) {
        if self.waits {
            self.waits = false;
            self.activity.state().waiting -= 1;
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.end();
    }
}

/// A connection that notes when its calls wait, and when they hear something.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: Channel,
    activity: Activity,
    has_tls: bool,
    /// Sent with every call. It is marked as sensitive, so `Debug` does not show it.
    authorization: Option<HeaderValue>,
    /// True if the daemon answered any call.
    answered: Arc<AtomicBool>,
}

/// The error for a connection with TLS that ended before any call was answered on it. In this way a
/// daemon refuses a client's certificate, or the lack of one: with TLS 1.3 the client has finished
/// the handshake by then.
#[derive(Debug)]
pub(crate) struct Unanswered(pub(crate) BoxError);

impl Unanswered {
    /// Returns true if this is the cause of an error.
    pub(crate) fn is_behind(error: &(dyn StdError + 'static)) -> bool {
        is_behind::<Self>(error)
    }
}

/// Returns true if an error, or one of its causes, is a `T`.
fn is_behind<T: StdError + 'static>(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<T>() {
            return true;
        }
        next = error.source();
    }
    false
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection ended right after the TLS handshake")
    }
}

impl StdError for Unanswered {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

impl Connection {
    pub(crate) fn new(channel: Channel, has_tls: bool, authorization: Option<HeaderValue>) -> Self {
        Self {
            channel,
            activity: Activity::default(),
            has_tls,
            authorization,
            answered: Arc::default(),
        }
    }

    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }
}

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.channel.poll_ready(context).map_err(BoxError::from)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let activity = self.activity.clone();
        let mut request = request.map(|body| Body::new(Sent { body, activity }));
        if let Some(authorization) = &self.authorization {
            let headers = request.headers_mut();
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let mut answer = Box::pin(self.channel.call(request));
        let mut wait = self.activity.wait();
        let (has_tls, answered) = (self.has_tls, Arc::clone(&self.answered));
        Box::pin(async move {
            let answer = std::future::poll_fn(|context| wait.note(answer.as_mut().poll(context)));
            let answer = answer.await.map_err(|error| {
                // A daemon that cannot be reached any more says nothing about certificates.
                let is_connected = !is_behind::<ConnectError>(&error);
                if has_tls && is_connected && !answered.load(Ordering::Relaxed) {
                    BoxError::from(Unanswered(error.into()))
                } else {
                    error.into()
                }
            })?;
            answered.store(true, Ordering::Relaxed);
            Ok(answer.map(|body| Body::new(Heard { body, wait })))
        })
    }
}

/// The body of a request, which notes when its bytes are taken.
struct Sent {
    body: Body,
    activity: Activity,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // The connection polls for more when it has taken the bytes before.
        self.activity.heard();
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, which notes when it is waited for.
struct Heard {
    body: Body,
    wait: Wait,
}

impl http_body::Body for Heard {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, wait } = self.get_mut();
        wait.note(Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_waits_makes_a_daemon_silent() {
        let activity = Activity::default();
        assert_eq!(activity.silent_for(), None);
        let (mut one, mut other) = (activity.wait(), activity.wait());
        assert!(one.note(Poll::<()>::Pending).is_pending());
        assert!(one.note(Poll::<()>::Pending).is_pending());
        assert!(other.note(Poll::<()>::Pending).is_pending());
        assert!(activity.silent_for().is_some());
        assert!(one.note(Poll::Ready(())).is_ready());
        assert!(activity.silent_for().is_some());
        drop(other);
        assert_eq!(activity.silent_for(), None);
        drop(one);
        assert_eq!(activity.state().waiting, 0);
    }

    #[test]
    fn what_is_heard_ends_a_silence() {
        let activity = Activity::default();
        let mut wait = activity.wait();
        assert!(wait.note(Poll::<()>::Pending).is_pending());
        let Some(long_ago) = Instant::now().checked_sub(Duration::from_secs(60)) else {
            // The machine has just been started.
            return;
        };
        activity.state().heard = long_ago;
        let minute = Duration::from_secs(60);
        assert!(activity.silent_for().is_some_and(|silent| silent >= minute));
        activity.heard();
        assert!(activity.silent_for().is_some_and(|silent| silent < minute));
    }
}
