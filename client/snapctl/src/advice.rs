//! Advice for the user about a failure. The library and the daemon report only the facts.

use std::{
    error::Error as _,
    fs,
    io::Read,
    net::TcpStream,
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::Path,
    time::Duration,
};

use varve_client::{Error, ErrorKind};

/// The greeting of an NBD server.
const NBD_GREETING: &[u8] = b"NBDMAGIC";
/// Time limit for the greeting.
const GREETING_TIME: Duration = Duration::from_millis(500);

/// The connection settings of a command.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked<'a> {
    /// The endpoint as given; empty if none was.
    pub(crate) endpoint: &'a str,
    pub(crate) tls_ca: Option<&'a Path>,
    /// True if the command has a client certificate.
    pub(crate) has_cert: bool,
    /// The file of the token that the command has sent.
    pub(crate) token_file: Option<&'a Path>,
    /// True if the profile has a token, which is for another endpoint.
    pub(crate) withholds_token: bool,
}

/// Advice about an error, if there is any.
pub(crate) fn advice(error: &Error, asked: Asked<'_>) -> Option<String> {
    match error.kind() {
        ErrorKind::Unreachable => connection(error, asked),
        ErrorKind::Conflict => state(error),
        ErrorKind::Unauthenticated => Some(unknown_caller(asked)),
        // Denials without a source come from this machine, not from the daemon.
        ErrorKind::Denied if error.source().is_some() => {
            Some("`snapctl whoami` shows your account, and what your token allows".to_owned())
        }
        ErrorKind::Invalid if error.why().contains("plain HTTP") => {
            Some("--allow-plaintext allows it".to_owned())
        }
        _ => None,
    }
}

fn connection(error: &Error, asked: Asked<'_>) -> Option<String> {
    let saw = |text: &str| error.why().contains(text);
    let lost = saw("lost the connection");
    let hung_up = lost || saw("Broken pipe") || saw("Connection reset");
    let said = if saw("CertificateRequired") {
        "the daemon asks for a certificate: give --tls-cert and --tls-key"
    } else if saw("received fatal alert: UnknownCA")
        || saw("received fatal alert: BadCertificate")
        || saw("received fatal alert: CertificateUnknown")
        || saw("received fatal alert: CertificateExpired")
    {
        "the daemon does not accept the certificate of --tls-cert"
    } else if saw("UnknownIssuer") {
        if let Some(file) = asked.tls_ca {
            let file = file.display();
            return Some(format!(
                "none of the authorities in {file} signed its certificate"
            ));
        }
        "give the authority that signed the daemon's certificate: --tls-ca"
    } else if (hung_up || saw("InvalidContentType")) && greets_as_nbd(asked.endpoint) {
        "is this the NBD socket? snapctl needs the one for gRPC"
    } else if saw("right after the TLS handshake") {
        if asked.has_cert {
            "it may not trust the certificate of --tls-cert"
        } else {
            "it may ask for a certificate: give --tls-cert and --tls-key"
        }
    } else if saw("InvalidContentType") {
        "does it want http?"
    } else if asked.endpoint.starts_with("http://") && lost {
        "does it want https?"
    } else if let Some(socket) = error.what().strip_prefix("connect to unix:")
        && saw("Permission denied")
    {
        return Some(not_permitted(Path::new(socket)));
    } else {
        return None;
    };
    Some(said.to_owned())
}

/// Advice for a caller whom the daemon does not know.
fn unknown_caller(asked: Asked<'_>) -> String {
    if let Some(file) = asked.token_file {
        let file = file.display();
        return format!(
            "the daemon does not accept the token in {file}, which may be revoked or expired"
        );
    }
    if asked.withholds_token {
        return "the token of the profile is for the profile's endpoint only; --token-file sends it \
                elsewhere"
            .to_owned();
    }
    let is_unix = asked.endpoint.is_empty() || asked.endpoint.starts_with("unix:");
    let identity = if is_unix {
        format!("uid:{}", rustix::process::getuid().as_raw())
    } else {
        "cert:SUBJECT".to_owned()
    };
    format!(
        "the daemon does not know you: give a token (--token-file), or have its administrator add \
         an identity (`snapctl account set NAME --add-identity {identity}`)"
    )
}

/// Advice about a socket that this user may not open.
fn not_permitted(socket: &Path) -> String {
    let owner = fs::metadata(socket).ok().map(|found| user(found.uid()));
    let (whose, user) = match owner {
        Some(user) => (format!("the socket belongs to {user}: "), "that user"),
        // This user may not search its directory either.
        None => (String::new(), "the user that varved runs as"),
    };
    format!("{whose}run as {user} or root, or set socket_mode in varved's settings")
}

/// The name of a user on this machine.
fn user(uid: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("user {uid}"))
}

