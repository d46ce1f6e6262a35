//! The format that Sigstore clients know: `trusted_root.json` (protobuf-specs TrustedRoot), written and read.
//!
//! It names logs and timestamp authorities, never keys that sign attestations: those come from elsewhere.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use super::{TrustError, TrustRoots, TrustedLog, Validity};
use crate::checkpoint::LogKey;
use crate::json;
use crate::key::{Algorithm, VerifyingKey};
use crate::timestamp::Timestamp;
use crate::tsa::Authority;

/// The media type that is written.
const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.trustedroot+json;version=0.1";
/// Every media type that is read.
const MEDIA_TYPES: [&str; 3] = [
    MEDIA_TYPE,
    "application/vnd.dev.sigstore.trustedroot.v0.1+json",
    "application/vnd.dev.sigstore.trustedroot.v0.2+json",
];
/// Most logs, and most authorities.
const MAX_ENTRIES: usize = 1_000;

/// What a `trusted_root.json` gives.
#[derive(Clone, Debug, Default)]
pub struct SigstoreRoots {
    /// The transparency logs.
    pub logs: Vec<TrustedLog>,
    /// The timestamp authorities.
    pub timestamp_authorities: Vec<Authority>,
}

impl SigstoreRoots {
    /// True if `bytes` look like this format and not like our own.
    pub fn is_one(bytes: &[u8]) -> bool {
        json::parse(bytes, &json::Limits::default()).is_ok_and(|document| document.get("mediaType").is_some())
    }

    /// Reads a `trusted_root.json`; certificate authorities and certificate logs are left aside.
    ///
    /// # Errors
    /// [`TrustError`] names the member at fault; a log with a key of a kind that is not known here is one.
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        let document = json::parse(bytes, &json::Limits::default())?;
        if !MEDIA_TYPES.contains(&document["mediaType"].as_str().unwrap_or_default()) {
            return Err(TrustError::MediaType);
        }
        let mut logs = Vec::new();
        for (index, log) in list(&document, "tlogs")?.iter().enumerate() {
            logs.push(trusted_log(log, &format!("/tlogs/{index}"))?);
        }
        let mut timestamp_authorities = Vec::new();
        for (index, authority) in list(&document, "timestampAuthorities")?.iter().enumerate() {
            let path = format!("/timestampAuthorities/{index}");
            timestamp_authorities.push(timestamp_authority(authority, &path)?);
        }
        Ok(Self {
            logs,
            timestamp_authorities,
        })
    }
}

fn list<'v>(document: &'v Value, member: &str) -> Result<&'v [Value], TrustError> {
    match document.get(member) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) if items.len() <= MAX_ENTRIES => Ok(items),
        Some(_) => Err(malformed(&format!("/{member}"))),
    }
}

fn malformed(path: &str) -> TrustError {
    TrustError::Malformed {
        path: path.to_owned(),
    }
}

/// A Rekor v1 is known by its key alone, as Sigstore knows it; any other log by the host of its base URL and its key.
fn trusted_log(log: &Value, path: &str) -> Result<TrustedLog, TrustError> {
    let path_of = |member: &str| format!("{path}/{member}");
    let base_url = log["baseUrl"].as_str().unwrap_or_default().to_owned();
    let raw = log["publicKey"]["rawBytes"].as_str().unwrap_or_default();
    let raw = BASE64_STANDARD
        .decode(raw)
        .map_err(|_| malformed(&path_of("publicKey/rawBytes")))?;
    let key = VerifyingKey::from_spki_der(&raw).map_err(|source| TrustError::Key {
        path: path_of("publicKey/rawBytes"),
        source,
    })?;
    let log_key = if key.algorithm() == Algorithm::Ed25519 {
        let host = host(&base_url).ok_or_else(|| malformed(&path_of("baseUrl")))?;
        LogKey::new(host, key)
    } else {
        LogKey::any_origin(key)
    };
    let log_key = log_key.map_err(|source| TrustError::Note {
        path: path_of("publicKey"),
        source,
    })?;
    Ok(TrustedLog {
        key: log_key,
        base_url,
        distrusted: false,
        validity: validity(&log["publicKey"]["validFor"], &path_of("publicKey/validFor"))?,
    })
}

