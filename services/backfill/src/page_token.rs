//! Page tokens: a place in the list of what a job could not prove, bound to that job.
//!
//! A token is opaque but no secret: it says nothing that the page before it did not say. The binding keeps a caller from
//! going on in another job's list, which would leave events out without a word.

use stella_attest::digest::Digest;

use crate::error::Error;

/// The token for what comes after row `number` of the list of `job`.
pub(crate) fn write(job: &str, number: u64) -> String {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[8..].copy_from_slice(&bound(job));
    hex::encode(bytes)
}

/// The row that `token` goes on after; an empty token is the beginning.
pub(crate) fn read(job: &str, token: &str) -> Result<u64, Error> {
    if token.is_empty() {
        return Ok(0);
    }
    let mut bytes = [0; 16];
    hex::decode_to_slice(token, &mut bytes).map_err(|_| Error::BadPageToken)?;
    let (number, rest) = bytes.split_first_chunk::<8>().ok_or(Error::BadPageToken)?;
    if rest != bound(job) {
        return Err(Error::BadPageToken);
    }
    Ok(u64::from_be_bytes(*number))
}

fn bound(job: &str) -> [u8; 8] {
    let digest = Digest::of(job.as_bytes());
    let mut bound = [0; 8];
    bound.copy_from_slice(&digest.as_bytes()[..8]);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_in_its_own_job_only() {
        let token = write("bf_1", 7);
        for (case, job, token, want) in [
            ("the same", "bf_1", token.clone(), Some(7)),
            ("none", "bf_1", String::new(), Some(0)),
            ("another job", "bf_2", token.clone(), None),
            ("cut short", "bf_1", token[2..].to_owned(), None),
            ("longer", "bf_1", format!("{token}00"), None),
            ("no hex", "bf_1", "?".repeat(32), None),
        ] {
            let got = read(job, &token).map_err(|error| error.reason());
            assert_eq!(got, want.ok_or_else(|| "BAD_PAGE_TOKEN".to_owned()), "{case}");
        }
    }
}
