//! Endpoints of daemons, and connections to them.

use std::{
    error::Error as StdError,
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Once,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Uri};
use varve_proto::v1::{
    account_service_client::AccountServiceClient, content_service_client::ContentServiceClient,
    copy_service_client::CopyServiceClient, gc_service_client::GcServiceClient,
    image_service_client::ImageServiceClient, remote_service_client::RemoteServiceClient,
    replication_service_client::ReplicationServiceClient,
    snapshot_service_client::SnapshotServiceClient, status_service_client::StatusServiceClient,
    volume_service_client::VolumeServiceClient,
};

use crate::{
    activity::{Activity, Connection},
    credentials::TokenSecret,
    error::{Error, ErrorKind, Result, innermost},
    limits::{
        CONNECT_TIMEOUT, CONTENT_MESSAGE_BYTES_MAX, HTTP2_CONNECTION_WINDOW_BYTES,
        HTTP2_FRAME_BYTES, HTTP2_STREAM_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT,
        LOCAL_CONNECTION_WINDOW_BYTES, LOCAL_STREAM_WINDOW_BYTES, MESSAGE_BYTES_MAX,
        SOCKET_BUFFER_BYTES,
    },
};

/// The endpoint of a daemon.
///
/// Written as `unix:PATH`, `http://HOST:PORT` or `https://HOST:PORT`:
///
/// ```
/// use varve_client::Endpoint;
///
/// let endpoint: Endpoint = "unix:/run/varve/grpc.sock".parse()?;
/// assert_eq!(endpoint, Endpoint::unix("/run/varve/grpc.sock"));
/// assert!("ftp://example.com".parse::<Endpoint>().is_err());
/// # Ok::<(), varve_client::Error>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint(Address);

#[derive(Clone, Debug, Eq, PartialEq)]
enum Address {
    Unix(PathBuf),
    Http(Uri),
    Https(Uri),
}

impl Endpoint {
    /// The endpoint of a unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self(Address::Unix(path.into()))
    }

    /// Advice for the user when nobody answers. `None` if there is an answer or a refusal.
    fn question(&self, error: &(dyn StdError + 'static)) -> Option<&'static str> {
        let mut answers = false;
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
                // Any program may send an answer that is not TLS.
                answers |= matches!(inner, Some(error) if !matches!(error, rustls::Error::InvalidMessage(_)));
                answers |= error.kind() == io::ErrorKind::PermissionDenied;
            }
            next = error.source();
        }
        match self.0 {
            _ if answers => None,
            Address::Unix(_) | Address::Http(_) => Some("is varved running there?"),
            Address::Https(_) => Some("is varved running there, with TLS?"),
        }
    }

    /// Returns true if the connection has TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        matches!(self.0, Address::Https(_))
    }

    /// Returns true if others can read and change the traffic: plain HTTP to another machine.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        let Address::Http(uri) = &self.0 else {
            return false;
        };
        let host = uri.host().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback = address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
        // A name may stand for any address, this one too; but by RFC 6761 it does not.
        !is_loopback && host != "localhost"
    }

    /// Returns true if the daemon is certainly on this machine, so that bytes cost no bandwidth.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.0, Address::Unix(_))
    }
}

impl Default for Endpoint {
    /// The endpoint of the system's daemon: `unix:/run/varve/grpc.sock`.
    fn default() -> Self {
        Self::unix("/run/varve/grpc.sock")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Http(uri) | Address::Https(uri) => {
                let scheme = uri.scheme_str().unwrap_or_default();
                let authority = uri
                    .authority()
                    .map(|authority| authority.as_str())
                    .unwrap_or_default();
                write!(f, "{scheme}://{authority}")
            }
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::new(
                ErrorKind::Invalid,
                format!("endpoint {text:?}"),
                why,
            ))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            // gRPC's syntax has two slashes before an absolute path.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return refuse("no path: write unix:PATH");
            }
            return Ok(Self::unix(path));
        }
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return refuse("write unix:PATH, http://HOST:PORT or https://HOST:PORT");
        }
        let uri: Uri = match text.parse() {
            Ok(uri) => uri,
            Err(error) => return refuse(&format!("not a URI: {error}")),
        };
        if uri.host().is_none_or(str::is_empty) {
            return refuse("no host: write http://HOST:PORT or https://HOST:PORT");
        }
        if uri.port_u16().is_none() {
            return refuse("no port: write http://HOST:PORT or https://HOST:PORT");
        }
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return refuse("it must not have a user name or password");
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return refuse("nothing may follow the port");
        }
        Ok(Self(if uri.scheme_str() == Some("https") {
            Address::Https(uri)
        } else {
            Address::Http(uri)
        }))
    }
}

/// TLS settings of a connection: the authorities to trust, and the client certificate. The default
/// trusts the authorities that this machine trusts, and presents no certificate.
#[derive(Clone, Default)]
pub struct Tls {
    authorities: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Trusts these authorities, in PEM, and no others.
    #[must_use]
    pub fn trusting(mut self, authorities: Vec<u8>) -> Self {
        self.authorities = Some(authorities);
        self
    }

