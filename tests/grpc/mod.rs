//! The gRPC protocol: its rules, broken on purpose, and a client that is not ours.

mod limits;
mod reading;
mod reflection;
mod uploads;
