//! A real timestamp authority, and answers that are none of its.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use stella_attest::tsa::{self, Authority};
use stella_testkit::peers::{Proxy, Stream, Toxiproxy, Tsa as Peer};
use stella_tlog::tsa::{TimestampAuthority, TsaClientError, TsaConfig};

use crate::door::{Deed, Door, answer, rewritten};
use crate::given::with_provider;

/// A TimeStampResp with the status `rejection` and nothing else.
const REJECTION: &[u8] = &[0x30, 5, 0x30, 3, 2, 1, 2];

fn authority(name: &str, chain_pem: &str) -> Authority {
    let mut certificates = Vec::new();
    for block in chain_pem.split("-----BEGIN CERTIFICATE-----").skip(1) {
        let (text, _) = block.split_once("-----END CERTIFICATE-----").expect("PEM");
        let text: String = text.split_whitespace().collect();
        certificates.push(BASE64_STANDARD.decode(text).expect("base64"));
    }
    Authority {
        name: name.to_owned(),
        certificates,
        valid_from: None,
        valid_until: None,
    }
}

fn configured(url: &str, authorities: &[Authority]) -> TsaConfig {
    with_provider();
    TsaConfig::new(url, authorities.to_vec())
}

fn client(url: &str, authorities: &[Authority]) -> TimestampAuthority {
    TimestampAuthority::open(configured(url, authorities)).expect("a client")
}

/// The same, which gives up soon.
fn hasty(url: &str, authorities: &[Authority]) -> TimestampAuthority {
    let mut config = configured(url, authorities);
    (config.budget, config.attempt_timeout) = (Duration::from_millis(700), Duration::from_millis(300));
    TimestampAuthority::open(config).expect("a client")
}

/// The address and the path of a peer's URL.
fn parts(url: &str) -> (&str, &str) {
    let host = url.strip_prefix("http://").expect("http");
    let slash = host.find('/').expect("a path");
    host.split_at(slash)
}

async fn door_before(peer: &Peer) -> (Door, String) {
    let (host, path) = parts(&peer.url);
    let door = Door::before(&format!("http://{host}")).await;
    let url = format!("{}{path}", door.url);
    (door, url)
}

/// The reason, and the one within.
fn reason<T>(outcome: Result<T, TsaClientError>) -> String {
    match outcome {
        Ok(_) => "believed".to_owned(),
        Err(TsaClientError::AnswerInvalid { reason, .. }) => reason.to_owned(),
        Err(TsaClientError::Unavailable(seen)) => format!("unavailable: {seen}"),
    }
}

#[tokio::test]
async fn a_timestamp_is_of_the_signature_and_of_the_authority_that_is_trusted() {
    let Some(peer) = Peer::shared() else { return };
    let (other, known) = (Peer::start(), authority("ours", &peer.chain_pem));
    let other = authority("another", &other.expect("brought").chain_pem);
    let client = client(&peer.url, &[other, known.clone()]);
    let stamped = client.timestamp(b"a signature").await.expect("timestamped");
    let token = stamped.response;
    let verified = tsa::verify(&token, b"a signature", std::slice::from_ref(&known));
    assert_eq!(verified, Ok((stamped.time, "ours")));
    let again = client.timestamp(b"a signature").await.expect("timestamped");
    assert_ne!(again.response, token, "another request is another timestamp");
}

#[tokio::test]
async fn a_timestamp_by_an_authority_that_is_not_trusted_is_refused() {
    let Some(peer) = Peer::shared() else { return };
    let Some(stranger) = Peer::start() else { return };
    let ours = authority("ours", &peer.chain_pem);
    let stranger_url = &stranger.url;
    for (case, known) in [("another", vec![ours]), ("none", Vec::new())] {
        let refused = reason(client(stranger_url, &known).timestamp(b"a signature").await);
        assert_eq!(refused, "TSA_UNKNOWN", "{case}");
    }
}

