//! Bytes in pages that copies share until one of them is changed. Pages of zeros take nothing.
//!
//! Each crash copies all files of a disk, and the journals among them are long and nearly empty.

use std::sync::Arc;

const PAGE_BYTES: usize = 16 << 10;

type Page = [u8; PAGE_BYTES];

#[derive(Debug, Default, Clone)]
pub(super) struct Pages {
    /// `None`: zeros. Behind the length, all bytes of the last page are zeros.
    pages: Vec<Option<Arc<Page>>>,
    len: usize,
}

impl Pages {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut pages = Self::default();
        pages.put(0, bytes);
        pages
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Cuts the end off, or adds zeros.
    pub(super) fn resize(&mut self, len: usize) {
        self.pages.resize(len.div_ceil(PAGE_BYTES), None);
        let kept = len % PAGE_BYTES;
        if len < self.len
            && kept > 0
            && let Some(Some(last)) = self.pages.last_mut()
            && let Some(cut_off) = Arc::make_mut(last).get_mut(kept..)
        {
            cut_off.fill(0);
        }
        self.len = len;
    }

    /// Up to `len` bytes from an offset.
    pub(super) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let len = len.min(self.len.saturating_sub(offset));
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len();
            let (page, start) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let taken = (PAGE_BYTES - start).min(len - bytes.len());
            let page = self.pages.get(page).and_then(Option::as_deref);
            match page.and_then(|page| page.get(start..start + taken)) {
                Some(part) => bytes.extend_from_slice(part),
                None => bytes.resize(bytes.len() + taken, 0),
            }
        }
        bytes
    }

    /// Writes at an offset. The length grows if need be.
    pub(super) fn put(&mut self, offset: usize, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.resize(self.len.max(offset + bytes.len()));
        let mut at = offset;
        for page in self.pages.iter_mut().skip(offset / PAGE_BYTES) {
            let start = at % PAGE_BYTES;
            let (written, rest) = bytes.split_at((PAGE_BYTES - start).min(bytes.len()));
            let page = page.get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            if let Some(place) = Arc::make_mut(page).get_mut(start..start + written.len()) {
                place.copy_from_slice(written);
            }
            at += written.len();
            bytes = rest;
            if bytes.is_empty() {
                return;
            }
        }
    }

    /// Changes bits of a byte. Returns false if it is behind the end.
    pub(super) fn flip(&mut self, offset: usize, bits: u8) -> bool {
        let Some(byte) = self.read(offset, 1).first().copied() else {
            return false;
        };
        self.put(offset, &[byte ^ bits]);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        reason = "tests"
    )]

    use super::{super::random::Random, *};

    /// Against a plain array, also where a copy is changed, or the array it was made from.
    #[test]
    fn they_hold_what_an_array_holds() {
        let mut pages = Pages::default();
        let mut array: Vec<u8> = Vec::new();
        let mut copies = Vec::new();
        let mut random = Random::new(7);
        let mut below = |bound: usize| random.next() as usize % bound;
        for step in 0..2000 {
            let offset = below(5 * PAGE_BYTES);
            match below(8) {
                0 => {
                    pages.resize(offset);
                    array.resize(offset, 0);
                }
                1 if copies.len() < 20 => copies.push((pages.clone(), array.clone())),
                2 => {
                    let there = pages.flip(offset, 3);
                    assert_eq!(there, offset < array.len());
                    if let Some(byte) = array.get_mut(offset) {
                        *byte ^= 3;
                    }
                }
                _ => {
                    let bytes = vec![step as u8; below(3 * PAGE_BYTES)];
                    pages.put(offset, &bytes);
                    if !bytes.is_empty() {
                        let end = offset + bytes.len();
                        array.resize(array.len().max(end), 0);
                        array[offset..end].copy_from_slice(&bytes);
                    }
                }
            }
            assert_eq!(pages.len(), array.len());
            assert!(pages.read(0, usize::MAX) == array, "after step {step}");
            let (start, len) = (below(6 * PAGE_BYTES), below(2 * PAGE_BYTES));
            let expected = array.iter().skip(start).take(len);
            assert!(pages.read(start, len).iter().eq(expected));
        }
        for (pages, array) in copies {
            assert!(pages.read(0, usize::MAX) == array);
            assert!(Pages::of(&array).read(0, array.len()) == array);
        }
    }
}