    /// Presents a certificate to daemons that request one: the chain and its private key, in PEM.
    #[must_use]
    pub fn showing(mut self, cert: Vec<u8>, key: Vec<u8>) -> Self {
        self.identity = Some((cert, key));
        self
    }

    /// Checks that these settings are valid for a connection to `endpoint`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if a certificate cannot be read, or the key does not belong to it.
    pub fn check(&self, endpoint: &Endpoint) -> Result<()> {
        match &endpoint.0 {
            Address::Https(uri) => self.settings(uri.clone(), endpoint).map(drop),
            Address::Unix(_) | Address::Http(_) => Ok(()),
        }
    }

    fn settings(&self, uri: Uri, endpoint: &Endpoint) -> Result<tonic::transport::Endpoint> {
        install_crypto();
        settings(uri).tls_config(self.config()).map_err(|error| {
            let why = format!(
                "its authorities, certificate or key cannot be used: {}",
                innermost(&error)
            );
            Error::new(ErrorKind::Invalid, format!("connect to {endpoint}"), why).with_source(error)
        })
    }

    fn config(&self) -> ClientTlsConfig {
        let config = match &self.authorities {
            Some(authorities) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match &self.identity {
            Some((cert, key)) => config.identity(Identity::from_pem(cert, key)),
            None => config,
        }
    }
}

impl fmt::Debug for Tls {
    /// The private key is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("trusts_its_own", &self.authorities.is_some())
            .field("shows_a_certificate", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

/// The settings of a connection: the daemon's endpoint, TLS, and the token that the client shows.
///
/// ```no_run
/// use varve_client::{Client, Connector, Endpoint, Result, TokenSecret};
///
/// async fn connect(secret: TokenSecret) -> Result<Client> {
///     let endpoint: Endpoint = "https://varve.example.com:7420".parse()?;
///     Connector::new(endpoint).token(secret).connect().await
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Connector {
    endpoint: Endpoint,
    tls: Tls,
    token: Option<TokenSecret>,
}

impl Connector {
    /// Settings for the daemon at `endpoint`, with the default of [`Tls`] and without a token.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            tls: Tls::default(),
            token: None,
        }
    }

    /// Uses these settings of TLS if the endpoint is `https`.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Sends this token with every call: the client then acts for its account.
    #[must_use]
    pub fn token(mut self, token: TokenSecret) -> Self {
        self.token = Some(token);
        self
    }

    /// Connects. The token is not checked before the first call.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unreachable`] if no daemon answers there within 5 s, [`ErrorKind::Invalid`] if
    /// the settings of TLS cannot be used, or if a token would go to another machine without TLS:
    /// see [`Endpoint::is_exposed`].
    pub async fn connect(&self) -> Result<Client> {
        let endpoint = &self.endpoint;
        if self.token.is_some() && endpoint.is_exposed() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("connect to {endpoint}"),
                "a token is not sent to another machine without TLS, where others can read it: use \
                 https",
            ));
        }
        let authorization = self.token.as_ref().map(TokenSecret::header).transpose()?;
        let connected = match &endpoint.0 {
            Address::Unix(path) => connect_unix(path.clone()).await,
            Address::Http(uri) => settings(uri.clone()).connect().await,
            Address::Https(uri) => self.tls.settings(uri.clone(), endpoint)?.connect().await,
        };
        match connected {
            Ok(channel) => Ok(Client {
                connection: Connection::new(channel, endpoint.has_tls(), authorization),
                endpoint: endpoint.clone(),
            }),
            Err(error) => Err(Error::new(
                ErrorKind::Unreachable,
                format!("connect to {endpoint}"),
                match endpoint.question(&error) {
                    Some(question) => format!("{}: {question}", innermost(&error)),
                    None => innermost(&error),
                },
            )
            .with_source(error)),
        }
    }
}

/// A connection to a daemon. Cloning it is cheap and shares the connection. The client reconnects
/// when the connection breaks.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Connection,
    endpoint: Endpoint,
}