#[tokio::test]
async fn a_timestamp_of_a_time_at_which_its_authority_does_not_count_is_refused() {
    let Some(peer) = Peer::shared() else { return };
    let mut past = authority("ours", &peer.chain_pem);
    past.valid_until = Some("2001-01-01T00:00:00Z".parse().expect("a time"));
    let refused = reason(client(&peer.url, &[past]).timestamp(b"a signature").await);
    assert_eq!(refused, "TSA_OUTSIDE_VALIDITY");
}

#[tokio::test]
async fn an_authority_is_asked_at_its_url_and_nowhere_else() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&asked);
    let door = Door::alone(move |asked| {
        lines.lock().expect("nobody panicked").push(asked.line.clone());
        Deed::Say(answer("200 OK", "", REJECTION))
    })
    .await;
    for path in ["", "/tsr", "/tsr/", "/tsr?policy=1.2.3", "/tsr/?a=b&c"] {
        let url = format!("{}{path}", door.url);
        assert_ne!(
            reason(client(&url, &[]).timestamp(b"a signature").await),
            "believed"
        );
    }
    let asked = asked.lock().expect("nobody panicked");
    let want = ["/", "/tsr", "/tsr/", "/tsr?policy=1.2.3", "/tsr/?a=b&c"];
    assert_eq!(*asked, want.map(|path| format!("POST {path}")));
}

/// Who records an answer may not use it for another request, be it of the same signature.
#[tokio::test]
async fn a_timestamp_of_another_request_is_refused() {
    let Some(peer) = Peer::shared() else { return };
    let known = [authority("ours", &peer.chain_pem)];
    let token = client(&peer.url, &known)
        .timestamp(b"a signature")
        .await
        .expect("timestamped")
        .response;
    let door = Door::alone(move |_| Deed::Say(answer("200 OK", "", &token))).await;
    let fooled = client(&door.url, &known);
    assert_eq!(reason(fooled.timestamp(b"a signature").await), "TIMESTAMP_NONCE");
    assert_eq!(
        reason(fooled.timestamp(b"another signature").await),
        "TIMESTAMP_MISMATCH"
    );
}

#[tokio::test]
async fn an_answer_that_is_no_granted_timestamp_is_refused_by_name() {
    let Some(peer) = Peer::shared() else { return };
    let known = [authority("ours", &peer.chain_pem)];
    let token = client(&peer.url, &known)
        .timestamp(b"a signature")
        .await
        .expect("timestamped")
        .response;
    for (case, said, want) in [
        (
            "rejection",
            answer("200 OK", "", REJECTION),
            "TIMESTAMP_MALFORMED",
        ),
        (
            "rejection as 201",
            answer("201 Created", "", REJECTION),
            "TIMESTAMP_MALFORMED",
        ),
        ("nothing", answer("200 OK", "", b""), "TIMESTAMP_MALFORMED"),
        (
            "text",
            answer("200 OK", "", b"<html>no</html>"),
            "TIMESTAMP_MALFORMED",
        ),
        (
            "cut",
            answer("200 OK", "", &token[..token.len() / 2]),
            "TIMESTAMP_MALFORMED",
        ),
        (
            "too large",
            answer("200 OK", "", &vec![0x30; 65 * 1024]),
            "ANSWER_TOO_LARGE",
        ),
        (
            "bad request",
            answer("400 Bad Request", "", b"bad"),
            "STATUS_UNEXPECTED",
        ),
        (
            "unsupported",
            answer("501 Not Implemented", "", b""),
            "STATUS_UNEXPECTED",
        ),
        (
            "redirect",
            answer("307 Temporary Redirect", "Location: http://127.0.0.1:1/\r\n", b""),
            "STATUS_UNEXPECTED",
        ),
        (
            "empty success",
            answer("204 No Content", "", b""),
            "STATUS_UNEXPECTED",
        ),
    ] {
        let door = Door::alone(move |_| Deed::Say(said.clone())).await;
        let refused = reason(client(&door.url, &known).timestamp(b"a signature").await);
        assert_eq!((case, refused.as_str()), (case, want));
        assert_eq!(door.asked(), 1, "{case}: it will not change");
    }
}

