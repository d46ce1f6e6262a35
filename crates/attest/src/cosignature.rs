//! Cosignatures of witnesses (C2SP tlog-cosignature): "this checkpoint extends all that I saw before, at this time".
//!
//! A cosignature is a line of the checkpoint's note, `8-byte time ‖ Ed25519 signature` over `cosignature/v1\ntime T\n`
//! and the note's text. Its time is the only one that a log of ours gets, and it is the witness's, not the log's.

use crate::key::{Algorithm, SigningKey, VerifyingKey};
use crate::note::{Note, NoteError, NoteKey, NoteSignature};
use crate::timestamp::Timestamp;

/// The last second that has a four-digit year.
const LATEST: i64 = 253_402_300_799;

/// The line by which the witness `name` cosigns `note` at the time `at`, ended by a newline.
///
/// Signs whatever it is given: that the checkpoint extends the last one seen is for the caller to know.
pub fn cosign(name: &str, key: &SigningKey, note: &Note, at: Timestamp) -> Result<String, NoteError> {
    let public = NoteKey::cosignature(name, key.verifying_key())?;
    let time = u64::try_from(at.unix()).unwrap_or(0);
    let signature = key
        .sign(&message(note.text(), time))
        .map_err(NoteError::Signing)?;
    let bytes = [&time.to_be_bytes()[..], &signature].concat();
    Ok(NoteSignature {
        name: name.to_owned(),
        id: *public.id(),
        bytes,
    }
    .to_string())
}

/// When `witness` cosigned `note`: the earliest time, if it did so more than once; `None` if there is no line by it.
///
/// A line by the witness that does not verify, or bears no time, is an error, also beside one that does.
pub fn verify(note: &Note, witness: &NoteKey) -> Result<Option<Timestamp>, NoteError> {
    let mut earliest = None;
    for line in note.signatures_by(witness) {
        let time = time_of(note.text(), witness.key(), &line.bytes).filter(|_| witness.is_witness());
        let time = time.ok_or_else(|| NoteError::Signature(witness.name().to_owned()))?;
        earliest = Some(earliest.map_or(time, |known: Timestamp| known.min(time)));
    }
    Ok(earliest)
}

/// The time of one cosignature, if it verifies.
pub(crate) fn time_of(text: &str, key: &VerifyingKey, bytes: &[u8]) -> Option<Timestamp> {
    let (time, signature) = bytes.split_first_chunk::<8>()?;
    let time = u64::from_be_bytes(*time);
    let seconds = i64::try_from(time)
        .ok()
        .filter(|seconds| (1..=LATEST).contains(seconds))?;
    let holds = key.algorithm() == Algorithm::Ed25519 && key.verify(&message(text, time), signature);
    holds.then(|| Timestamp::from_unix(seconds))
}

fn message(text: &str, time: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {time}\n{text}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::NoteSigner;

    const NAME: &str = "witness.example/w1";

    struct Cosigned {
        note: Note,
        witness: NoteKey,
    }

    fn cosigned(at: i64) -> Cosigned {
        let (log, witness) = (key(), key());
        let note = Note::sign("log\n1\nAA==\n", &NoteSigner::new("log", &log).unwrap()).unwrap();
        let line = cosign(NAME, &witness, &note, Timestamp::from_unix(at)).unwrap();
        let witness = NoteKey::cosignature(NAME, witness.verifying_key()).unwrap();
        Cosigned {
            note: note.with_lines(&line).unwrap(),
            witness,
        }
    }

    fn key() -> SigningKey {
        SigningKey::generate(Algorithm::Ed25519).unwrap()
    }

    #[test]
    fn a_cosignature_proves_its_time() {
        let Cosigned { note, witness } = cosigned(1_700_000_000);
        assert_eq!(
            verify(&note, &witness).unwrap(),
            Some(Timestamp::from_unix(1_700_000_000))
        );
        assert_eq!(note.open(&[&witness]).unwrap(), [&witness]);
        let stranger = NoteKey::cosignature(NAME, key().verifying_key()).unwrap();
        assert_eq!(verify(&note, &stranger).unwrap(), None);
    }

    #[test]
    fn the_earliest_of_several_times_counts_and_each_must_verify() {
        let witness = key();
        let public = NoteKey::cosignature(NAME, witness.verifying_key()).unwrap();
        let bare = Note::sign("log\n1\nAA==\n", &NoteSigner::new("log", &key()).unwrap()).unwrap();
        let line = |note: &Note, at| cosign(NAME, &witness, note, Timestamp::from_unix(at)).unwrap();
        let both = format!("{bare}{}{}", line(&bare, 20), line(&bare, 10));
        let note = Note::parse(both.as_bytes()).unwrap();
        assert_eq!(verify(&note, &public).unwrap(), Some(Timestamp::from_unix(10)));

        let elsewhere = Note::sign("log\n2\nAA==\n", &NoteSigner::new("log", &key()).unwrap()).unwrap();
        let spoiled = format!("{bare}{}{}", line(&bare, 10), line(&elsewhere, 10));
        let note = Note::parse(spoiled.as_bytes()).unwrap();
        assert_eq!(verify(&note, &public).unwrap_err().reason(), "NOTE_SIGNATURE");
    }

    #[test]
    fn no_bent_cosignature_counts() {
        let Cosigned { note, witness } = cosigned(1_700_000_000);
        let line = note.signatures()[1].clone();
        for place in 0..line.bytes.len() {
            let mut bent = line.clone();
            bent.bytes[place] ^= 1;
            let note = note.clone().with_lines(&bent.to_string()).unwrap();
            let found = verify(&note, &witness).map_err(|error| error.reason());
            assert_eq!(found, Err("NOTE_SIGNATURE"), "byte {place}");
        }
        let mut cut = line.clone();
        cut.bytes.truncate(8);
        let note = note.clone().with_lines(&cut.to_string()).unwrap();
        assert_eq!(
            verify(&note, &witness).map_err(|error| error.reason()),
            Err("NOTE_SIGNATURE")
        );
        for at in [0, -1] {
            let Cosigned { note, witness } = cosigned(at);
            let found = verify(&note, &witness).map_err(|error| error.reason());
            assert_eq!(found, Err("NOTE_SIGNATURE"), "time {at}");
        }
    }

    #[test]
    fn a_logs_own_signature_is_no_cosignature() {
        let log = key();
        let signer = NoteSigner::new("log", &log).unwrap();
        let note = Note::sign("log\n1\nAA==\n", &signer).unwrap();
        assert_eq!(
            verify(&note, signer.public()).map_err(|error| error.reason()),
            Err("NOTE_SIGNATURE")
        );
        let as_witness = NoteKey::cosignature("log", log.verifying_key()).unwrap();
        assert_eq!(verify(&note, &as_witness).unwrap(), None);
    }
}
