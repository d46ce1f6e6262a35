//! Real logs behind a network, or a server, that fails: what passes is outlived inside the deadline, what does not is
//! named, and nothing is logged twice.

use std::time::Duration;

use stella_attest::digest::Digest;
use stella_attest::dsse::Envelope;
use stella_attest::trust::TrustedLog;
use stella_testkit::peers::{RekorV1 as PeerV1, RekorV2 as PeerV2, Stream, Toxiproxy};
use stella_tlog::rekor::tiles::TileReader;
use stella_tlog::rekor::v1::RekorV1;
use stella_tlog::rekor::v2::{RekorV2, RekorV2Config};
use stella_tlog::rekor::{LogReader as _, RekorConfig};
use stella_tlog::{LogError, TransparencyLog};
use tokio::time::{Instant, sleep};

use crate::door::{Asked, Deed, Door, answer};
use crate::given::{assert_proven, config, inner_reason, submission, trusted};

/// A real log, of either generation.
struct Real {
    url: String,
    log: TrustedLog,
    open: Box<dyn Fn(RekorConfig) -> Box<dyn TransparencyLog>>,
}

impl Real {
    fn client(&self, url: &str) -> Box<dyn TransparencyLog> {
        (self.open)(config(url, self.log.clone(), None))
    }

    /// A client with these limits of a call and of an attempt.
    fn hasty(&self, url: &str, budget: Duration, attempt: Duration) -> Box<dyn TransparencyLog> {
        let mut config = config(url, self.log.clone(), None);
        (config.budget, config.attempt_timeout) = (budget, attempt);
        (self.open)(config)
    }
}

/// The logs of both generations, as far as they were brought.
fn both() -> Vec<Real> {
    let mut logs = Vec::new();
    if let Some(peer) = PeerV1::shared() {
        logs.push(Real {
            url: peer.url.clone(),
            log: trusted("rekor.local", &peer.public_key_pem),
            open: Box::new(|config| Box::new(RekorV1::open(config).expect("a client"))),
        });
    }
    if let Some(peer) = PeerV2::shared() {
        let tiles_url = peer.tiles_url.clone();
        logs.push(Real {
            url: peer.url.clone(),
            log: trusted("127.0.0.1", &peer.public_key_pem),
            open: Box::new(move |rekor| {
                let config = RekorV2Config {
                    tiles_url: Some(tiles_url.clone()),
                    ..RekorV2Config::new(rekor)
                };
                Box::new(RekorV2::open(config).expect("a client"))
            }),
        });
    }
    logs
}

/// What happens to the first request; the others pass.
fn first(door: &Door, deed: impl Fn() -> Deed + Send + Sync + 'static) {
    door.rule(move |asked: &Asked| match asked.number {
        0 => deed(),
        _ => Deed::Pass,
    });
}

#[tokio::test]
async fn an_entry_whose_answer_is_lost_cut_or_late_is_found_by_the_client_itself() {
    for real in both() {
        for case in ["lost", "cut", "late"] {
            let door = Door::before(&real.url).await;
            first(&door, move || match case {
                "lost" => Deed::Lose,
                "cut" => Deed::Cut,
                _ => Deed::Slow(Duration::from_secs(60)),
            });
            let client = real.hasty(&door.url, Duration::from_secs(60), Duration::from_secs(2));
            let (one, _) = submission();
            let entry = client.submit(one.clone()).await.expect(case);
            assert_proven(&entry, &one, &real.log);
            assert!(door.asked() > 1, "{case}: it was asked again");
            let again = real.client(&real.url).submit(one).await.expect("found again");
            assert_eq!(again.log_index, entry.log_index, "{case}: nothing twice");
        }
    }
}

/// The index of a Rekor v1 names every entry of an envelope.
#[tokio::test]
async fn a_rekor_v1_lists_one_entry_though_every_other_answer_was_lost() {
    let Some(peer) = PeerV1::shared() else { return };
    let log = trusted("rekor.local", &peer.public_key_pem);
    let door = Door::before(&peer.url).await;
    door.rule(|asked| match asked.number % 2 {
        0 => Deed::Lose,
        _ => Deed::Pass,
    });
    let client = RekorV1::open(config(&door.url, log.clone(), None)).expect("a client");
    let (one, subject) = submission();
    let entry = client.submit(one.clone()).await.expect("logged");
    let payload = Envelope::parse(&one.envelope).expect("an envelope").payload;
    for digest in [subject, Digest::of(&payload), Digest::of(&one.envelope)] {
        let listed = client.find(&digest).await.expect("searched");
        assert_eq!(listed, [stella_attest::verify::uuid(&entry)]);
    }
}