/// Whichever byte it is: what is believed is what the authority signed.
#[tokio::test]
async fn a_timestamp_altered_in_one_byte_is_refused_wherever_it_was_signed() {
    let Some(peer) = Peer::shared() else { return };
    let known = [authority("ours", &peer.chain_pem)];
    let (door, url) = door_before(peer).await;
    let client = client(&url, &known);
    // The signature comes last.
    for (case, from_end) in [("end of the signature", 1), ("within the signature", 20)] {
        door.rule(move |_| {
            Deed::Change(Box::new(move |answer| {
                rewritten(&answer, |body| {
                    let at = body.len() - from_end;
                    body[at] ^= 1;
                })
            }))
        });
        assert_eq!(
            reason(client.timestamp(b"a signature").await),
            "TSA_UNKNOWN",
            "{case}"
        );
    }
    door.rule(|_| {
        Deed::Change(Box::new(|answer| {
            rewritten(&answer, |body| {
                // The generalized time of TSTInfo: fifteen characters that end in Z.
                let at = body.windows(2).position(|two| two == [0x18, 15]).expect("a time") + 2;
                body[at + 3] = if body[at + 3] == b'0' { b'1' } else { b'0' };
            })
        }))
    });
    // What was signed has another digest now.
    let refused = reason(client.timestamp(b"a signature").await);
    assert_eq!(refused, "TIMESTAMP_MISMATCH", "the time");
}

#[tokio::test]
async fn an_authority_that_fails_is_asked_again_inside_the_deadline() {
    let Some(peer) = Peer::shared() else { return };
    let known = [authority("ours", &peer.chain_pem)];
    let (mut door, url) = door_before(peer).await;
    door.rule(|asked| match asked.number {
        0 => Deed::Say(answer("500 Internal Server Error", "", b"")),
        1 => Deed::Lose,
        2 => Deed::Cut,
        3 => Deed::Say(answer("429 Too Many Requests", "", b"")),
        _ => Deed::Pass,
    });
    client(&url, &known)
        .timestamp(b"a signature")
        .await
        .expect("timestamped");
    assert_eq!(door.asked(), 5);

    door.rule(|_| Deed::Slow(Duration::from_secs(60)));
    let refused = reason(hasty(&url, &known).timestamp(b"a signature").await);
    assert_eq!(refused, "unavailable: no answer in time");
    door.rule(|_| Deed::Say(answer("503 Service Unavailable", "", b"busy")));
    let refused = reason(hasty(&url, &known).timestamp(b"a signature").await);
    assert_eq!(refused, "unavailable: status 503: busy");
    door.refuse().await;
    let refused = reason(hasty(&url, &known).timestamp(b"a signature").await);
    assert!(refused.contains("refused"), "{refused}");
}

#[tokio::test]
async fn a_network_that_cuts_and_delays_is_outlived() {
    let (Some(peer), Some(network)) = (Peer::shared(), Toxiproxy::shared()) else {
        return;
    };
    let known = [authority("ours", &peer.chain_pem)];
    let (host, path) = parts(&peer.url);
    let proxy: Proxy = network.proxy(host);
    let url = format!("http://{}{path}", proxy.address);
    proxy.limit_data(Stream::Answers, 300);
    let refused = hasty(&url, &known).timestamp(b"a signature").await;
    assert_eq!(refused.map_err(|error| error.reason()), Err("TSA_UNAVAILABLE"));
    proxy.heal();
    proxy.latency(Stream::Answers, Duration::from_millis(200));
    client(&url, &known)
        .timestamp(b"a signature")
        .await
        .expect("timestamped");
}
