//! Lines of figures.

use std::{fmt, time::Duration};

/// Prints a figure.
pub(crate) fn line(what: &str, figure: impl fmt::Display) {
    println!("{what:<48} {figure}");
}

/// Prints a duration.
pub(crate) fn seconds(what: &str, took: Duration) {
    line(what, format_args!("{:.3} s", took.as_secs_f64()));
}

/// Prints the median, the 99th percentile and the longest of several durations.
pub(crate) fn milliseconds(what: &str, mut all: Vec<Duration>) {
    all.sort_unstable();
    let ms = |took: Option<&Duration>| took.map_or(0.0, |took| took.as_secs_f64() * 1000.0);
    let count = all.len();
    let (median, most) = (ms(all.get(count / 2)), ms(all.get(count * 99 / 100)));
    let longest = ms(all.last());
    line(
        what,
        format_args!("{median:.1} ms, 99 % {most:.1} ms, longest {longest:.1} ms, of {count}"),
    );
}

/// Prints a size in memory.
pub(crate) fn mebibytes(what: &str, bytes: u64) {
    line(what, format_args!("{} MiB", bytes >> 20));
}
