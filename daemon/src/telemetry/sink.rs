//! The sink of log lines: a bounded queue, and a thread that writes them.
//!
//! Invariants: logging never waits, fails or panics, even if the log's reader, file system or
//! terminal fails. A line that cannot be written, or that finds the queue full, is lost and
//! counted. Before the next line that can be written, another line reports the number of lost lines
//! and the reason.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::limits::{LOG_LINE_BYTES_MAX, LOG_QUEUE_BYTES_MAX};

/// The entry to the queue of lines. Clones share one queue.
#[derive(Clone)]
pub(super) struct Sink(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Signals that there is a line to write, or that the thread has to end.
    filled: Condvar,
    /// Signals that nothing is left to write.
    drained: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lost lines that are not reported yet.
    lost: u64,
    /// The reason why the last of them was lost.
    why: Option<io::ErrorKind>,
    /// True if a line has been taken out and is being written.
    is_writing: bool,
    is_closed: bool,
}

/// Ends the thread when it is dropped, after waiting a moment for queued lines.
#[derive(Debug)]
pub(super) struct Guard(Sink);

impl Sink {
    /// Starts the thread that writes to `output`. `is_json`: lines are JSON objects, its own ones
    /// too.
    ///
    /// # Errors
    ///
    /// The system cannot start a thread.
    pub(super) fn start(
        output: impl Write + Send + 'static,
        is_json: bool,
    ) -> io::Result<(Self, Guard)> {
        let sink = Self(Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
        }));
        let shared = Arc::clone(&sink.0);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || shared.write_all_to(output, is_json))?;
        Ok((sink.clone(), Guard(sink)))
    }

    /// Puts a line into the queue, if there is room. Never waits for the output.
    pub(super) fn put(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.bytes + line.len() > LOG_QUEUE_BYTES_MAX {
            queue.lost += 1;
            return;
        }
        let line = match line.get(..LOG_LINE_BYTES_MAX) {
            Some(beginning) if beginning.len() < line.len() => [beginning, b"...\n"].concat(),
            _ => line.to_vec(),
        };
        queue.bytes += line.len();
        queue.lines.push_back(line);
        self.0.filled.notify_one();
    }

    /// Waits until everything is written, but no longer than `most`.
    pub(super) fn flush(&self, most: Duration) {
        let until = Instant::now() + most;
        let mut queue = self.0.queue.lock();
        while queue.is_writing || !queue.lines.is_empty() {
            if self.0.drained.wait_until(&mut queue, until).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn write_all_to(&self, mut output: impl Write, is_json: bool) {
        let mut queue = self.queue.lock();
        loop {
            let Some(line) = queue.lines.pop_front() else {
                queue.is_writing = false;
                self.drained.notify_all();
                if queue.is_closed {
                    return;
                }
                self.filled.wait(&mut queue);
                continue;
            };
            queue.bytes -= line.len();
            queue.is_writing = true;
            let (lost, why) = (queue.lost, queue.why);
            drop(queue);
            let told = (lost > 0).then(|| told(lost, why, is_json));
            let written = write(&mut output, told.as_deref(), &line);
            queue = self.queue.lock();
            match written {
                // More lines may have been lost meanwhile.
                Ok(()) => {
                    queue.lost -= lost;
                    queue.why = None;
                }
                Err(error) => {
                    queue.lost += 1;
                    queue.why = Some(error.kind());
                }
            }
        }
    }
}

/// The line that reports lost lines.
fn told(lost: u64, why: Option<io::ErrorKind>, is_json: bool) -> String {
    let lines = if lost == 1 {
        "line of the log was"
    } else {
        "lines of the log were"
    };
    let why = match why {
        Some(why) => why.to_string(),
        None => "they were not read in time".to_owned(),
    };
    let told = format!("{lost} {lines} lost: {why}");
    if is_json {
        // None of its text needs escapes.
        format!("{{\"level\":\"WARN\",\"message\":\"{told}\"}}\n")
    } else {
        format!("varved: {told}\n")
    }
}

fn write(output: &mut impl Write, told: Option<&str>, line: &[u8]) -> io::Result<()> {
    output.write_all(told.unwrap_or_default().as_bytes())?;
    output.write_all(line)?;
    output.flush()
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.flush(super::FLUSH_AT_END);
        self.0.0.queue.lock().is_closed = true;
        self.0.0.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Writes only while it is not full.
    #[derive(Clone, Default)]
    struct File(Arc<Mutex<(Vec<u8>, bool)>>);

    impl File {
        fn fill(&self, is_full: bool) {
            self.0.lock().1 = is_full;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().0.clone()).unwrap()
        }
    }

    impl Write for File {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut file = self.0.lock();
            if file.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            file.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_lost_and_told_of() {
        let file = File::default();
        let (sink, _guard) = Sink::start(file.clone(), false).unwrap();
        sink.put(b"one\n");
        sink.flush(LONG);
        file.fill(true);
        sink.put(b"two\n");
        sink.put(b"three\n");
        sink.flush(LONG);
        file.fill(false);
        sink.put(b"four\n");
        sink.put(b"five\n");
        sink.flush(LONG);
        assert_eq!(
            file.text(),
            "one\nvarved: 2 lines of the log were lost: no storage space\nfour\nfive\n"
        );
    }

    #[test]
    fn where_lines_are_objects_what_is_told_of_them_is_one() {
        let file = File::default();
        let (sink, _guard) = Sink::start(file.clone(), true).unwrap();
        file.fill(true);
        sink.put(b"{}\n");
        sink.flush(LONG);
        file.fill(false);
        sink.put(b"{}\n");
        sink.flush(LONG);
        let told = r#"{"level":"WARN","message":"1 line of the log was lost: no storage space"}"#;
        assert_eq!(file.text(), format!("{told}\n{{}}\n"));
    }

    /// A reader that takes nothing until it is told to.
    struct Stalled(Receiver<()>, File);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Once it is let go of, it takes everything.
            let _ = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_that_takes_nothing_and_the_queue_is_bounded() {
        let file = File::default();
        let (go, stalled): (SyncSender<()>, _) = sync_channel(0);
        let (sink, _guard) = Sink::start(Stalled(stalled, file.clone()), false).unwrap();
        let line = vec![b'x'; 1 << 10];
        let many = 2 * LOG_QUEUE_BYTES_MAX / line.len();
        for _ in 0..many {
            sink.put(&line);
        }
        assert!(sink.0.queue.lock().bytes <= LOG_QUEUE_BYTES_MAX);
        let lost = sink.0.queue.lock().lost;
        assert!(lost >= many as u64 / 2 - 1, "{lost} of {many}");
        drop(go);
        sink.flush(LONG);
        sink.put(b"last\n");
        sink.flush(LONG);
        assert!(
            file.text()
                .contains("lines of the log were lost: they were not read in time\n")
        );
        assert!(file.text().ends_with("last\n"));
    }

    #[test]
    fn an_endless_line_is_cut() {
        let file = File::default();
        let (sink, _guard) = Sink::start(file.clone(), false).unwrap();
        sink.put(&vec![b'x'; LOG_LINE_BYTES_MAX + 1]);
        sink.flush(LONG);
        assert_eq!(file.text().len(), LOG_LINE_BYTES_MAX + 4);
        assert!(file.text().ends_with("x...\n"));
    }
}
