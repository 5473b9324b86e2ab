//! Tokens as texts: `varve_`, the 17 digits of the token's id, `_`, and 64 digits of the secret.
//!
//! The store keeps only a keyed hash of a secret, and the key is in a file of its own ([`key`]
//! (super::key)): who reads the catalog cannot use a token, nor make one.

use std::{borrow::Cow, fmt};

use varve_store::{SecretHash, TokenId};
use zeroize::Zeroize as _;

/// The beginning of every token. Scanners for leaked secrets find tokens by it.
const PREFIX: &str = "varve_";
const ID_DIGITS: usize = 17;
pub(super) const SECRET_BYTES: usize = 32;

/// A text without the secrets of the tokens in it: callers may send a token as a name by mistake.
pub(super) fn without_tokens(text: &str) -> Cow<'_, str> {
    let is_digit = |char: char| !char.is_ascii_hexdigit();
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(PREFIX) {
        let (before, token) = rest.split_at(at + PREFIX.len());
        let (id, secret) = token.split_at(token.find(is_digit).unwrap_or(token.len()));
        shown.push_str(before);
        shown.push_str(id);
        rest = secret;
        if let Some(secret) = secret.strip_prefix('_').filter(|_| !id.is_empty()) {
            shown.push_str("_...");
            rest = secret.trim_start_matches(|char: char| char.is_ascii_hexdigit());
        }
    }
    match shown.is_empty() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(shown + rest),
    }
}

/// A key for hashes of secrets, and for what is derived from it.
#[derive(Clone)]
pub(crate) struct HashKey(pub(super) [u8; 32]);

impl Drop for HashKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Shows nothing of it.
impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// A token as its bearer has it.
pub(crate) struct BearerToken {
    id: TokenId,
    secret: [u8; SECRET_BYTES],
}

impl Drop for BearerToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl BearerToken {
    /// A new token.
    ///
    /// # Errors
    ///
    /// The system has no random bytes.
    pub(crate) fn random() -> Result<Self, varve_store::Error> {
        let mut secret = [0; SECRET_BYTES];
        varve_store::fill_random(&mut secret)?;
        Ok(Self {
            id: TokenId::random()?,
            secret,
        })
    }

    /// The token with this text; `None` for any other text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        let (id, rest) = rest.split_at_checked(ID_DIGITS)?;
        let secret = of_digits(rest.strip_prefix('_')?)?;
        let id = format!("tok-{id}").parse().ok()?;
        Some(Self { id, secret })
    }

    pub(crate) const fn id(&self) -> TokenId {
        self.id
    }

    /// The keyed hash of its secret, as the store keeps it.
    pub(crate) fn hash(&self, key: &HashKey) -> SecretHash {
        SecretHash::from_bytes(*blake3::keyed_hash(&key.0, &self.secret).as_bytes())
    }

    /// Returns true if this is the secret with that hash. Takes the same time for every answer.
    pub(crate) fn has_hash(&self, key: &HashKey, hash: &SecretHash) -> bool {
        // The comparison of `blake3::Hash` is in constant time.
        blake3::keyed_hash(&key.0, &self.secret) == *hash.as_bytes()
    }

    /// Its text, for the one answer that shows it.
    pub(crate) fn reveal(&self) -> String {
        let id = self.id.to_string();
        let id = id.strip_prefix("tok-").unwrap_or(&id);
        format!("{PREFIX}{id}_{}", digits(&self.secret))
    }
}

/// Shows its id only.
impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerToken({})", self.id)
    }
}

/// A secret as digits.
pub(super) fn digits(secret: &[u8; SECRET_BYTES]) -> String {
    secret.iter().map(|it| format!("{it:02x}")).collect()
}

/// The secret with these digits, as [`digits`] writes them.
pub(super) fn of_digits(digits: &str) -> Option<[u8; SECRET_BYTES]> {
    let mut secret = [0; SECRET_BYTES];
    let (pairs, odd) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != SECRET_BYTES || !odd.is_empty() {
        return None;
    }
    for (byte, [high, low]) in secret.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(secret)
}

/// The value of a digit as [`digits`] writes it.
const fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_left_out_of_texts() {
        let secret = "5a".repeat(SECRET_BYTES);
        let token = format!("varve_0123456789abcdef0_{secret}");
        let shown = without_tokens(&token);
        assert_eq!(shown, "varve_0123456789abcdef0_...");
        let cut = format!("snapshot {:?} not found, nor {}", &token[..60], token);
        let shown = without_tokens(&cut);
        assert!(!shown.contains("5a5a"), "{shown}");
        assert!(
            shown.ends_with(", nor varve_0123456789abcdef0_..."),
            "{shown}"
        );
        for plain in [
            "",
            "varve_",
            "a varve_ticket_...",
            "varve_x_5a5a",
            "db/varve_0_",
        ] {
            let expected = plain.replace("varve_0_", "varve_0_...");
            assert_eq!(without_tokens(plain), expected);
        }
    }

    #[test]
    fn a_token_is_its_text_and_shows_no_secret_otherwise() {
        let token = BearerToken::random().unwrap();
        let text = token.reveal();
        assert_eq!(text.len(), PREFIX.len() + ID_DIGITS + 1 + 2 * SECRET_BYTES);
        let again = BearerToken::parse(&text).unwrap();
        assert_eq!((again.id(), again.reveal()), (token.id(), text.clone()));
        let shown = format!("{token:?}{:?}", HashKey([7; 32]));
        assert!(!shown.contains(&text[24..]), "{shown}");
        assert_ne!(BearerToken::random().unwrap().reveal(), text);
    }

    #[test]
    fn only_the_secret_and_the_key_give_the_hash() {
        let (key, other) = (HashKey([1; 32]), HashKey([2; 32]));
        let token = BearerToken::random().unwrap();
        let hash = token.hash(&key);
        assert!(token.has_hash(&key, &hash));
        assert!(!token.has_hash(&other, &hash));
        assert!(!BearerToken::random().unwrap().has_hash(&key, &hash));
        // Another token with the same secret is another token, by its id.
        let text = token.reveal();
        let last = if text.ends_with('0') { "1" } else { "0" };
        let forged = format!("{}{last}", &text[..text.len() - 1]);
        assert!(!BearerToken::parse(&forged).unwrap().has_hash(&key, &hash));
    }

    proptest! {
        #[test]
        fn every_text_is_a_token_or_refused(text in "(varve_)?[0-9a-fA-F_é]{0,90}") {
            if let Some(token) = BearerToken::parse(&text) {
                prop_assert_eq!(token.reveal(), text);
            }
        }

        #[test]
        fn changed_texts_are_no_token_or_another(at in 0_usize..88, byte in any::<char>()) {
            let token = BearerToken::random().unwrap().reveal();
            let mut chars: Vec<char> = token.chars().collect();
            chars[at] = byte;
            let changed: String = chars.into_iter().collect();
            if let Some(parsed) = BearerToken::parse(&changed) {
                prop_assert_eq!(parsed.reveal(), changed);
            }
        }
    }
}
