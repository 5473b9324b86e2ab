//! The gRPC protocol: its rules, broken on purpose, and a third-party client.

mod attacks;
mod gone;
mod hostile;
mod limits;
mod reading;
mod reflection;
mod tls;
mod together;
mod uploads;
