//! Page tokens and cursors: a place in the order of appends, bound to the question that it belongs to.
//!
//! A token is opaque but no secret: it says nothing that the page before it did not say. The binding keeps a caller
//! from going on with another filter, which would leave events out without a word.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use stella_attest::digest::Digest;

use crate::error::Error;
use crate::store::Position;

/// The question that tokens are bound to.
pub(crate) struct Question([u8; 8]);

impl Question {
    /// The question that `parts` make up; parts are apart even if their texts run together.
    pub(crate) fn new(parts: &[&str]) -> Self {
        let mut text = String::new();
        for part in parts {
            text += &format!("{}:{part}", part.len());
        }
        let digest = Digest::of(text.as_bytes());
        let mut bound = [0; 8];
        bound.copy_from_slice(&digest.as_bytes()[..8]);
        Self(bound)
    }

    /// The token for what comes after `position`.
    pub(crate) fn token(&self, position: Position) -> String {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&position.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.0);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place that `token` stands for; an empty one is the beginning.
    pub(crate) fn position(&self, token: &str, field: &'static str) -> Result<Position, Error> {
        if token.is_empty() {
            return Ok(Position::default());
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok();
        let bytes: Option<[u8; 16]> = bytes.and_then(|bytes| bytes.try_into().ok());
        let bytes = bytes.ok_or(Error::BadPageToken { field })?;
        let (mut position, mut bound) = ([0; 8], [0; 8]);
        position.copy_from_slice(&bytes[..8]);
        bound.copy_from_slice(&bytes[8..]);
        if bound != self.0 {
            return Err(Error::BadPageToken { field });
        }
        Ok(Position(u64::from_be_bytes(position)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_with_its_own_question_only() {
        let question = Question::new(&["events", "dev", "SBOM"]);
        let token = question.token(Position(7));
        for (case, asked, token, want) in [
            ("the same", &question, token.clone(), Some(Position(7))),
            ("none", &question, String::new(), Some(Position(0))),
            (
                "another tenant",
                &Question::new(&["events", "prod", "SBOM"]),
                token.clone(),
                None,
            ),
            (
                "another cut",
                &Question::new(&["events", "devS", "BOM"]),
                token.clone(),
                None,
            ),
            ("cut short", &question, token[1..].to_owned(), None),
            ("longer", &question, format!("{token}AA"), None),
            ("no base64", &question, "?".repeat(22), None),
        ] {
            let got = asked
                .position(&token, "page_token")
                .map_err(|error| error.reason());
            assert_eq!(got, want.ok_or_else(|| "BAD_PAGE_TOKEN".to_owned()), "{case}");
        }
    }
}
