//! URIs of servers and exports, as NBD tools take them.
//!
//! The syntax is `doc/uri.md` of <https://github.com/NetworkBlockDevice/nbd>.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use crate::names::ExportName;

const UNIX: &str = "nbd+unix:///";
const TCP: &str = "nbd://";
const TLS: &str = "nbds://";
/// The field of a URI's query that has the path of a unix socket.
const SOCKET: &str = "socket=";

/// The protocol's own port.
const NBD_PORT: u16 = 10809;

/// The characters to encode in a path within a URI's query.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Where an NBD server is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerUri {
    /// `nbd+unix:///?socket=PATH`: a unix socket.
    Unix(PathBuf),
    /// `nbd://HOST:PORT`: a TCP port, as `host:port`.
    Tcp(String),
    /// `nbds://HOST:PORT`: a TCP port where TLS is spoken.
    Tls(String),
}

/// The reason why a text is not the URI of a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UriError {
    /// The path of the socket is relative, absent, or not UTF-8.
    #[error("the socket's path must be absolute")]
    Socket,
    /// There is nothing behind the scheme.
    #[error("it has no host")]
    Host,
    /// There is an export name, where that of a server is expected.
    #[error("give the export separately")]
    Export,
    /// It has another scheme, or none.
    #[error("write nbd+unix:///?socket=PATH or nbd://HOST:PORT")]
    Scheme,
}

impl ServerUri {
    /// The URI of an export of this server. All characters of names are valid in a URI's path.
    #[must_use]
    pub fn export(&self, name: ExportName<'_>) -> String {
        match self {
            Self::Unix(path) => format!("{UNIX}{name}?{SOCKET}{}", InQuery(path)),
            Self::Tcp(address) => format!("{TCP}{address}/{name}"),
            Self::Tls(address) => format!("{TLS}{address}/{name}"),
        }
    }

    /// The server in the URI of an export: `nbd+unix:///EXPORT?socket=PATH` or
    /// `nbd://HOST:PORT/EXPORT`.
    ///
    /// # Errors
    ///
    /// The URI has another form.
    pub fn of_export(uri: &str) -> Result<Self, UriError> {
        if let Some(local) = uri.strip_prefix(UNIX) {
            let query = local.split_once('?').map_or("", |(_, query)| query);
            let mut fields = query.split('&');
            let socket = fields.find_map(|field| field.strip_prefix(SOCKET));
            return Self::unix(socket.unwrap_or_default());
        }
        let (scheme, rest) = split_scheme(uri)?;
        let host = rest.split_once('/').map_or(rest, |(host, _)| host);
        scheme(host)
    }

    fn unix(encoded: &str) -> Result<Self, UriError> {
        match percent_decode_str(encoded).decode_utf8() {
            Ok(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(&*path))),
            _ => Err(UriError::Socket),
        }
    }

    fn tcp(address: &str) -> Result<Self, UriError> {
        with_port(address).map(Self::Tcp)
    }

    fn tls(address: &str) -> Result<Self, UriError> {
        with_port(address).map(Self::Tls)
    }
}

/// A server of a TCP scheme, from the text behind the scheme.
type OfAddress = fn(&str) -> Result<ServerUri, UriError>;

fn split_scheme(uri: &str) -> Result<(OfAddress, &str), UriError> {
    if let Some(rest) = uri.strip_prefix(TCP) {
        return Ok((ServerUri::tcp, rest));
    }
    let rest = uri.strip_prefix(TLS).ok_or(UriError::Scheme)?;
    Ok((ServerUri::tls, rest))
}

fn with_port(address: &str) -> Result<String, UriError> {
    let address = address.trim_end_matches('/');
    let has_port = address
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match address {
        "" => Err(UriError::Host),
        _ if address.contains('/') => Err(UriError::Export),
        _ if has_port => Ok(address.to_owned()),
        _ => Ok(format!("{address}:{NBD_PORT}")),
    }
}

