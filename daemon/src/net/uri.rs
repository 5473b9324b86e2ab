//! URIs of NBD servers and exports, as NBD tools take them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// What is encoded in a path that stands in a URI's query.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// URIs of the NBD server, without an export name.
pub(crate) fn of_servers(unix: &Path, tcp: Option<SocketAddr>, has_tls: bool) -> Vec<String> {
    let path = absolute(unix);
    let path = percent_encode(path.as_os_str().as_encoded_bytes(), IN_QUERY);
    let mut uris = vec![format!("nbd+unix:///?socket={path}")];
    let scheme = if has_tls { "nbds" } else { "nbd" };
    uris.extend(tcp.map(|address| format!("{scheme}://{address}")));
    uris
}

/// The URI of an export, from one without an export name. What names are made of may all stand in a
/// URI's path.
pub(crate) fn of_export(server: &str, export: &str) -> String {
    let (server, query) = match server.split_once('?') {
        Some((server, query)) => (server, format!("?{query}")),
        None => (server, String::new()),
    };
    let server = server.strip_suffix('/').unwrap_or(server);
    format!("{server}/{export}{query}")
}

/// A relative path would mean something else to the reader.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_what_nbd_tools_take() {
        let uris = of_servers(
            Path::new("/data dir/a+b/nbd.sock"),
            "[::1]:10809".parse().ok(),
            false,
        );
        assert_eq!(
            uris,
            [
                "nbd+unix:///?socket=/data%20dir/a%2Bb/nbd.sock",
                "nbd://[::1]:10809"
            ]
        );
        let relative = of_servers(Path::new("x/nbd.sock"), None, false);
        assert!(
            relative[0].starts_with("nbd+unix:///?socket=/")
                && relative[0].ends_with("/x/nbd.sock"),
            "{relative:?}"
        );
    }

    #[test]
    fn exports_have_uris_on_each_server() {
        for (base, uri) in [
            (
                "nbd+unix:///?socket=/run/nbd.sock",
                "nbd+unix:///volume/web/a?socket=/run/nbd.sock",
            ),
            ("nbd://[::1]:10809", "nbd://[::1]:10809/volume/web/a"),
        ] {
            assert_eq!(of_export(base, "volume/web/a"), uri);
        }
    }
}
