//! Messages with secrets, shown without them.

use std::fmt::{self, Debug};

use crate::v1::{AttachVolumeResponse, CreateAccessKeyResponse, CreateTokenResponse};

impl Debug for CreateTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateTokenResponse")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl Debug for CreateAccessKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateAccessKeyResponse")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// The name of the export may have a ticket.
impl Debug for AttachVolumeResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachVolumeResponse")
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = "hunter2".to_owned();
        let token = CreateTokenResponse {
            secret: secret.clone(),
            ..CreateTokenResponse::default()
        };
        let access_key = CreateAccessKeyResponse {
            secret: secret.clone(),
            ..CreateAccessKeyResponse::default()
        };
        let attached = AttachVolumeResponse {
            nbd_uris: vec![secret.clone()],
            export: secret,
            ..AttachVolumeResponse::default()
        };
        for shown in [
            format!("{token:?}"),
            format!("{access_key:?}"),
            format!("{attached:?}"),
        ] {
            assert!(
                shown.contains("Response") && !shown.contains("hunter"),
                "{shown}"
            );
        }
    }
}
