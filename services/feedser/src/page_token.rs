//! Page tokens and cursors: the event that was seen last, bound to the question that it belongs to.
//!
//! A token is opaque but no secret: it says nothing that the page before it did not say. The binding keeps a caller
//! from going on with another filter, which would leave events out without a word, and shows a token that was altered.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use stella_attest::digest::Digest;

use crate::error::Error;

/// Bytes of the binding at the beginning of a token.
const BINDING: usize = 16;

/// The question that tokens are bound to.
pub(crate) struct Question(String);

impl Question {
    /// The question that `parts` make up; parts are apart even if their texts run together.
    pub(crate) fn new(parts: &[&str]) -> Self {
        let mut text = String::new();
        for part in parts {
            text += &format!("{}:{part}", part.len());
        }
        Self(text)
    }

    /// The token for what comes after the event `id`.
    pub(crate) fn token(&self, id: &str) -> String {
        let mut bytes = self.binding(id).to_vec();
        bytes.extend_from_slice(id.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The event that `token` goes on after; an empty one is the beginning.
    pub(crate) fn after(&self, token: &str, field: &'static str) -> Result<Option<String>, Error> {
        if token.is_empty() {
            return Ok(None);
        }
        let refused = || Error::BadPageToken { field };
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
        let (binding, id) = bytes.split_first_chunk::<BINDING>().ok_or_else(refused)?;
        let id = std::str::from_utf8(id).map_err(|_| refused())?;
        if *binding != self.binding(id) {
            return Err(refused());
        }
        Ok(Some(id.to_owned()))
    }

    fn binding(&self, id: &str) -> [u8; BINDING] {
        let digest = Digest::of(format!("{}{}:{id}", self.0, id.len()).as_bytes());
        let mut binding = [0; BINDING];
        binding.copy_from_slice(&digest.as_bytes()[..BINDING]);
        binding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_with_its_own_question_only() {
        let question = Question::new(&["events", "dev", "SBOM"]);
        let token = question.token("evt_7");
        let mut of_another = URL_SAFE_NO_PAD.decode(&token).unwrap();
        *of_another.last_mut().unwrap() = b'8';
        let seen = Some("evt_7".to_owned());
        for (case, asked, token, want) in [
            ("the same", &question, token.clone(), Some(seen)),
            ("none", &question, String::new(), Some(None)),
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
            (
                "another event",
                &question,
                URL_SAFE_NO_PAD.encode(of_another),
                None,
            ),
            ("cut short", &question, token[4..].to_owned(), None),
            ("longer", &question, format!("{token}AAAA"), None),
            ("no id", &question, token[..22].to_owned(), None),
            ("no base64", &question, "?".repeat(22), None),
        ] {
            let got = asked.after(&token, "page_token").map_err(|error| error.reason());
            assert_eq!(got, want.ok_or_else(|| "BAD_PAGE_TOKEN".to_owned()), "{case}");
        }
    }
}