impl fmt::Display for ServerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{UNIX}?{SOCKET}{}", InQuery(path)),
            Self::Tcp(address) => write!(f, "{TCP}{address}"),
            Self::Tls(address) => write!(f, "{TLS}{address}"),
        }
    }
}

impl FromStr for ServerUri {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        if let Some(local) = uri.strip_prefix(UNIX) {
            let socket = local
                .strip_prefix('?')
                .and_then(|it| it.strip_prefix(SOCKET));
            return Self::unix(socket.ok_or(UriError::Scheme)?);
        }
        let (scheme, address) = split_scheme(uri)?;
        scheme(address)
    }
}

/// A path, encoded for a URI's query.
struct InQuery<'a>(&'a Path);

impl fmt::Display for InQuery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: &OsStr = self.0.as_os_str();
        percent_encode(path.as_encoded_bytes(), IN_QUERY).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn uris_are_read_as_they_are_written() {
        let tcp = |address: &str| ServerUri::Tcp(address.to_owned());
        for (text, uri) in [
            (
                "nbd+unix:///?socket=/run/varve/nbd.sock",
                ServerUri::Unix("/run/varve/nbd.sock".into()),
            ),
            (
                "nbd+unix:///?socket=/data%20dir/a%2Bb/nbd.sock",
                ServerUri::Unix("/data dir/a+b/nbd.sock".into()),
            ),
            ("nbd://192.0.2.1:10810", tcp("192.0.2.1:10810")),
            ("nbd://[::1]:10809", tcp("[::1]:10809")),
            ("nbds://host:1", ServerUri::Tls("host:1".to_owned())),
        ] {
            assert_eq!(text.parse::<ServerUri>().unwrap(), uri);
            assert_eq!(uri.to_string(), text);
        }
        let short: ServerUri = "nbd://store.example/".parse().unwrap();
        assert_eq!(short, tcp("store.example:10809"));
    }

    #[test]
    fn exports_have_uris_on_each_server_which_is_found_in_them() {
        for (server, uri) in [
            (
                "nbd+unix:///?socket=/run/nbd.sock",
                "nbd+unix:///volume/web/a?socket=/run/nbd.sock",
            ),
            (
                "nbd+unix:///?socket=/a%20dir/it%27s%2C1",
                "nbd+unix:///volume/web/a?socket=/a%20dir/it%27s%2C1",
            ),
            ("nbd://[::1]:10809", "nbd://[::1]:10809/volume/web/a"),
            ("nbds://host:1", "nbds://host:1/volume/web/a"),
        ] {
            let server: ServerUri = server.parse().unwrap();
            assert_eq!(server.export(ExportName::Volume("web/a")), uri);
            assert_eq!(ServerUri::of_export(uri), Ok(server));
        }
        // Other tools encode less, and add fields.
        let loose = ServerUri::of_export("nbd+unix:///volume/db?x=1&socket=/it's,1");
        assert_eq!(loose, Ok(ServerUri::Unix("/it's,1".into())));
        for (wrong, why) in [
            ("nbd+unix:///volume/db", UriError::Socket),
            ("nbd+unix:///volume/db?socket=/%ff", UriError::Socket),
            ("http://example.com/", UriError::Scheme),
        ] {
            assert_eq!(ServerUri::of_export(wrong), Err(why), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_uri_of_a_server_is_refused_with_the_reason() {
        for (text, why) in [
            ("nbd+unix:///?socket=relative", UriError::Socket),
            ("nbd+unix:///volume/a?socket=/a", UriError::Scheme),
            ("nbd://", UriError::Host),
            ("nbd://host/volume/a", UriError::Export),
            ("/run/varve/nbd.sock", UriError::Scheme),
            ("", UriError::Scheme),
        ] {
            assert_eq!(text.parse::<ServerUri>(), Err(why), "{text}");
        }
    }
}
