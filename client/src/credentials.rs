//! Secrets: tokens, which prove to a daemon for whom a client acts, and those of access keys.

use std::fmt;

use tonic::codegen::http::HeaderValue;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// The first characters of every token.
const PREFIX: &str = "varve_";
/// Limit on the length of a token, in bytes. Today's have 75.
const BYTES_MAX: usize = 512;

/// The secret of a token. Whoever has it acts for the token's account.
///
/// It is shown by [`expose`](Self::expose) only: `Debug` leaves it out, and there is no `Display`.
///
/// ```
/// use varve_client::TokenSecret;
///
/// let secret = TokenSecret::new("varve_0123456789abcdef")?;
/// assert_eq!(format!("{secret:?}"), "TokenSecret(..)");
/// # Ok::<(), varve_client::Error>(())
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct TokenSecret(String);

impl TokenSecret {
    /// Takes a token as the daemon has shown it: `varve_` and what follows, without a line feed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a text that is no token. The error does not repeat it.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let rest = text.strip_prefix(PREFIX).unwrap_or_default();
        if rest.is_empty() || text.len() > BYTES_MAX || !rest.bytes().all(is_allowed) {
            let why = "it is not a token of Varve, which begins with varve_";
            return Err(Error::new(ErrorKind::Invalid, "read a token", why));
        }
        Ok(Self(text))
    }

    /// Returns true if a text begins like a token, so that it must not be shown.
    #[must_use]
    pub fn is_like(text: &str) -> bool {
        text.trim_start().starts_with(PREFIX)
    }

    /// The token itself, to store or to pass on.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The value of the header `authorization`. It is marked as sensitive, so it is not shown
    /// either.
    pub(crate) fn header(&self) -> Result<HeaderValue> {
        let header = HeaderValue::try_from(format!("Bearer {}", self.0));
        let mut header = header.map_err(|_| {
            // The error of the header is not passed on: it may have the value.
            Error::internal("send a token", "it does not fit a header")
        })?;
        header.set_sensitive(true);
        Ok(header)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// Length of the secret of an access key.
const SECRET_BYTES: usize = 40;

/// The secret of an access key. Who has it signs requests for the key's account.
///
/// It is shown by [`expose`](Self::expose) only: `Debug` leaves it out, and there is no `Display`.
#[derive(Clone, Eq, PartialEq)]
pub struct SecretAccessKey(Zeroizing<String>);

impl SecretAccessKey {
    /// Takes a secret as the daemon has shown it; `None` for any other text.
    pub(crate) fn new(text: String) -> Option<Self> {
        let text = Zeroizing::new(text);
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
        let is_one = text.len() == SECRET_BYTES && text.bytes().all(is_allowed);
        is_one.then_some(Self(text))
    }

    /// The secret itself, to store or to pass on.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretAccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretAccessKey(..)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_secret_is_shown_by_nothing_but_its_own_method() {
        let text = "varve_0123-abcDEF.9";
        let secret = TokenSecret::new(text).unwrap();
        assert_eq!(secret.expose(), text);
        let header = secret.header().unwrap();
        assert_eq!(header.as_bytes(), b"Bearer varve_0123-abcDEF.9");
        for shown in [format!("{secret:?}"), format!("{header:?}")] {
            assert!(!shown.contains("0123"), "{shown}");
        }
    }

    #[test]
    fn a_text_that_is_no_token_is_refused_and_not_repeated() {
        let long = format!("varve_{}", "a".repeat(BYTES_MAX));
        for text in [
            "",
            "varve_",
            "hunter2",
            "varve_hunter2\n",
            "varve_hunter 2",
            "varve_hünter2",
            "Varve_hunter2",
            &long,
        ] {
            let error = TokenSecret::new(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains("nter") && !shown.contains("aaa"), "{shown}");
            }
        }
    }
}