#[tokio::test]
async fn a_log_that_refuses_connections_and_comes_back_is_reached_inside_the_deadline() {
    for real in both() {
        let mut door = Door::before(&real.url).await;
        door.refuse().await;
        let client = real.client(&door.url);
        let (one, _) = submission();
        let back = async {
            // How long it is away.
            sleep(Duration::from_secs(10)).await;
            door.listen().await;
        };
        let (entry, ()) = tokio::join!(client.submit(one.clone()), back);
        assert_proven(&entry.expect("logged when it was back"), &one, &real.log);
    }
}

#[tokio::test]
async fn a_log_that_stays_away_is_named_at_the_deadline_and_is_no_alarm() {
    for real in both() {
        let mut door = Door::before(&real.url).await;
        door.refuse().await;
        let client = real.hasty(&door.url, Duration::from_millis(700), Duration::from_millis(300));
        let refused = client.submit(submission().0).await;
        let Err(LogError::Unavailable(seen)) = &refused else {
            panic!("{refused:?}");
        };
        assert!(seen.contains("refused"), "{seen}");
        door.listen().await;
        door.rule(|_| Deed::Slow(Duration::from_secs(60)));
        let refused = inner_reason(client.submit(submission().0).await);
        assert_eq!(
            refused,
            "LOG_UNAVAILABLE: the log does not answer: no answer in time"
        );
        door.rule(|_| Deed::Say(answer("503 Service Unavailable", "", b"{\"message\":\"busy\"}")));
        let refused = inner_reason(client.submit(submission().0).await);
        let want = "LOG_UNAVAILABLE: the log does not answer: status 503: {\"message\":\"busy\"}";
        assert_eq!(refused, want);
        door.rule(|_| Deed::Pass);
        let patient = real.client(&door.url);
        patient.submit(submission().0).await.expect("trusted as before");
    }
}

#[tokio::test]
async fn what_passes_by_itself_is_asked_again() {
    for real in both() {
        for statuses in [
            [
                "500 Internal Server Error",
                "502 Bad Gateway",
                "503 Service Unavailable",
            ],
            [
                "408 Request Timeout",
                "429 Too Many Requests",
                "499 Client Closed Request",
            ],
        ] {
            let door = Door::before(&real.url).await;
            door.rule(move |asked| match statuses.get(asked.number) {
                Some(status) => Deed::Say(answer(status, "", b"{}")),
                None => Deed::Pass,
            });
            let (one, _) = submission();
            let entry = real.client(&door.url).submit(one.clone()).await.expect("logged");
            assert_proven(&entry, &one, &real.log);
        }
    }
}

#[tokio::test]
async fn the_pause_that_a_log_asks_for_is_kept_or_ends_the_call() {
    for real in both() {
        let door = Door::before(&real.url).await;
        first(&door, || {
            Deed::Say(answer("429 Too Many Requests", "Retry-After: 2\r\n", b"{}"))
        });
        let began = Instant::now();
        real.client(&door.url)
            .submit(submission().0)
            .await
            .expect("logged");
        assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());

        for seconds in [3600, u64::MAX] {
            let door = Door::before(&real.url).await;
            door.rule(move |_| {
                let header = format!("Retry-After: {seconds}\r\n");
                Deed::Say(answer("429 Too Many Requests", &header, b"later"))
            });
            let refused = inner_reason(real.client(&door.url).submit(submission().0).await);
            assert_eq!(
                refused,
                "LOG_UNAVAILABLE: the log does not answer: status 429: later"
            );
            assert_eq!(door.asked(), 1, "it is not asked again before it wants to be");
        }
    }
}