/// What `validFor` says.
fn validity(valid_for: &Value, path: &str) -> Result<Validity, TrustError> {
    let time = |member: &str| match &valid_for[member] {
        Value::Null => Ok(None),
        value => match value.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
            Some(time) => Ok(Some(time)),
            None => Err(malformed(&format!("{path}/{member}"))),
        },
    };
    let validity = Validity {
        from: time("start")?,
        until: time("end")?,
    };
    if validity.is_reversed() {
        return Err(malformed(&format!("{path}/end")));
    }
    Ok(validity)
}

/// What `validFor` is to say. Sigstore clients want a start.
fn valid_for(validity: Validity) -> Value {
    let start = validity.from.unwrap_or(Timestamp::from_unix(0));
    let mut value = json!({"start": start.to_string()});
    if let Some(end) = validity.until {
        value["end"] = end.to_string().into();
    }
    value
}

/// The host of an http or https URL, without port.
fn host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or(url.strip_prefix("http://"))?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    Some(host).filter(|host| !host.is_empty())
}

fn timestamp_authority(authority: &Value, path: &str) -> Result<Authority, TrustError> {
    let path_of = |member: &str| format!("{path}/{member}");
    let listed = authority["certChain"]["certificates"]
        .as_array()
        .ok_or_else(|| malformed(&path_of("certChain/certificates")))?;
    let mut certificates = Vec::new();
    for certificate in listed {
        let raw = certificate["rawBytes"].as_str().unwrap_or_default();
        let der = BASE64_STANDARD
            .decode(raw)
            .map_err(|_| malformed(&path_of("certChain/certificates")))?;
        certificates.push(der);
    }
    let validity = validity(&authority["validFor"], &path_of("validFor"))?;
    let name = authority["uri"]
        .as_str()
        .or(authority["subject"]["commonName"].as_str())
        .unwrap_or("timestamp authority")
        .to_owned();
    let authority = Authority {
        name,
        certificates,
        valid_from: validity.from,
        valid_until: validity.until,
    };
    if !authority.is_well_formed() {
        return Err(malformed(&path_of("certChain/certificates")));
    }
    Ok(authority)
}

impl TrustRoots {
    /// The logs and timestamp authorities as a `trusted_root.json`, for any Sigstore client.
    pub fn to_sigstore(&self) -> Value {
        let trusted = self.logs.iter().filter(|log| !log.distrusted);
        let tlogs: Vec<Value> = trusted
            .map(|log| {
                json!({
                    "baseUrl": log.base_url,
                    "hashAlgorithm": "SHA2_256",
                    "logId": {"keyId": BASE64_STANDARD.encode(log.key.log_id)},
                    "publicKey": {
                        "keyDetails": log.key.key.key_details(),
                        "rawBytes": BASE64_STANDARD.encode(log.key.key.spki()),
                        "validFor": valid_for(log.validity),
                    },
                })
            })
            .collect();
        let mut root = json!({"mediaType": MEDIA_TYPE, "tlogs": tlogs});
        if !self.timestamp_authorities.is_empty() {
            let authorities = self.timestamp_authorities.iter().map(authority_value);
            root["timestampAuthorities"] = authorities.collect();
        }
        root
    }
}

