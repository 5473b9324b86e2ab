//! The gRPC protocol: its rules, broken on purpose, and a client that is not ours.

mod limits;
mod reflection;
mod reading;
mod uploads;
