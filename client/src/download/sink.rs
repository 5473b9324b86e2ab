//! Targets of downloads.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use varve_content::block::SEGMENT_BYTES;

/// A target for the bytes of a volume.
///
/// The methods may block: the client calls them on threads that may. It calls
/// [`begin`](Self::begin) first. Then it covers every byte of the volume once by
/// [`write_at`](Self::write_at) or [`zero`](Self::zero), from several threads at once and in any
/// order. Finally, if everything was received and checked, it calls [`finish`](Self::finish). A
/// sink that is dropped without it must leave nothing that could be mistaken for the volume.
pub trait Sink: Send + Sync + 'static {
    /// The name of the sink in errors: a path.
    fn name(&self) -> String;

    /// Prepares for a volume of this size, in bytes.
    ///
    /// # Errors
    ///
    /// If the sink cannot take this many bytes. An error of any method ends the download.
    fn begin(&self, size_bytes: u64) -> io::Result<()>;

    /// Writes bytes that have been verified.
    ///
    /// # Errors
    ///
    /// If the bytes cannot be written.
    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()>;

    /// Makes a range, in bytes, read as zeros.
    ///
    /// # Errors
    ///
    /// If the range cannot be written.
    fn zero(&self, range: Range<u64>) -> io::Result<()>;

    /// Reports that every byte before `end_bytes` has been written. The client calls it now and
    /// then, with ascending ends, from one thread at a time; the last time with the size.
    ///
    /// # Errors
    ///
    /// If the sink cannot continue.
    fn settled(&self, end_bytes: u64) -> io::Result<()> {
        let _ = end_bytes;
        Ok(())
    }

    /// Makes the bytes durable and visible. All were written and match the snapshot.
    ///
    /// # Errors
    ///
    /// If the bytes may not be durable.
    fn finish(&self) -> io::Result<()>;
}

/// A sink for a writer that takes bytes only in order, such as a pipe. It writes zeros, too.
#[derive(Debug)]
pub struct StreamSink<W> {
    name: String,
    state: Mutex<StreamState<W>>,
}

#[derive(Debug)]
struct StreamState<W> {
    writer: W,
    size_bytes: u64,
    /// Bytes written.
    position: u64,
    /// Segments that were begun, by number.
    segments: BTreeMap<u64, Vec<u8>>,
}

impl<W: Write + Send + 'static> StreamSink<W> {
    /// Writes to `writer`, called `name` in errors.
    pub fn new(writer: W, name: impl Into<String>) -> Self {
        let state = StreamState {
            writer,
            size_bytes: 0,
            position: 0,
            segments: BTreeMap::new(),
        };
        Self {
            name: name.into(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, StreamState<W>> {
        // A thread that panicked ends the download; the bytes that it left are not written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Write + Send + 'static> Sink for StreamSink<W> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn begin(&self, size_bytes: u64) -> io::Result<()> {
        self.state().size_bytes = size_bytes;
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let number = offset_bytes / SEGMENT_BYTES as u64;
        let first = number * SEGMENT_BYTES as u64;
        let len = usize::try_from(state.size_bytes - first)
            .map_or(SEGMENT_BYTES, |rest| rest.min(SEGMENT_BYTES));
        let segment = state.segments.entry(number).or_insert_with(|| vec![0; len]);
        let place = usize::try_from(offset_bytes - first)
            .ok()
            .and_then(|at| segment.get_mut(at..at + data.len()));
        let Some(place) = place else {
            return Err(io::Error::other("bytes across the edge of a segment"));
        };
        place.copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn settled(&self, end_bytes: u64) -> io::Result<()> {
        let state = &mut *self.state();
        while let Some(segment) = state.segments.first_entry() {
            let first = segment.key() * SEGMENT_BYTES as u64;
            if first + segment.get().len() as u64 > end_bytes {
                break;
            }
            let bytes = segment.remove();
            write_zeros(&mut state.writer, first - state.position)?;
            state.writer.write_all(&bytes)?;
            state.position = first + bytes.len() as u64;
        }
        if end_bytes == state.size_bytes {
            write_zeros(&mut state.writer, end_bytes - state.position)?;
            state.position = end_bytes;
        }
        Ok(())
    }

    fn finish(&self) -> io::Result<()> {
        self.state().writer.flush()
    }
}

fn write_zeros(writer: &mut impl Write, mut count: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while count > 0 {
        let len = usize::try_from(count).map_or(ZEROS.len(), |count| count.min(ZEROS.len()));
        writer.write_all(&ZEROS[..len])?;
        count -= len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_comes_in_any_order_goes_out_in_order_with_its_zeros() {
        let segment = SEGMENT_BYTES as u64;
        let size = 3 * segment + 5000;
        let sink = StreamSink::new(Vec::new(), "-");
        sink.begin(size).unwrap();
        sink.write_at(3 * segment + 4096, &[3; 904]).unwrap();
        sink.write_at(segment + 8192, &[2; 4096]).unwrap();
        sink.write_at(segment, &[1; 4096]).unwrap();
        sink.settled(segment).unwrap();
        assert_eq!(sink.state().position, 0);
        sink.settled(2 * segment).unwrap();
        assert_eq!(sink.state().position, 2 * segment);
        sink.settled(size).unwrap();
        sink.finish().unwrap();

        let mut expected = vec![0; 3 * SEGMENT_BYTES + 5000];
        expected[SEGMENT_BYTES..][..4096].fill(1);
        expected[SEGMENT_BYTES + 8192..][..4096].fill(2);
        expected[3 * SEGMENT_BYTES + 4096..].fill(3);
        assert!(sink.state().writer == expected);
    }
}
