//! Warnings about settings that are valid but hardly intended. The daemon logs them when it starts,
//! and `--check-config` prints them.

use std::{ffi::OsString, net::SocketAddr};

use super::{Config, GRPC_TLS, NBD_TLS, SETTINGS, TlsConfig, TlsSettings};

/// Known variables that are not settings: of this program, and of `snapctl` and its users in the
/// same shell.
const OTHER_VARIABLES: [&str; 9] = [
    "VARVE_CONFIG",
    "VARVE_FAILPOINT",
    "VARVE_ENDPOINT",
    "VARVE_NBD",
    "VARVE_PROFILE",
    "VARVE_TLS_CA",
    "VARVE_TLS_CERT",
    "VARVE_TLS_KEY",
    "VARVE_TOKEN_FILE",
];

/// Warnings about variables of this process that look like settings but are not, one line each.
#[must_use]
pub fn unknown_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let is_known = |name: &str| {
        OTHER_VARIABLES.contains(&name) || SETTINGS.iter().any(|known| known.variable == name)
    };
    let mut unknown: Vec<_> = names
        .into_iter()
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("VARVE_") && !is_known(name))
        .collect();
    unknown.sort();
    let line = |name| format!("the unknown environment variable {name} is ignored");
    unknown.into_iter().map(line).collect()
}

impl Config {
    /// Warnings about the configured addresses: one line for each that everyone may reach.
    #[must_use]
    pub fn open_addresses(&self) -> Vec<String> {
        let [grpc, nbd] = [self.grpc.tcp, self.nbd.tcp];
        [self.open_grpc(grpc), self.open_nbd(nbd)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The warning about serving gRPC at this address, if everyone may reach it.
    #[must_use]
    pub fn open_grpc(&self, address: Option<SocketAddr>) -> Option<String> {
        open("gRPC", address, self.grpc.tls.as_ref(), true, &GRPC_TLS)
    }

    /// The same for NBD.
    #[must_use]
    pub fn open_nbd(&self, address: Option<SocketAddr>) -> Option<String> {
        let is_required = self.nbd.tls_required;
        open("NBD", address, self.nbd.tls.as_ref(), is_required, &NBD_TLS)
    }
}

/// As long as there are no accounts, a peer that reaches a TCP address may do everything, unless
/// the daemon requires certificates.
fn open(
    service: &str,
    address: Option<SocketAddr>,
    tls: Option<&TlsConfig>,
    is_required: bool,
    names: &TlsSettings,
) -> Option<String> {
    let address = address.filter(|address| !address.ip().to_canonical().is_loopback())?;
    let TlsSettings {
        cert,
        key,
        client_ca,
        ..
    } = names;
    let clear = "everyone on the network path can read and change the traffic, and everyone who \
                 reaches the address has full access";
    match tls {
        None => Some(format!(
            "{service} is in the clear at {address}: {clear}; set {cert}, {key} and {client_ca}, \
             or use a loopback address"
        )),
        Some(_) if !is_required => Some(format!(
            "{service} is in the clear at {address} for clients without TLS: {clear}; set \
             nbd.tls_required = true"
        )),
        Some(tls) if tls.client_ca.is_none() => Some(format!(
            "{service} at {address} does not ask clients for certificates: everyone who reaches \
             the address has full access; set {client_ca}"
        )),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn variables_that_are_misspelled_are_named() {
        let names = ["VARVE_CPU_THREAD", "PATH", "VARVE_LOGS", "MY_VARVE_X"].map(OsString::from);
        let known = SETTINGS.iter().map(|setting| setting.variable);
        let known = known.chain(OTHER_VARIABLES).map(OsString::from);
        assert_eq!(
            unknown_variables(known.chain(names)),
            [
                "the unknown environment variable VARVE_CPU_THREAD is ignored",
                "the unknown environment variable VARVE_LOGS is ignored",
            ]
        );
    }

    #[test]
    fn addresses_that_everybody_may_reach_are_told_with_what_to_set() {
        let mut config = Config::for_data_dir("/data").unwrap();
        let tls = |client_ca: bool| {
            Some(TlsConfig {
                cert: "/c".into(),
                key: "/k".into(),
                client_ca: client_ca.then(|| "/a".into()),
            })
        };
        for (address, tls, is_required, said) in [
            ("127.0.0.1:1", None, true, None),
            ("[::1]:1", None, true, None),
            ("[::ffff:127.0.0.1]:1", None, true, None),
            (
                "0.0.0.0:1",
                None,
                true,
                Some("nbd.tls_cert, nbd.tls_key and nbd.tls_client_ca"),
            ),
            ("[::]:1", tls(false), true, Some("set nbd.tls_client_ca")),
            (
                "192.0.2.1:1",
                tls(true),
                false,
                Some("set nbd.tls_required = true"),
            ),
            ("192.0.2.1:1", tls(true), true, None),
        ] {
            config.nbd.tcp = Some(address.parse().unwrap());
            (config.nbd.tls, config.nbd.tls_required) = (tls, is_required);
            let told = config.open_addresses();
            assert_eq!(told.len(), usize::from(said.is_some()), "{told:?}");
            for (told, said) in told.iter().zip(said) {
                assert!(told.starts_with("NBD ") && told.contains(address), "{told}");
                assert!(told.contains(said), "{told}");
            }
        }
        config.grpc.tcp = Some("0.0.0.0:7433".parse().unwrap());
        let told = config.open_addresses();
        let [told] = &*told else { panic!("{told:?}") };
        assert!(
            told.starts_with("gRPC is in the clear at 0.0.0.0:7433: "),
            "{told}"
        );
        assert!(told.contains("grpc.tls_cert, grpc.tls_key"), "{told}");
    }
}