#[tokio::test]
async fn answers_that_will_not_change_are_named_at_once() {
    for real in both() {
        for (case, said, want) in [
            (
                "bad request",
                answer("400 Bad Request", "", b"no\x07 such thing"),
                "LOG_REFUSED: the log refuses with status 400: no such thing",
            ),
            (
                "forbidden",
                answer("403 Forbidden", "", b""),
                "LOG_REFUSED: the log refuses with status 403: ",
            ),
            (
                "not implemented",
                answer("501 Not Implemented", "", b"x"),
                "LOG_REFUSED: the log refuses with status 501: x",
            ),
            (
                "redirect",
                answer("302 Found", "Location: http://127.0.0.1:1/\r\n", b""),
                "STATUS_UNEXPECTED",
            ),
            (
                "another success",
                answer("200 OK", "", b"{}"),
                "STATUS_UNEXPECTED",
            ),
            ("no JSON", answer("201 Created", "", b"<html>"), "BAD_JSON"),
            (
                "cut JSON with a length that fits",
                answer("201 Created", "", b"{\"a\":"),
                "BAD_JSON",
            ),
            (
                "a member twice",
                answer("201 Created", "", b"{\"a\":1,\"a\":1}"),
                "DUPLICATE_KEY",
            ),
            (
                "deep",
                answer("201 Created", "", "[".repeat(100_000).as_bytes()),
                "TOO_DEEP",
            ),
            ("nothing", answer("201 Created", "", b""), "BAD_JSON"),
            (
                "too large",
                answer("201 Created", "", &vec![b' '; 5 << 20]),
                "ANSWER_TOO_LARGE",
            ),
        ] {
            let door = Door::alone(move |_| Deed::Say(said.clone())).await;
            let refused = inner_reason(real.client(&door.url).submit(submission().0).await);
            assert_eq!((case, refused.as_str()), (case, want));
            assert_eq!(door.asked(), 1, "{case}");
        }
    }
}

/// Whatever speaks there, it is no log.
#[tokio::test]
async fn a_server_that_does_not_speak_http_is_unavailable() {
    for real in both() {
        let door = Door::alone(|_| Deed::Say(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())).await;
        let client = real.hasty(&door.url, Duration::from_millis(500), Duration::from_millis(300));
        let refused = client
            .submit(submission().0)
            .await
            .map_err(|error| error.reason());
        assert_eq!(refused.map(|_| ()), Err("LOG_UNAVAILABLE"));
    }
}

/// Toxiproxy in between.
#[tokio::test]
async fn a_network_that_cuts_answers_falls_silent_or_is_slow_loses_and_doubles_nothing() {
    let Some(network) = Toxiproxy::shared() else {
        return;
    };
    for real in both() {
        let host = real.url.strip_prefix("http://").expect("http");
        let proxy = network.proxy(host);
        let url = format!("http://{}", proxy.address);
        let patient = real.client(&url);
        let hasty = real.hasty(&url, Duration::from_millis(1000), Duration::from_millis(500));
        for fault in ["cut", "silent", "reset"] {
            let (one, _) = submission();
            match fault {
                "cut" => proxy.limit_data(Stream::Answers, 200),
                "silent" => proxy.silence(Stream::Answers),
                _ => proxy.reset(Stream::Answers, Duration::ZERO),
            }
            let refused = hasty.submit(one.clone()).await.map_err(|error| error.reason());
            assert_eq!(refused.map(|_| ()), Err("LOG_UNAVAILABLE"), "{fault}");
            proxy.heal();
            let entry = patient.submit(one.clone()).await.expect(fault);
            assert_proven(&entry, &one, &real.log);
            let direct = real.client(&real.url).submit(one).await.expect(fault);
            assert_eq!(direct.log_index, entry.log_index, "{fault}: nothing twice");
        }
        proxy.latency(Stream::Answers, Duration::from_millis(200));
        patient.submit(submission().0).await.expect("slow, but logged");
    }
}

#[tokio::test]
async fn tiles_behind_a_network_that_cuts_them_are_read_when_it_is_whole_again() {
    let (Some(peer), Some(network)) = (PeerV2::shared(), Toxiproxy::shared()) else {
        return;
    };
    let log = trusted("127.0.0.1", &peer.public_key_pem);
    let rekor = config(&peer.url, log.clone(), None);
    let writer = RekorV2::open(RekorV2Config {
        tiles_url: Some(peer.tiles_url.clone()),
        ..RekorV2Config::new(rekor)
    });
    let (one, _) = submission();
    let entry = writer
        .expect("a client")
        .submit(one.clone())
        .await
        .expect("logged");
    let proxy = network.proxy(peer.tiles_url.strip_prefix("http://").expect("http"));
    let reader = TileReader::open(config(&format!("http://{}", proxy.address), log.clone(), None));
    let reader = reader.expect("a reader");
    // Less than the head of any answer.
    proxy.limit_data(Stream::Answers, 30);
    let back = async {
        // How long it cuts.
        sleep(Duration::from_secs(1)).await;
        proxy.heal();
    };
    let (read, ()) = tokio::join!(reader.entry_by_index(entry.log_index), back);
    assert_proven(&read.expect("read when it was whole"), &one, &log);
}
