//! What a caller is told, whatever it sends: a refusal arrives whole, and says whose fault it is.

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use stella_proto::backfill::v1 as pb;
use stella_proto::status::reason;
use tonic::{Code, Status};

use crate::shell::{Small, for_dev, problem, rest_request};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refused_request_gets_its_answer_however_much_it_sends() {
    let small = Small::start(|config| config.max_message_bytes = (2 << 20).try_into().expect("not zero"));
    let (operator, stranger) = (small.operator(), small.caller("spiffe://stella.local/stranger"));
    for (case, who, method, path, status, reason) in [
        (
            "a stranger",
            &stranger,
            Method::POST,
            "/refused",
            403,
            "METHOD_NOT_ALLOWED",
        ),
        (
            "no such route",
            &operator,
            Method::POST,
            "/nowhere",
            404,
            "NO_SUCH_ROUTE",
        ),
        (
            "a route without this method",
            &operator,
            Method::PUT,
            "/things",
            405,
            "HTTP_METHOD_NOT_ALLOWED",
        ),
        (
            "refused unread",
            &operator,
            Method::POST,
            "/refused",
            400,
            "NOT_WANTED",
        ),
    ] {
        let mut http2 = small.http2(who).await;
        let mut http1 = small.http1(who).await;
        for size in [0, 100_000, 1 << 20] {
            let body = vec![b' '; size];
            // The same connection each time: what was sent in vain is out of the way.
            let answer = http2.send_request(rest_request(&method, path, &body)).await;
            let answer = answer.unwrap_or_else(|error| panic!("{case}, {size} bytes, HTTP/2: {error:?}"));
            assert_eq!(
                problem(answer).await,
                (status, reason.to_owned()),
                "{case}, {size} bytes, HTTP/2"
            );

            http1.ready().await.expect("the connection stands");
            let answer = http1.send_request(rest_request(&method, path, &body)).await;
            let answer = answer.unwrap_or_else(|error| panic!("{case}, {size} bytes, HTTP/1.1: {error:?}"));
            assert_eq!(
                problem(answer).await,
                (status, reason.to_owned()),
                "{case}, {size} bytes, HTTP/1.1"
            );
        }
    }
    let mut http2 = small.http2(&operator).await;
    let large = vec![b' '; 3 << 20];
    let answer = http2
        .send_request(rest_request(&Method::POST, "/refused", &large))
        .await
        .expect("an answer");
    assert_eq!(problem(answer).await, (413, "MESSAGE_TOO_LARGE".to_owned()));
}

