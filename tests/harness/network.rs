//! Two network namespaces with a link between them, in place of two machines.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    process::{command, run},
    programs::{skip_because, tool},
};

/// Namespaces and their link. Removed on drop.
#[derive(Debug)]
pub struct Network {
    names: [String; 2],
}

impl Network {
    /// Makes them. Returns `None` and prints the reason where that is not possible: it needs root,
    /// and a kernel with namespaces.
    #[must_use]
    pub fn make() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            skip_because("network namespaces need root");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("varve{}-{number}", process::id());
        let network = Self {
            names: ["a", "b"].map(|side| format!("{prefix}{side}")),
        };
        if !run(command(tool("ip"), ["netns", "add", &network.names[0]]))
            .status
            .success()
        {
            skip_because("network namespaces cannot be made here");
            return None;
        }
        let [one, other] = &network.names;
        network.ip(&["netns", "add", other]);
        // Made inside a namespace, so that the names of its ends conflict with no others.
        network.ip(&[
            "-n", one, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns",
            other,
        ]);
        for side in 0..2 {
            let address = format!("{}/24", Self::address(side));
            network.ip(&[
                "-n",
                &network.names[side],
                "address",
                "add",
                &address,
                "dev",
                "eth0",
            ]);
            for device in ["lo", "eth0"] {
                network.ip(&["-n", &network.names[side], "link", "set", device, "up"]);
            }
        }
        Some(network)
    }

    /// The namespace of a side, 0 or 1.
    #[must_use]
    pub fn name(&self, side: usize) -> &str {
        &self.names[side]
    }

    fn address(side: usize) -> Ipv4Addr {
        // From the range for documentation, so no real network has it.
        [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)][side]
    }

    /// An address of a side.
    #[must_use]
    pub fn socket(&self, side: usize, port: u16) -> SocketAddr {
        (Self::address(side), port).into()
    }

    /// Takes the link down, or brings it up again.
    pub fn set_link(&self, up: bool) {
        let state = if up { "up" } else { "down" };
        self.ip(&["-n", &self.names[0], "link", "set", "eth0", state]);
    }

    fn ip(&self, arguments: &[&str]) {
        run(command(tool("ip"), arguments)).ok();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            // This removes the link, too.
            let _ = run(command(tool("ip"), ["netns", "delete", name]));
        }
    }
}
