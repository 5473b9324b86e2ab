//! Garbage collection.

mod pace;
mod sweep;

pub(crate) use self::{
    pace::Pace,
    sweep::{Sweep, Swept},
};
