//! Certificates, made by `openssl`.

use std::path::PathBuf;

use crate::{
    daemon::Options,
    process::{command, run},
    programs::tool,
    scratch::Scratch,
};

/// A certificate for the loopback address, with an authority of its own.
#[derive(Debug)]
pub struct Identity {
    /// Its authority's certificate.
    pub authority: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Identity {
    /// Makes a certificate, in files with fixed names.
    #[must_use]
    pub fn make(scratch: &Scratch) -> Self {
        let [authority, authority_key, cert, key, request] =
            ["ca.pem", "ca.key", "cert.pem", "key.pem", "request.pem"]
                .map(|name| scratch.join(name));
        let openssl = |arguments: &str| {
            let arguments = arguments.split(' ').map(|argument| match argument {
                "CA" => authority.to_str().unwrap(),
                "CA_KEY" => authority_key.to_str().unwrap(),
                "CERT" => cert.to_str().unwrap(),
                "KEY" => key.to_str().unwrap(),
                "REQUEST" => request.to_str().unwrap(),
                other => other,
            });
            run(command(tool("openssl"), arguments)).ok();
        };
        openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=authority -days 2 -keyout CA_KEY -out CA",
        );
        openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=varved -addext subjectAltName=IP:127.0.0.1 -keyout KEY -out REQUEST",
        );
        openssl(
            "x509 -req -in REQUEST -CA CA -CAkey CA_KEY -days 2 -copy_extensions copy -out CERT",
        );
        Self {
            authority,
            cert,
            key,
        }
    }

    /// Options for a daemon that serves gRPC over TCP with this certificate.
    #[must_use]
    pub fn serve(&self, options: Options) -> Options {
        options
            .tcp()
            .env("VARVE_GRPC_TLS_CERT", &self.cert)
            .env("VARVE_GRPC_TLS_KEY", &self.key)
    }

    /// The same, with client certificates required.
    #[must_use]
    pub fn serve_known(&self, options: Options) -> Options {
        let options = self.serve(options);
        options.env("VARVE_GRPC_TLS_CLIENT_CA", &self.authority)
    }
}
