//! The possible content of volumes and snapshots after crashes.

use super::BLOCK;

/// The possible content of a volume.
pub(super) struct Model {
    /// Contents, each after one more acknowledged change. A witness in the journal proves the
    /// first: a change behind the flush.
    pub(super) states: Vec<Vec<u8>>,
    /// Index of the durable state.
    pub(super) durable: usize,
    /// With changes that were begun and not acknowledged.
    pub(super) perhaps: Option<Vec<u8>>,
    /// True if changes that are acknowledged and not durable may be lost.
    pub(super) may_be_older: bool,
    /// True if the witness is there for certain: a loss of power may have taken it.
    pub(super) is_witnessed: bool,
}

impl Model {
    pub(super) fn new(state: Vec<u8>) -> Self {
        Self {
            states: vec![state],
            durable: 0,
            perhaps: None,
            may_be_older: false,
            is_witnessed: true,
        }
    }

    pub(super) fn now(&self) -> &Vec<u8> {
        self.states.last().unwrap()
    }

    /// The current state is durable.
    pub(super) fn flushed(&mut self) {
        self.durable = self.states.len() - 1;
    }

    /// A change was acknowledged.
    pub(super) fn made(&mut self, state: Vec<u8>) {
        // One that changes nothing may leave no trace.
        if state != *self.now() {
            self.is_witnessed |= self.durable > 0;
            self.states.drain(..self.durable);
            self.durable = 0;
        }
        self.states.push(state);
    }

    /// The state that was found, from `oldest` on, or the last one before it.
    pub(super) fn find(&self, name: &str, oldest: usize, found: &Vec<u8>) -> usize {
        let len = found.len();
        let is_len = |state: &Vec<u8>| state.len() == len;
        assert!(
            is_len(self.now()) || self.perhaps.as_ref().is_some_and(is_len),
            "volume {name} has {len} bytes, not {}",
            self.now().len()
        );
        let as_long = |state: &Vec<u8>| {
            let mut state = state.clone();
            state.resize(len, 0);
            state
        };
        let chain = self.states[oldest..].iter().chain(&self.perhaps);
        let chain: Vec<_> = chain.map(as_long).collect();
        let is = |state: &Vec<u8>| state == found;
        let is_between = |pair: &[Vec<u8>]| is_mix(&pair[0], &pair[1], found);
        let at = chain
            .iter()
            .rposition(is)
            .or_else(|| chain.windows(2).rposition(is_between));
        let Some(at) = at else {
            let differs = |state: &Vec<u8>| {
                let blocks = found.chunks(BLOCK).zip(state.chunks(BLOCK)).enumerate();
                let blocks = blocks.filter(|(_, (found, state))| found != state);
                blocks.map(|(at, _)| at).collect::<Vec<_>>()
            };
            let all: Vec<_> = chain.iter().map(differs).collect();
            panic!("volume {name} is none of its states; blocks that differ from each: {all:?}");
        };
        oldest + at
    }

    /// Checks that an opened volume may have this content, which is durable from then on.
    pub(super) fn accept(&mut self, name: &str, found: Vec<u8>) {
        let oldest = if self.may_be_older {
            self.durable
        } else {
            self.states.len() - 1
        };
        let at = self.find(name, oldest, &found);
        self.states.truncate(at + 1);
        self.states.push(found);
        self.durable = self.states.len() - 1;
        self.perhaps = None;
        self.is_witnessed &= !self.may_be_older;
        self.may_be_older = false;
    }
}

/// Returns true if each block is that of one or the other.
pub(super) fn is_mix(one: &[u8], other: &[u8], found: &[u8]) -> bool {
    let blocks = one
        .chunks(BLOCK)
        .zip(other.chunks(BLOCK))
        .zip(found.chunks(BLOCK));
    let mut blocks = blocks.map(|((one, other), found)| found == one || found == other);
    found.len() == one.len() && blocks.all(|is_either| is_either)
}

/// The content of a snapshot: if it was made during a change, any blocks of the change.
#[derive(Clone)]
pub(super) struct Content {
    pub(super) before: Vec<u8>,
    pub(super) after: Vec<u8>,
}

impl Content {
    pub(super) fn of(model: &Model) -> Self {
        Self {
            before: model.now().clone(),
            after: model.now().clone(),
        }
    }
}
