//! The signals that end a command: it cleans up and ends, even while it waits.
//!
//! A transfer aborts at the daemon, and a mapping detaches its device: these are cancelled, and get
//! time. Everything else is dropped at once. A second signal ends the program at once.

use std::{
    fs, process,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use varve_client::{Cancel, Control};

/// Time for a transfer to end: it tells the daemon, which may have stopped.
const TRANSFER_TIME: Duration = Duration::from_secs(3);

/// Cancelled when a signal arrives.
static CANCEL: LazyLock<Cancel> = LazyLock::new(Cancel::new);
/// Time for cancelled work to end, in milliseconds.
static TIME_MILLISECONDS: AtomicU64 = AtomicU64::new(0);

/// The control of a transfer that a signal ends. It then has a few seconds to end.
pub(crate) fn control() -> Control {
    Control {
        cancel: interrupted_within(TRANSFER_TIME),
        ..Control::default()
    }
}

/// Runs work that a signal cancels, and that may then take `time` to end.
pub(crate) fn interrupted_within(time: Duration) -> Cancel {
    let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    TIME_MILLISECONDS.fetch_max(time, Ordering::Relaxed);
    CANCEL.clone()
}

/// Completes when a signal has arrived and the command has had its time to end by itself. Counts
/// only signals from this call on.
pub(crate) fn listen() -> impl Future<Output = ()> {
    let mut signals = [
        listen_to(SignalKind::interrupt(), false),
        listen_to(SignalKind::terminate(), false),
        listen_to(SignalKind::hangup(), true),
        listen_to(SignalKind::quit(), true),
    ];
    async move {
        any(&mut signals).await;
        CANCEL.cancel();
        let time = Duration::from_millis(TIME_MILLISECONDS.load(Ordering::Relaxed));
        tokio::select! {
            () = any(&mut signals) => process::exit(130),
            () = tokio::time::sleep(time) => {}
        }
    }
}

/// A signal to which the program cannot listen has its default effect. With `unless_ignored` so has
/// one that the parent process ignores, as with `nohup`.
fn listen_to(kind: SignalKind, unless_ignored: bool) -> Option<Signal> {
    if unless_ignored && is_ignored(kind) {
        return None;
    }
    signal(kind).ok()
}

fn is_ignored(kind: SignalKind) -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return false;
    };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    ignored.unwrap_or_default() >> (kind.as_raw_value() - 1) & 1 == 1
}

async fn any(signals: &mut [Option<Signal>; 4]) {
    let [one, two, three, four] = signals;
    tokio::select! {
        () = next(one) => {}
        () = next(two) => {}
        () = next(three) => {}
        () = next(four) => {}
    }
}

async fn next(signal: &mut Option<Signal>) {
    let came = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if came.is_none() {
        std::future::pending().await
    }
}