fn authority_value(authority: &Authority) -> Value {
    let certificates: Vec<Value> = authority
        .certificates
        .iter()
        .map(|certificate| json!({"rawBytes": BASE64_STANDARD.encode(certificate)}))
        .collect();
    let validity = Validity {
        from: authority.valid_from,
        until: authority.valid_until,
    };
    json!({
        "certChain": {"certificates": certificates}, "uri": authority.name, "validFor": valid_for(validity),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical;
    use crate::key::SigningKey;

    fn log(base_url: &str, algorithm: Algorithm) -> Value {
        let key = SigningKey::generate(algorithm).expect("a key");
        let raw = BASE64_STANDARD.encode(key.verifying_key().spki());
        let valid_for = json!({"end": "2026-02-01T00:00:00Z", "start": "2026-01-01T00:00:00.5Z"});
        json!({"baseUrl": base_url, "publicKey": {"rawBytes": raw, "validFor": valid_for}})
    }

    fn root() -> Value {
        json!({
            "mediaType": MEDIA_TYPE,
            "tlogs": [
                log("https://rekor.example:443/path", Algorithm::Ed25519),
                log("https://v1.example", Algorithm::EcdsaP256),
            ],
            "timestampAuthorities": [{
                "uri": "https://tsa.example", "certChain": {"certificates": [{"rawBytes": "AA=="}, {"rawBytes": "AQ=="}]},
                "validFor": {"start": "2026-01-02T03:04:05Z"},
            }],
        })
    }

    #[test]
    fn what_sigstore_trusts_is_read_and_written_back() {
        let read = SigstoreRoots::parse(&canonical::to_vec(&root())).expect("a trusted root");
        let origins: Vec<&str> = read.logs.iter().map(|log| log.key.origin.as_str()).collect();
        assert_eq!(origins, ["rekor.example", ""]);
        for log in &read.logs {
            let Validity { from, until } = log.validity;
            let said = [from, until].map(|time| time.expect("it is said").to_string());
            assert_eq!(said, ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"]);
        }
        let roots = TrustRoots::new(vec![], None, vec![], vec![], vec![]).with_sigstore(read);
        let ours = TrustRoots::parse(roots.to_canonical()).expect("our own format");
        assert_eq!(ours.digest(), roots.digest());
        let written = SigstoreRoots::parse(&canonical::to_vec(&ours.to_sigstore())).expect("a trusted root");
        let again = TrustRoots::new(vec![], None, vec![], vec![], vec![]).with_sigstore(written);
        assert_eq!(again.to_canonical(), roots.to_canonical());
    }

    #[test]
    fn a_log_that_is_named_twice_is_refused_and_one_in_both_formats_is_in_use_when_both_say_so() {
        let read = SigstoreRoots::parse(&canonical::to_vec(&root())).expect("a trusted root");
        let mut own = read.logs[0].clone();
        let time = |text: &str| Some(text.parse::<Timestamp>().expect("a time"));
        own.validity = Validity {
            from: time("2026-01-10T00:00:00Z"),
            until: None,
        };
        let roots = TrustRoots::new(vec![], None, vec![own.clone()], vec![], vec![]);
        let both = roots.with_sigstore(read);
        assert_eq!(both.logs().len(), 2);
        let want = Validity {
            from: own.validity.from,
            until: time("2026-02-01T00:00:00Z"),
        };
        assert_eq!(both.logs()[0].validity, want);

        let twice = TrustRoots::new(vec![], None, vec![own.clone(), own], vec![], vec![]);
        let refused = TrustRoots::parse(twice.to_canonical()).expect_err("twice");
        assert!(refused.to_string().contains("`/logs/1/publicKey`"), "{refused}");
    }

    #[test]
    fn a_damaged_trusted_root_is_refused_by_its_member() {
        for (pointer, value, want) in [
            ("/tlogs", json!({}), "`/tlogs`"),
            ("/tlogs/0/baseUrl", json!("rekor.example"), "`/tlogs/0/baseUrl`"),
            (
                "/tlogs/0/publicKey/rawBytes",
                json!("*"),
                "`/tlogs/0/publicKey/rawBytes`",
            ),
            (
                "/tlogs/1/publicKey/rawBytes",
                json!("AAAA"),
                "`/tlogs/1/publicKey/rawBytes`",
            ),
            (
                "/tlogs/1/publicKey/validFor/end",
                json!(7),
                "`/tlogs/1/publicKey/validFor/end`",
            ),
            (
                "/tlogs/0/publicKey/validFor/end",
                json!("2025-01-01T00:00:00Z"),
                "`/tlogs/0/publicKey/validFor/end`",
            ),
            (
                "/timestampAuthorities/0/certChain/certificates",
                json!([{"rawBytes": "AA=="}]),
                "`/timestampAuthorities/0/certChain/certificates`",
            ),
            (
                "/timestampAuthorities/0/validFor/start",
                json!("yesterday"),
                "`/timestampAuthorities/0/validFor/start`",
            ),
            (
                "/mediaType",
                json!("application/json"),
                "not a Sigstore trusted root",
            ),
        ] {
            let mut altered = root();
            *altered.pointer_mut(pointer).expect("the member is there") = value;
            let refused = SigstoreRoots::parse(&canonical::to_vec(&altered)).expect_err(pointer);
            assert!(refused.to_string().contains(want), "{pointer}: {refused}");
            assert_eq!(refused.reason(), "TRUST_ROOTS_MALFORMED", "{pointer}");
        }
    }
}
