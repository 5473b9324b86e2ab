//! Memory that the kernel may read and write past the page cache.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    fmt,
    ops::Deref,
    ptr::NonNull,
    slice,
};

use bytes::Bytes;

/// Alignment of buffers, and of the offsets and lengths of direct writes. A file system that needs
/// a larger alignment is written through the page cache.
pub const BUFFER_ALIGN: usize = 4096;

/// Bytes in memory that begins at a multiple of [`BUFFER_ALIGN`], of a capacity that does not
/// change.
pub struct AlignedBuf {
    start: NonNull<u8>,
    /// A multiple of `BUFFER_ALIGN`, not 0.
    capacity: usize,
    /// The bytes that are there: initialised, at most `capacity`.
    len: usize,
}

// SAFETY: it owns its memory, and gives out mutable access only for `&mut self`.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer for `bytes`, rounded up to a multiple of [`BUFFER_ALIGN`].
    ///
    /// # Panics
    ///
    /// If `bytes` does not fit an address space.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        let capacity = bytes.max(1).next_multiple_of(BUFFER_ALIGN);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self {
            start,
            capacity,
            len: 0,
        }
    }

    /// A buffer that holds a copy of `bytes`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buf = Self::with_capacity(bytes.len());
        buf.extend_from_slice(bytes);
        buf
    }

    fn layout(capacity: usize) -> Layout {
        match Layout::from_size_align(capacity, BUFFER_ALIGN) {
            Ok(layout) => layout,
            Err(error) => panic!("a buffer of {capacity} bytes: {error}"),
        }
    }

    /// Bytes that fit.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that still fit.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// Forgets the bytes.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a copy of `bytes`.
    ///
    /// # Panics
    ///
    /// If they do not [fit](Self::room).
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        assert!(
            bytes.len() <= self.room(),
            "{} bytes into a buffer with room for {}",
            bytes.len(),
            self.room()
        );
        // SAFETY: `len..len + bytes.len()` is inside the allocation, just asserted, and `bytes`
        // cannot overlap what is borrowed mutably.
        unsafe {
            self.start
                .add(self.len)
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
        self.len += bytes.len();
    }

    /// Adds zeros.
    ///
    /// # Panics
    ///
    /// If they do not [fit](Self::room).
    pub fn extend_zeros(&mut self, count: usize) {
        assert!(
            count <= self.room(),
            "{count} zeros into a buffer with room for {}",
            self.room()
        );
        // SAFETY: `len..len + count` is inside the allocation, just asserted.
        unsafe { self.start.add(self.len).write_bytes(0, count) };
        self.len += count;
    }

    /// The buffer's bytes as `bytes::Bytes`, not copied.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The start of the memory, for the kernel to read from and write to.
    pub(super) const fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Sets the number of valid bytes.
    ///
    /// # Safety
    ///
    /// The first `len` are initialised, and fit.
    pub(super) unsafe fn set_len(&mut self, len: usize) {
        debug_assert!(len <= self.capacity);
        self.len = len;
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `with_capacity` with the same layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) };
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised and owned by `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity)
            .finish()
    }
}

/// Buffers of one size, of which there are only so many.
#[derive(Debug)]
pub struct BufferPool {
    free: Vec<AlignedBuf>,
    buffer_bytes: usize,
    /// Number of buffers that may still be made.
    unmade: usize,
}

impl BufferPool {
    /// A pool that makes up to `count` buffers, when they are first needed.
    #[must_use]
    pub const fn new(count: usize, buffer_bytes: usize) -> Self {
        Self {
            free: Vec::new(),
            buffer_bytes,
            unmade: count,
        }
    }

    /// Number of buffers that can be taken.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len() + self.unmade
    }

    /// An empty buffer, or none while all are in use.
    pub fn take(&mut self) -> Option<AlignedBuf> {
        if let Some(buf) = self.free.pop() {
            return Some(buf);
        }
        self.unmade = self.unmade.checked_sub(1)?;
        Some(AlignedBuf::with_capacity(self.buffer_bytes))
    }

    /// Takes a buffer back.
    pub fn give_back(&mut self, mut buf: AlignedBuf) {
        debug_assert!(buf.capacity() >= self.buffer_bytes);
        buf.clear();
        self.free.push(buf);
    }

    /// Notes that a taken buffer does not come back, and another may be made for it.
    pub fn replace_lost(&mut self) {
        self.unmade += 1;
    }

    /// Frees the memory of buffers that are not in use.
    pub fn shrink(&mut self) {
        self.unmade += self.free.len();
        self.free = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::cast_possible_truncation,
        clippy::unwrap_used,
        clippy::expect_used,
        reason = "tests"
    )]

    use super::*;

    #[test]
    fn bytes_are_kept_and_begin_aligned() {
        for len in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let mut buf = AlignedBuf::from_slice(&bytes);
            assert_eq!(&*buf, &bytes);
            assert_eq!(buf.as_mut_ptr() as usize % BUFFER_ALIGN, 0);
            assert!(buf.capacity() >= len && buf.capacity().is_multiple_of(BUFFER_ALIGN));
            let room = buf.room();
            buf.extend_zeros(room);
            assert_eq!(buf.room(), 0);
            assert!(buf[len..].iter().all(|byte| *byte == 0));
            let shared = buf.into_bytes();
            assert_eq!(&shared[..len], &bytes);
        }
    }

    #[test]
    #[should_panic(expected = "4097 bytes into a buffer with room for 4096")]
    fn a_buffer_does_not_grow() {
        AlignedBuf::with_capacity(1).extend_from_slice(&[1; 4097]);
    }

    #[test]
    fn a_pool_has_a_bound_and_reuses() {
        let mut pool = BufferPool::new(2, 4096);
        let (mut first, second) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        first.extend_from_slice(b"used");
        let address = first.as_mut_ptr();
        pool.give_back(first);
        let mut again = pool.take().unwrap();
        assert!(again.is_empty());
        assert_eq!(again.as_mut_ptr(), address);
        drop(second);
        pool.replace_lost();
        assert_eq!(pool.available(), 1);
        pool.give_back(again);
        pool.shrink();
        assert_eq!(pool.available(), 2);
    }
}