/// Returns true if an NBD server is at this endpoint: it speaks first.
fn greets_as_nbd(endpoint: &str) -> bool {
    fn is_greeting(mut from: impl Read) -> bool {
        let mut greeting = [0; NBD_GREETING.len()];
        from.read_exact(&mut greeting).is_ok() && greeting == NBD_GREETING
    }
    let tcp = endpoint.strip_prefix("http://");
    let tcp = tcp.or_else(|| endpoint.strip_prefix("https://"));
    if let Some(address) = tcp {
        let socket = TcpStream::connect(address.trim_end_matches('/'));
        return socket.is_ok_and(|socket| {
            socket.set_read_timeout(Some(GREETING_TIME)).is_ok() && is_greeting(socket)
        });
    }
    let Some(path) = endpoint.strip_prefix("unix:") else {
        return false;
    };
    let socket = UnixStream::connect(path.strip_prefix("//").unwrap_or(path));
    socket.is_ok_and(|socket| {
        socket.set_read_timeout(Some(GREETING_TIME)).is_ok() && is_greeting(socket)
    })
}

/// Advice about a conflict with the state of a volume or snapshot.
fn state(error: &Error) -> Option<String> {
    let why = error.why();
    if why.contains(" is attached") {
        return if let Some(volume) = error.what().strip_prefix("attach volume ") {
            Some(format!(
                "`snapctl volume detach {volume}` first; --force takes it over"
            ))
        } else {
            let volume = error.what().strip_prefix("delete volume ")?;
            Some(format!("`snapctl volume detach {volume}` first"))
        };
    }
    let (before, _) = why.split_once("\" is pending")?;
    let (_, snapshot) = before.rsplit_once("snapshot \"")?;
    Some(format!(
        "`snapctl snapshot show {snapshot}` tells how far it is; `snapshot create --wait` waits for it"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn advised(kind: ErrorKind, what: &str, why: &str, asked: Asked<'_>) -> String {
        advice(&Error::new(kind, what, why), asked).unwrap_or_default()
    }

    #[test]
    fn failed_connections_come_with_advice() {
        const LOST: &str = "lost the connection to the daemon: broken pipe";
        const AT_ONCE: &str =
            "lost the connection to the daemon right after the TLS handshake: connection closed";
        // Nobody listens there.
        let (https, http) = ("https://127.0.0.1:1", "http://127.0.0.1:1");
        let at = |endpoint| Asked {
            endpoint,
            ..Asked::default()
        };
        let told = Asked {
            tls_ca: Some(Path::new("ca.pem")),
            has_cert: true,
            ..at(https)
        };
        for (why, asked, says) in [
            (
                "received fatal alert: CertificateRequired",
                at(https),
                "the daemon asks for a certificate: give --tls-cert and --tls-key",
            ),
            (
                "received fatal alert: UnknownCA",
                told,
                "the daemon does not accept the certificate of --tls-cert",
            ),
            (
                "invalid peer certificate: UnknownIssuer",
                at(https),
                "give the authority that signed the daemon's certificate: --tls-ca",
            ),
            (
                "invalid peer certificate: UnknownIssuer",
                told,
                "none of the authorities in ca.pem signed its certificate",
            ),
            (
                AT_ONCE,
                at(https),
                "it may ask for a certificate: give --tls-cert and --tls-key",
            ),
            (
                AT_ONCE,
                told,
                "it may not trust the certificate of --tls-cert",
            ),
            (LOST, at(http), "does it want https?"),
            (LOST, at(https), ""),
            (LOST, at("unix:/x"), ""),
        ] {
            let said = advised(ErrorKind::Unreachable, "get status", why, asked);
            assert_eq!(said, says, "{why}");
        }
        assert_eq!(advised(ErrorKind::NotFound, "show", LOST, at(http)), "");
    }

    #[test]
    fn states_come_with_what_changes_them() {
        for (what, why, says) in [
            (
                "attach volume web",
                "volume \"web\" is attached",
                "`snapctl volume detach web` first; --force takes it over",
            ),
            (
                "delete volume web",
                "volume \"web\" is attached",
                "`snapctl volume detach web` first",
            ),
            (
                "export web/1 to x",
                "snapshot \"web/1\" is pending: its content is on its way into the store",
                "`snapctl snapshot show web/1` tells how far it is; `snapshot create --wait` waits for it",
            ),
            ("export a to x", "snapshot \"a\" is failed: lost", ""),
        ] {
            let said = advised(ErrorKind::Conflict, what, why, Asked::default());
            assert_eq!(said, says, "{why}");
        }
        let plain = "http://eu:1 is plain HTTP to another machine";
        let said = advised(ErrorKind::Invalid, "copy a", plain, Asked::default());
        assert_eq!(said, "--allow-plaintext allows it");
    }

    #[test]
    fn a_socket_that_is_closed_is_told_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grpc.sock");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let owner = user(fs::metadata(&path).unwrap().uid());
        let what = format!("connect to unix:{}", path.display());
        let why = "Permission denied";
        assert_eq!(
            advised(ErrorKind::Unreachable, &what, why, Asked::default()),
            format!(
                "the socket belongs to {owner}: run as that user or root, or set socket_mode in \
                 varved's settings"
            )
        );
        assert_eq!(user(0), "root");
        assert_eq!(user(u32::MAX - 7), "user 4294967288");
        let none = not_permitted(Path::new("/nowhere/x"));
        assert!(
            none.starts_with("run as the user that varved runs as or root"),
            "{none}"
        );
    }
}
