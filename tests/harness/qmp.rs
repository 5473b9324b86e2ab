//! QEMU's machine protocol, to query the state of a guest.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use serde_json::{Value, json};

use crate::process::{TIME_LIMIT, wait_for};

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// The argument of `-qmp` that makes QEMU listen there.
    #[must_use]
    pub fn listen(socket: &Path) -> String {
        format!("unix:{},server=on,wait=off", socket.display())
    }

    /// Connects, once QEMU listens.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        let stream = wait_for("QEMU to listen", || UnixStream::connect(socket).ok());
        stream
            .set_read_timeout(Some(TIME_LIMIT))
            .expect("set a time limit");
        let mut qmp = Self(BufReader::new(stream));
        let greeting = qmp.receive();
        assert!(greeting["QMP"].is_object(), "{greeting}");
        qmp.execute("qmp_capabilities");
        qmp
    }

    /// Runs a command without arguments, and returns its result.
    pub fn execute(&mut self, command: &str) -> Value {
        let line = format!("{}\n", json!({ "execute": command }));
        self.0
            .get_mut()
            .write_all(line.as_bytes())
            .expect("send a command to QEMU");
        loop {
            // Events come in between.
            let mut answer = self.receive();
            if let Some(returned) = answer.get_mut("return") {
                return returned.take();
            }
            assert!(answer.get("error").is_none(), "{command}: {answer}");
        }
    }

    /// The state of the guest: `running`, `io-error`, and others.
    pub fn status(&mut self) -> String {
        let status = self.execute("query-status");
        status["status"].as_str().unwrap_or_default().to_owned()
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("hear from QEMU");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QEMU said {line:?}: {error}"))
    }
}