/// A gRPC request with these bytes as its body.
fn grpc(method: &str, body: &[u8]) -> http::Request<Full<Bytes>> {
    let path = format!("/stella.backfill.v1.BackfillService/{method}");
    let mut request = rest_request(&Method::POST, &path, body);
    let headers = request.headers_mut();
    headers.insert("content-type", "application/grpc".parse().expect("a value"));
    headers.insert("te", "trailers".parse().expect("a value"));
    request
}

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    frame.extend(message);
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bytes_that_are_no_message_are_the_callers_fault() {
    let small = Small::start(|_| {});
    let mut http2 = small.http2(&small.operator()).await;
    let whole = framed(b"\x0a\x01x");
    for (case, body) in [
        ("no protobuf", framed(b"\x0a\xff")),
        ("a field of another type", framed(b"\x08\x01")),
        ("text that is not UTF-8", framed(b"\x0a\x01\xff")),
        ("half a message", whole[..whole.len() - 1].to_vec()),
        ("half a frame's head", whole[..3].to_vec()),
        ("no frame", b"{\"id\": 1}".to_vec()),
        ("no message at all", Vec::new()),
    ] {
        let answer = http2
            .send_request(grpc("GetBackfill", &body))
            .await
            .expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{case}");
        let refused = Status::from_header_map(answer.headers()).unwrap_or_else(|| panic!("{case} is let in"));
        assert_eq!(
            (refused.code(), reason(&refused).as_deref()),
            (Code::InvalidArgument, Some("BAD_MESSAGE")),
            "{case}: {refused:?}"
        );
    }
    let answer = http2
        .send_request(grpc("GetBackfill", &whole))
        .await
        .expect("an answer");
    let refused = Status::from_header_map(answer.headers()).expect("a refusal");
    assert_eq!(
        reason(&refused).as_deref(),
        Some("JOB_NOT_FOUND"),
        "a whole one is read"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refusal_that_quotes_the_caller_arrives_however_long_the_quotation() {
    let small = Small::start(|_| {});
    let mut client = small.client().await;
    for (case, id) in [
        ("ASCII", "x".repeat(100_000)),
        ("not ASCII", "\u{1f512}".repeat(25_000)),
    ] {
        let refused = client
            .get_backfill(for_dev(pb::GetBackfillRequest {
                id,
                ..pb::GetBackfillRequest::default()
            }))
            .await
            .expect_err("there is no such job");
        assert_eq!(
            (refused.code(), reason(&refused).as_deref()),
            (Code::NotFound, Some("JOB_NOT_FOUND")),
            "{case}"
        );
        let said = refused.message();
        assert!(
            said.starts_with("no job `") && said.ends_with("..."),
            "{case}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_answer_to_head_has_no_body() {
    let small = Small::start(|_| {});
    let operator = small.operator();
    let mut http2 = small.http2(&operator).await;
    let mut http1 = small.http1(&operator).await;
    for (path, status, allow) in [
        ("/things", 200, None),
        ("/refused", 405, Some("POST")),
        ("/nowhere", 404, None),
    ] {
        let two = http2
            .send_request(rest_request(&Method::HEAD, path, b""))
            .await
            .expect("an answer");
        http1.ready().await.expect("the connection stands");
        let one = http1
            .send_request(rest_request(&Method::HEAD, path, b""))
            .await
            .expect("an answer");
        for answer in [two, one] {
            let (parts, body) = answer.into_parts();
            assert_eq!(parts.status.as_u16(), status, "{path}");
            let allowed = parts.headers.get("allow").and_then(|value| value.to_str().ok());
            assert_eq!(allowed, allow, "{path}");
            let length: usize = parts.headers["content-length"]
                .to_str()
                .expect("text")
                .parse()
                .expect("a number");
            assert!(length > 0, "{path} says how long the body would be");
            let body = body.collect().await.expect("the end").to_bytes();
            assert_eq!(body, Bytes::new(), "{path}, {:?}", parts.version);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_deadline_ends_the_call_at_the_server() {
    let small = Small::start(|_| {});
    let mut http2 = small.http2(&small.operator()).await;
    let mut request = grpc("CountUnproven", &framed(b""));
    request
        .headers_mut()
        .insert("grpc-timeout", "200m".parse().expect("a value"));
    let answer = http2.send_request(request).await.expect("an answer");
    let refused = Status::from_header_map(answer.headers()).expect("a refusal");
    assert_eq!(
        (refused.code(), reason(&refused).as_deref()),
        (Code::DeadlineExceeded, Some("DEADLINE_EXCEEDED"))
    );
    small.gate.abandoned(1).await;
    assert_eq!(small.gate.counts(), (1, 1), "the service stopped working on it");

    let mut request = grpc("CountUnproven", &framed(b""));
    request
        .headers_mut()
        .insert("grpc-timeout", "1x".parse().expect("a value"));
    let answer = http2.send_request(request).await.expect("an answer");
    let refused = Status::from_header_map(answer.headers()).expect("a refusal");
    assert_eq!(reason(&refused).as_deref(), Some("BAD_TIMEOUT"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_unary_call_takes_longer_than_the_server_allows() {
    let small = Small::start(|config| config.call_timeout_ms = 200.try_into().expect("not zero"));
    let mut http2 = small.http2(&small.operator()).await;
    let mut request = grpc("CountUnproven", &framed(b""));
    request
        .headers_mut()
        .insert("grpc-timeout", "1H".parse().expect("a value"));
    let answer = http2.send_request(request).await.expect("an answer");
    let refused = Status::from_header_map(answer.headers()).expect("a refusal");
    assert_eq!(reason(&refused).as_deref(), Some("DEADLINE_EXCEEDED"));
    small.gate.abandoned(1).await;
}