impl Client {
    /// Connects to the daemon at `endpoint`, trusting the authorities that this machine trusts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unreachable`] if no daemon answers there within 5 s.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self> {
        Self::connect_with(endpoint, &Tls::default()).await
    }

    /// Connects to the daemon at `endpoint`, with these settings if that is `https`. A
    /// [`Connector`] has more settings.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unreachable`] if no daemon answers there within 5 s, [`ErrorKind::Invalid`] if
    /// the settings cannot be used.
    pub async fn connect_with(endpoint: &Endpoint, tls: &Tls) -> Result<Self> {
        let connector = Connector::new(endpoint.clone()).tls(tls.clone());
        connector.connect().await
    }

    /// The endpoint of this client's daemon.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn snapshot_service(&self) -> SnapshotServiceClient<Connection> {
        SnapshotServiceClient::new(self.connection.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn content_service(&self) -> ContentServiceClient<Connection> {
        ContentServiceClient::new(self.connection.clone())
            .max_decoding_message_size(CONTENT_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The time for which the daemon has been silent while calls of this client or its clones wait.
    pub fn activity(&self) -> &Activity {
        self.connection.activity()
    }

    /// The connection, for calls that the generated clients do not make.
    pub(crate) fn connection(&self) -> Connection {
        self.connection.clone()
    }

    pub(crate) fn status_service(&self) -> StatusServiceClient<Connection> {
        StatusServiceClient::new(self.connection.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn account_service(&self) -> AccountServiceClient<Connection> {
        AccountServiceClient::new(self.connection.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn copy_service(&self) -> CopyServiceClient<Connection> {
        CopyServiceClient::new(self.connection.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn remote_service(&self) -> RemoteServiceClient<Connection> {
        RemoteServiceClient::new(self.connection.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn gc_service(&self) -> GcServiceClient<Connection> {
        GcServiceClient::new(self.connection.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn replication_service(&self) -> ReplicationServiceClient<Connection> {
        ReplicationServiceClient::new(self.connection.clone())
            .max_decoding_message_size(CONTENT_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn image_service(&self) -> ImageServiceClient<Connection> {
        ImageServiceClient::new(self.connection.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn volume_service(&self) -> VolumeServiceClient<Connection> {
        VolumeServiceClient::new(self.connection.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

fn settings(uri: Uri) -> tonic::transport::Endpoint {
    Channel::builder(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
}

async fn connect_unix(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    // HTTP/2 needs an authority, and any will do on a unix socket.
    let settings = settings(Uri::from_static("http://localhost"))
        .initial_stream_window_size(LOCAL_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(LOCAL_CONNECTION_WINDOW_BYTES);
    settings
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { open_socket(&path).await.map(TokioIo::new) }
        }))
        .await
}

async fn open_socket(path: &Path) -> std::io::Result<UnixStream> {
    let socket = UnixStream::connect(path).await?;
    // As much as an ordinary user may ask for: a refusal only costs speed.
    if let Err(error) =
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)
    {
        tracing::debug!(%error, "the socket keeps its send buffer");
    }
    Ok(socket)
}

/// rustls needs a provider. The first one stays, even if the program has installed it.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::ring::default_provider()
            .install_default()
            .is_err()
        {
            tracing::debug!("the program has installed a TLS provider already");
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    fn refusal(text: &str) -> String {
        let error = text.parse::<Endpoint>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error.to_string()
    }

    #[test]
    fn endpoints_are_read_and_shown_alike() {
        for text in [
            "unix:/run/varve/grpc.sock",
            "unix:data/grpc.sock",
            "http://127.0.0.1:7420",
            "https://[::1]:7420",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!(
            "unix:///run/x".parse::<Endpoint>().unwrap(),
            Endpoint::unix("/run/x")
        );
        assert_eq!(
            "http://host:1/".parse::<Endpoint>().unwrap().to_string(),
            "http://host:1"
        );
        assert!("unix:/x".parse::<Endpoint>().unwrap().is_unix());
        assert!(!"http://localhost:1".parse::<Endpoint>().unwrap().is_unix());
    }

    #[test]
    fn plain_http_to_other_machines_is_exposed() {
        for (text, exposed) in [
            ("unix:/x", false),
            ("https://example.com:1", false),
            ("http://127.0.0.1:1", false),
            ("http://127.3.4.5:1", false),
            ("http://[::1]:1", false),
            ("http://localhost:1", false),
            ("http://localhost.example.com:1", true),
            ("http://10.0.0.1:1", true),
            ("http://[fe80::1]:1", true),
            ("http://0.0.0.0:1", true),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.is_exposed(), exposed, "{text}");
        }
    }

    #[test]
    fn a_wrong_endpoint_is_told_what_is_wrong() {
        assert_eq!(
            refusal("unix:"),
            "endpoint \"unix:\": no path: write unix:PATH"
        );
        assert!(
            refusal("/run/varve.sock")
                .contains("write unix:PATH, http://HOST:PORT or https://HOST:PORT")
        );
        assert!(refusal("").contains("write unix:PATH"));
        assert!(refusal("http://example.com").contains("no port"));
        assert!(refusal("https://example.com:7420/store").contains("nothing may follow the port"));
        assert!(refusal("http://me:secret@example.com:1").contains("user name"));
        assert!(refusal("http://exa mple:1").contains("not a URI"));
        assert!(
            refusal("http://:7420").contains("not a URI")
                || refusal("http://:7420").contains("no host")
        );
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::unix(dir.path().join("none.sock"));
        let error = Client::connect(&endpoint).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        let text = error.to_string();
        assert!(
            text.contains("none.sock") && text.contains("No such file"),
            "{text}"
        );
    }
}
