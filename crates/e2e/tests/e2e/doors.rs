//! Who gets in: certificates, the method table, tenants, and who must be behind the address that a service calls.

mod answers;
mod live;
mod start;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use serde_json::{Value, json};
use stella_attest::digest::Digest;
use stella_attest::statement;
use stella_proto::backfill::v1 as backfill_pb;
use stella_proto::backfill::v1::backfill_service_client::BackfillServiceClient;
use stella_proto::feedser::v1 as feedser_pb;
use stella_proto::feedser::v1::append_events_result::Outcome;
use stella_proto::feedser::v1::feedser_service_client::FeedserServiceClient;
use stella_proto::signer::v1 as signer_pb;
use stella_proto::signer::v1::signer_service_client::SignerServiceClient;
use stella_proto::status::reason;
use stella_proto::verifier::v1 as verifier_pb;
use stella_proto::verifier::v1::verifier_service_client::VerifierServiceClient;
use stella_proto::verifier::v1::verify_batch_result::Outcome as Judged;
use stella_serve::access::SpiffeId;
use stella_serve::fs::{Access, write_atomic};
use stella_serve::pki::{DevCa, Issued, Lifetime, Order};
use stella_serve::upstream::select_tenant;
use stella_testkit::stack::{Identity, Stack};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const SERVICES: [&str; 4] = ["signer", "verifier", "feedser", "backfill"];

/// Longest wait for what happens at once.
const AT_ONCE: Duration = Duration::from_secs(5);

type Refusal = (Code, String);

fn refusal(status: &Status) -> Refusal {
    (status.code(), reason(status).unwrap_or_default())
}

fn refused<T>(answer: Result<Response<T>, Status>, case: &str) -> Refusal {
    match answer {
        Ok(_) => panic!("{case} is let in"),
        Err(status) => refusal(&status),
    }
}

fn want(code: Code, reason: &str) -> Refusal {
    (code, reason.to_owned())
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://stella.local/{name}")
        .parse()
        .expect("an identity")
}

fn shown(identity: &Identity) -> Issued {
    let read = |path: &Path| std::fs::read_to_string(path).expect("a PEM file");
    Issued {
        certificate: read(&identity.cert),
        key: read(&identity.key),
    }
}

/// TLS that believes the development authority and shows `shown`.
fn tls(stack: &Stack, shown: Option<&Issued>) -> TlsConnector {
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(stack.env("STELLA_CA")).expect("the authority") {
        authorities
            .add(certificate.expect("a certificate"))
            .expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(authorities);
    let config = match shown {
        None => config.with_no_client_auth(),
        Some(Issued { certificate, key }) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            config
                .with_client_auth_cert(chain.expect("a chain"), key)
                .expect("a pair")
        }
    };
    TlsConnector::from(Arc::new(config))
}

fn address(stack: &Stack, service: &str) -> SocketAddr {
    let url = stack.env(&format!("STELLA_{}", service.to_uppercase()));
    url.trim_start_matches("https://").parse().expect("an address")
}

fn loopback() -> ServerName<'static> {
    "127.0.0.1".try_into().expect("a name")
}

/// Shakes hands as far as the client's side goes.
async fn handshake(
    stack: &Stack,
    service: &str,
    shown: Option<&Issued>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address(stack, service)).await?;
    tls(stack, shown).connect(loopback(), stream).await
}

/// The client's own address, and the alert by which the service ended its handshake.
async fn alert(stack: &Stack, service: &str, shown: Option<&Issued>) -> (SocketAddr, Option<rustls::Error>) {
    let stream = TcpStream::connect(address(stack, service))
        .await
        .expect("the service listens");
    let own = stream.local_addr().expect("an address");
    let refused = match tls(stack, shown).connect(loopback(), stream).await {
        Err(error) => error,
        // In TLS 1.3 the client is through before the server has seen its certificate.
        Ok(mut stream) => {
            let read = tokio::time::timeout(AT_ONCE, stream.read(&mut [0]))
                .await
                .expect("it is refused at once");
            read.expect_err("it is refused")
        }
    };
    let cause = refused
        .into_inner()
        .and_then(|cause| cause.downcast::<rustls::Error>().ok());
    (own, cause.map(|cause| *cause))
}

type Authority = Issuer<'static, KeyPair>;

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

/// The development authority.
fn ours(stack: &Stack) -> Authority {
    let read =
        |name: &str| std::fs::read_to_string(stack.dir().join("pki").join(name)).expect("the authority");
    let key = KeyPair::from_pem(&read("root/ca.key")).expect("a key");
    Issuer::from_ca_cert_pem(&read("ca.pem"), key).expect("an authority")
}

/// An authority that is not ours, whatever it calls itself.
fn another(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, name);
    Issuer::new(params, new_key())
}

/// A certificate that is valid from the beginning of `year`.
fn certify(authority: &Authority, usage: ExtendedKeyUsagePurpose, identities: &[&str], year: i32) -> Issued {
    let mut params = CertificateParams::default();
    let uri = |name: &&str| SanType::URI(id(name).as_str().try_into().expect("a URI"));
    params.subject_alt_names = identities.iter().map(uri).collect();
    params.extended_key_usages = vec![usage];
    params.not_before = rcgen::date_time_ymd(year, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 1, 1);
    let key = new_key();
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_shows_no_certificate_of_ours_is_refused_in_the_handshake() {
    use AlertDescription::*;
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let stack = Stack::start();
    let (ours, operator) = (ours(&stack), &["operator"][..]);
    let expired = Order {
        lifetime: Lifetime::expired(),
        ..Order::client(id("operator"))
    };
    let expired = DevCa::open(&stack.dir().join("pki"))
        .and_then(|ca| ca.issue(&expired))
        .expect("a certificate");
    let stranger = certify(&another("Another root"), ClientAuth, operator, 2020);
    let impostor = certify(&another("Stella development root"), ClientAuth, operator, 2020);
    for (case, shown, description, reason) in [
        ("no certificate", None, CertificateRequired, "no_certificate"),
        ("by another authority", Some(stranger), UnknownCA, "unknown_ca"),
        (
            "by another authority of our name",
            Some(impostor),
            DecryptError,
            "unknown_ca",
        ),
        ("expired", Some(expired), CertificateExpired, "expired"),
        (
            "not valid yet",
            Some(certify(&ours, ClientAuth, operator, 2090)),
            CertificateExpired,
            "expired",
        ),
        (
            "for servers alone",
            Some(certify(&ours, ServerAuth, operator, 2020)),
            UnsupportedCertificate,
            "wrong_usage",
        ),
        (
            "without an identity",
            Some(certify(&ours, ClientAuth, &[], 2020)),
            CertificateUnknown,
            "other",
        ),
        (
            "two identities",
            Some(certify(&ours, ClientAuth, &["operator", "signer"], 2020)),
            CertificateUnknown,
            "other",
        ),
    ] {
        for service in SERVICES {
            let counter = format!("stella_tls_handshake_failures_total{{reason=\"{reason}\"}}");
            let (counted, written) = (stack.counter(service, &counter), stack.log(service).len());
            let (own, refused) = alert(&stack, service, shown.as_ref()).await;
            assert_eq!(
                refused,
                Some(rustls::Error::AlertReceived(description)),
                "{case} at {service}"
            );
            let line = stack.wait_for_log(service, written, &format!("handshake failed peer={own} "));
            assert!(
                line.contains(&format!(" reason=\"{reason}\" ")),
                "{case} at {service}: {line}"
            );
            assert_eq!(
                stack.counter(service, &counter),
                counted + 1,
                "{case} at {service}"
            );
        }
    }
    let well_made = certify(&ours, ClientAuth, operator, 2020);
    let files = Identity {
        cert: stack.file("well-made.pem"),
        key: stack.file("well-made.key"),
    };
    keep(&files, &well_made);
    for service in SERVICES {
        assert_eq!(
            ask(&stack, service, &files, Some("dev")).await,
            Ok(()),
            "the same made well, at {service}"
        );
    }
}

/// Writes a certificate and its key; the key comes first, so that no pair fits until both are new.
fn keep(files: &Identity, issued: &Issued) {
    write_atomic(&files.key, issued.key.as_bytes(), Access::Owner).expect("writes");
    write_atomic(&files.cert, issued.certificate.as_bytes(), Access::Everybody).expect("writes");
}

/// Asks the service for something small.
async fn ask(stack: &Stack, service: &str, who: &Identity, tenant: Option<&str>) -> Result<(), Refusal> {
    let channel = stack
        .connect(service, who, Some(id(service)))
        .await
        .expect("a connection");
    fn request<T>(message: T, tenant: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(tenant) = tenant {
            request
                .metadata_mut()
                .insert("x-stella-tenant", tenant.parse().expect("a header"));
        }
        request
    }
    fn said<T>(answer: Result<Response<T>, Status>) -> Result<(), Refusal> {
        answer.map(|_| ()).map_err(|status| refusal(&status))
    }
    match service {
        "signer" => {
            let message = signer_pb::ListKeysRequest {};
            said(
                SignerServiceClient::new(channel)
                    .list_keys(request(message, tenant))
                    .await,
            )
        }
        "verifier" => {
            let message = verifier_pb::VerifyRequest {
                evidence: "{}".into(),
                ..verifier_pb::VerifyRequest::default()
            };
            said(
                VerifierServiceClient::new(channel)
                    .verify(request(message, tenant))
                    .await,
            )
        }
        "feedser" => {
            let message = feedser_pb::CountUnprovenRequest::default();
            said(
                FeedserServiceClient::new(channel)
                    .count_unproven(request(message, tenant))
                    .await,
            )
        }
        _ => {
            let message = backfill_pb::CountUnprovenRequest::default();
            said(
                BackfillServiceClient::new(channel)
                    .count_unproven(request(message, tenant))
                    .await,
            )
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_method_table_says_who_may_call_what_for_whom() {
    let stack = Stack::shared();
    let (operator, stranger) = (stack.operator(), stack.issue("stranger"));
    let denied = |reason: &str| Err(want(Code::PermissionDenied, reason));
    for service in SERVICES {
        for (case, who, tenant, want) in [
            ("a stranger", &stranger, Some("dev"), denied("METHOD_NOT_ALLOWED")),
            (
                "a stranger without a tenant",
                &stranger,
                None,
                denied("METHOD_NOT_ALLOWED"),
            ),
            ("no tenant", &operator, None, denied("TENANT_REQUIRED")),
            (
                "an empty tenant",
                &operator,
                Some(""),
                denied("TENANT_NOT_ALLOWED"),
            ),
            (
                "a foreign tenant",
                &operator,
                Some("prod"),
                denied("TENANT_NOT_ALLOWED"),
            ),
            ("all tenants", &operator, Some("*"), denied("TENANT_NOT_ALLOWED")),
            (
                "a tenant in other letters",
                &operator,
                Some("DEV"),
                denied("TENANT_NOT_ALLOWED"),
            ),
            ("the operator's own tenant", &operator, Some("dev"), Ok(())),
        ] {
            assert_eq!(
                ask(&stack, service, who, tenant).await,
                want,
                "{case} at {service}"
            );
        }
    }
    let channel = stack.connect("feedser", &operator, Some(id("feedser"))).await;
    let mut feedser = FeedserServiceClient::new(channel.expect("a connection"));
    let mut twice = Request::new(feedser_pb::CountUnprovenRequest::default());
    for tenant in ["dev", "prod"] {
        let tenant = tenant.parse().expect("a header");
        twice.metadata_mut().append("x-stella-tenant", tenant);
    }
    let answer = feedser.count_unproven(twice).await;
    assert_eq!(
        answer.map(|_| ()).map_err(|status| refusal(&status)),
        Err(want(Code::InvalidArgument, "TENANT_AMBIGUOUS"))
    );
    let backfill = stack.stolen("backfill");
    let channel = stack.connect("feedser", &backfill, Some(id("feedser"))).await;
    let mut feedser = FeedserServiceClient::new(channel.expect("a connection"));
    let mut put = Request::new(feedser_pb::PutAttestationRequest::default());
    let tenant = "dev".parse().expect("a header");
    put.metadata_mut().insert("x-stella-tenant", tenant);
    let answer = feedser.put_attestation(put).await;
    assert_eq!(
        answer.map(|_| ()).map_err(|status| refusal(&status)),
        denied("METHOD_NOT_ALLOWED"),
        "Backfill stores nothing"
    );
    for (who, service, want) in [
        ("signer", "verifier", denied("METHOD_NOT_ALLOWED")),
        ("signer", "feedser", denied("METHOD_NOT_ALLOWED")),
        ("verifier", "signer", denied("METHOD_NOT_ALLOWED")),
        ("feedser", "signer", denied("METHOD_NOT_ALLOWED")),
        ("feedser", "backfill", denied("METHOD_NOT_ALLOWED")),
        ("backfill", "verifier", denied("METHOD_NOT_ALLOWED")),
        ("backfill", "signer", denied("METHOD_NOT_ALLOWED")),
        ("feedser", "verifier", Ok(())),
        ("backfill", "feedser", Ok(())),
    ] {
        assert_eq!(
            ask(&stack, service, &stack.stolen(who), Some("dev")).await,
            want,
            "{who} calls {service}"
        );
    }
}

/// What REST answered: status, media type, document.
async fn post(
    stack: &Stack,
    who: &Identity,
    path: &str,
    tenant: Option<&str>,
    body: &str,
) -> (u16, String, Value) {
    let mut stream = handshake(stack, "feedser", Some(&shown(who)))
        .await
        .expect("a connection");
    let tenant = tenant.map_or(String::new(), |tenant| format!("x-stella-tenant: {tenant}\r\n"));
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{tenant}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = String::new();
    let read = tokio::time::timeout(AT_ONCE, stream.read_to_string(&mut answer)).await;
    read.expect("answers").expect("reads");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status");
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "))
        .unwrap_or_default();
    (status, kind.to_owned(), serde_json::from_str(body).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rest_refuses_as_grpc_does() {
    let stack = Stack::shared();
    let (operator, stranger) = (stack.operator(), stack.issue("stranger-at-rest"));
    for path in ["/attestations", "/events/statements/evt_1/provenance"] {
        for (case, who, tenant, status, reason) in [
            ("a stranger", &stranger, Some("dev"), 403, "METHOD_NOT_ALLOWED"),
            ("no tenant", &operator, None, 403, "TENANT_REQUIRED"),
            (
                "a foreign tenant",
                &operator,
                Some("prod"),
                403,
                "TENANT_NOT_ALLOWED",
            ),
            (
                "its own tenant, and no JSON",
                &operator,
                Some("dev"),
                400,
                "BAD_JSON",
            ),
        ] {
            let (got, kind, problem) = post(&stack, who, path, tenant, "?").await;
            assert_eq!(
                (got, kind.as_str()),
                (status, "application/problem+json"),
                "{case} at {path}"
            );
            let stated = (&problem["reason"], &problem["status"]);
            assert_eq!(stated, (&json!(reason), &json!(status)), "{case} at {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_and_reflection_need_a_certificate_and_no_tenant() {
    use tonic_reflection::pb::{v1, v1alpha};
    let stack = Stack::shared();
    let stranger = stack.issue("stranger-to-all");
    for service in SERVICES {
        let (_, refused) = alert(&stack, service, None).await;
        assert_eq!(
            refused,
            Some(rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired
            )),
            "{service}"
        );

        let channel = stack
            .connect(service, &stranger, Some(id(service)))
            .await
            .expect("a connection");
        let mut capital = service.to_owned();
        capital[..1].make_ascii_uppercase();
        let full = format!("stella.{service}.v1.{capital}Service");
        for asked in ["", &full] {
            let request = HealthCheckRequest {
                service: asked.to_owned(),
            };
            let answer = HealthClient::new(channel.clone())
                .check(request)
                .await
                .expect("an answer");
            assert_eq!(
                answer.get_ref().status(),
                ServingStatus::Serving,
                "{service} {asked:?}"
            );
        }

        let ask = v1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
                String::new(),
            )),
        };
        let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
        let mut answers = client
            .server_reflection_info(tokio_stream::once(ask))
            .await
            .expect("answers")
            .into_inner();
        let answer = answers
            .message()
            .await
            .expect("an answer")
            .expect("one")
            .message_response;
        let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(listed)) = answer
        else {
            panic!("{service} answered {answer:?}");
        };
        let mut v1_names: Vec<String> = listed.service.into_iter().map(|service| service.name).collect();

        let ask = v1alpha::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(
                String::new(),
            )),
        };
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
        let mut answers = client
            .server_reflection_info(tokio_stream::once(ask))
            .await
            .expect("answers")
            .into_inner();
        let answer = answers
            .message()
            .await
            .expect("an answer")
            .expect("one")
            .message_response;
        let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(listed)) = answer
        else {
            panic!("{service} answered {answer:?}");
        };
        let mut alpha_names: Vec<String> = listed.service.into_iter().map(|service| service.name).collect();
        v1_names.sort_unstable();
        alpha_names.sort_unstable();
        let reflection = [
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ];
        let names = ["grpc.health.v1.Health", reflection[0], reflection[1], &full];
        assert_eq!(v1_names, names, "{service}");
        assert_eq!(alpha_names, v1_names, "{service}");
    }
}

/// Signs a statement about `subject` and has it logged and witnessed.
async fn sign(stack: &Stack, subject: &Digest) -> Result<signer_pb::SignResponse, Status> {
    let payload = statement::build("subject", subject, statement::OPENVEX, json!({"statements": []}));
    let request = stack.request(signer_pb::SignRequest {
        payload: payload.into(),
        ..signer_pb::SignRequest::default()
    });
    let answer = SignerServiceClient::new(stack.channel("signer").await)
        .sign(request)
        .await?;
    Ok(answer.into_inner())
}

fn event(id: &str, subject: &Digest) -> Vec<u8> {
    let subject = json!({"digest": {"sha256": subject.hex()}});
    json!({"_id": id, "kind": "VEX", "subject": subject, "ts": "2025-11-11T12:00:00Z"})
        .to_string()
        .into_bytes()
}

/// Appends an event, with evidence if there is any: whether it is proven, or code and reason of the refusal.
async fn append(stack: &Stack, id: &str, subject: &Digest, evidence: &[u8]) -> Result<bool, Refusal> {
    let item = feedser_pb::AppendEventsItem {
        event: event(id, subject).into(),
        evidence: evidence.to_vec().into(),
        ..feedser_pb::AppendEventsItem::default()
    };
    let request = stack.request(tokio_stream::once(feedser_pb::AppendEventsRequest {
        items: vec![item],
    }));
    let answers = FeedserServiceClient::new(stack.channel("feedser").await)
        .append_events(request)
        .await;
    let answer = answers
        .expect("answers")
        .into_inner()
        .message()
        .await
        .expect("an answer")
        .expect("one");
    match answer
        .results
        .into_iter()
        .next()
        .and_then(|result| result.outcome)
        .expect("a result")
    {
        Outcome::Appended(appended) => Ok(appended.proven),
        Outcome::Error(error) => Err((error.code.into(), error.reason)),
    }
}

async fn attach(stack: &Stack, id: &str, envelope_digest: &str) -> Result<u64, Refusal> {
    let request = stack.request(feedser_pb::AttachProvenanceRequest {
        event_id: id.to_owned(),
        envelope_digest: envelope_digest.to_owned(),
        ..feedser_pb::AttachProvenanceRequest::default()
    });
    let answer = FeedserServiceClient::new(stack.channel("feedser").await)
        .attach_provenance(request)
        .await;
    answer
        .map(|answer| answer.get_ref().rev)
        .map_err(|status| refusal(&status))
}

/// What is stored of an event: whether it is proven, why not, and the names of its members.
async fn stored(stack: &Stack, id: &str) -> Result<(bool, String, Vec<String>), Refusal> {
    let request = stack.request(feedser_pb::GetEventRequest {
        event_id: id.to_owned(),
    });
    let answer = FeedserServiceClient::new(stack.channel("feedser").await)
        .get_event(request)
        .await;
    let found = answer
        .map_err(|status| refusal(&status))?
        .into_inner()
        .event
        .expect("an event");
    let document: Value = serde_json::from_slice(&found.event).expect("JSON");
    let names = document.as_object().expect("an object").keys().cloned().collect();
    Ok((found.proven, found.reason, names))
}

/// Has a running service show `issued` from now on to whoever connects.
fn present(stack: &Stack, service: &str, issued: &Issued, as_whom: &str) {
    let (written, own) = (stack.log(service).len(), stack.stolen(service));
    keep(&own, issued);
    stack.wait_for_log(
        service,
        written,
        &format!("certificates reloaded identity={} ", id(as_whom)),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_is_not_the_verifier_proves_and_witnesses_nothing_at_its_address() {
    let stack = Stack::start();
    let (subject, other) = (Digest::of(b"waiting"), Digest::of(b"new"));
    let waiting = sign(&stack, &subject).await.expect("signs");
    let new = sign(&stack, &other).await.expect("signs");
    assert_eq!(append(&stack, "evt_waiting", &subject, b"").await, Ok(false));
    let put = feedser_pb::PutAttestationRequest {
        evidence: waiting.bundle.clone(),
    };
    let mut feedser = FeedserServiceClient::new(stack.channel("feedser").await);
    feedser.put_attestation(stack.request(put)).await.expect("stores");

    let honest = shown(&stack.stolen("verifier"));
    for (who, impostor, reason) in [
        ("backfill", shown(&stack.stolen("backfill")), "PEER_NOT_EXPECTED"),
        ("operator", shown(&stack.operator()), "UPSTREAM_UNAVAILABLE"),
    ] {
        present(&stack, "verifier", &impostor, who);
        let written = stack.log("signer").len();
        // A connection that stands is the honest Verifier's; a new Signer has none.
        stack.kill("signer");
        stack.wait_for_log("signer", written, " serving service=");

        let unavailable = want(Code::Unavailable, reason);
        let attached = attach(&stack, "evt_waiting", &waiting.envelope_digest).await;
        assert_eq!(attached, Err(unavailable.clone()), "{who}");
        assert_eq!(
            append(&stack, "evt_new", &other, &new.bundle).await,
            Err(unavailable),
            "{who}"
        );
        let claim = json!({"dsse": {"envelopeDigest": waiting.envelope_digest}, "trust": {"verified": true}});
        let path = "/events/statements/evt_waiting/provenance";
        let (status, _, problem) =
            post(&stack, &stack.operator(), path, Some("dev"), &claim.to_string()).await;
        assert_eq!((status, &problem["reason"]), (503, &json!(reason)), "{who}");

        let members = ["_id", "kind", "rev", "subject", "tenant", "ts"]
            .map(str::to_owned)
            .to_vec();
        let unproven = (false, "NO_PROVENANCE".to_owned(), members);
        assert_eq!(stored(&stack, "evt_waiting").await, Ok(unproven), "{who}");
        assert_eq!(
            stored(&stack, "evt_new").await,
            Err(want(Code::NotFound, "EVENT_NOT_FOUND")),
            "{who}"
        );
        let get = feedser_pb::GetAttestationRequest {
            envelope_digest: new.envelope_digest.clone(),
        };
        let kept = feedser.get_attestation(stack.request(get)).await;
        assert_eq!(
            refused(kept, who),
            want(Code::NotFound, "ATTESTATION_NOT_FOUND"),
            "{who}"
        );

        let signed = sign(&stack, &Digest::of(who.as_bytes()))
            .await
            .map(|_| ())
            .map_err(|status| refusal(&status));
        assert_eq!(
            signed,
            Err(want(Code::Unavailable, "WITNESS_UNAVAILABLE")),
            "{who}"
        );
        let line = stack.wait_for_log("signer", written, "reason=\"WITNESS_UNAVAILABLE\"");
        assert!(line.contains(reason), "{line}");
    }

    present(&stack, "verifier", &honest, "verifier");
    assert_eq!(
        attach(&stack, "evt_waiting", &waiting.envelope_digest).await,
        Ok(2)
    );
    assert_eq!(append(&stack, "evt_new", &other, &new.bundle).await, Ok(true));
    sign(&stack, &subject)
        .await
        .expect("the Verifier itself witnesses");
}

/// The certificate that a service shows now.
async fn served(stack: &Stack, service: &str) -> CertificateDer<'static> {
    let stream = handshake(stack, service, Some(&shown(&stack.operator())))
        .await
        .expect("a connection");
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .expect("a certificate");
    leaf.clone().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_new_certificate_is_shown_without_a_restart_and_one_without_its_key_is_not() {
    let stack = Stack::shared();
    let ca = DevCa::open(&stack.dir().join("pki")).expect("the authority");
    let leaf = |issued: &Issued| {
        CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("a certificate")
    };
    let issue = || ca.issue(&Order::service(id("feedser"))).expect("a certificate");
    let (pid, first) = (stack.pid("feedser"), shown(&stack.stolen("feedser")));
    let standing = stack.channel("feedser").await;
    assert_eq!(served(&stack, "feedser").await, leaf(&first));

    let second = issue();
    present(&stack, "feedser", &second, "feedser");
    assert_eq!(served(&stack, "feedser").await, leaf(&second));
    let counting = stack.request(feedser_pb::CountUnprovenRequest::default());
    FeedserServiceClient::new(standing)
        .count_unproven(counting)
        .await
        .expect("the connection that stands goes on");

    let written = stack.log("feedser").len();
    let own = stack.stolen("feedser");
    write_atomic(&own.cert, issue().certificate.as_bytes(), Access::Everybody).expect("writes");
    let line = stack.wait_for_log("feedser", written, "reload refused");
    assert!(line.contains(" reason=\"KEY_MISMATCH\" "), "{line}");
    assert_eq!(
        served(&stack, "feedser").await,
        leaf(&second),
        "what was in force stays so"
    );

    let third = issue();
    present(&stack, "feedser", &third, "feedser");
    assert_eq!(served(&stack, "feedser").await, leaf(&third));
    assert_eq!(stack.pid("feedser"), pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_grant_lets_a_new_caller_in_without_a_restart() {
    let stack = Stack::shared();
    let ci = stack.issue("ci");
    let pids = SERVICES.map(|service| stack.pid(service));
    let denied = |reason: &str| Err(want(Code::PermissionDenied, reason));
    assert_eq!(
        ask(&stack, "feedser", &ci, Some("dev")).await,
        denied("METHOD_NOT_ALLOWED")
    );

    let written = SERVICES.map(|service| stack.log(service).len());
    let (dir, whom) = (stack.dir().display().to_string(), id("ci"));
    let method = "stella.feedser.v1.FeedserService/CountUnproven";
    let to = ["--id", whom.as_str(), "--method", method, "--for-tenant", "dev"];
    stack
        .stella(&[&["access", "grant", "--dir", &dir][..], &to].concat())
        .ok();
    for (service, written) in SERVICES.into_iter().zip(written) {
        stack.wait_for_log(service, written, "method table reloaded");
    }

    assert_eq!(ask(&stack, "feedser", &ci, Some("dev")).await, Ok(()));
    assert_eq!(
        ask(&stack, "feedser", &ci, Some("prod")).await,
        denied("TENANT_NOT_ALLOWED")
    );
    assert_eq!(ask(&stack, "feedser", &ci, None).await, denied("TENANT_REQUIRED"));
    assert_eq!(
        ask(&stack, "backfill", &ci, Some("dev")).await,
        denied("METHOD_NOT_ALLOWED")
    );
    assert_eq!(SERVICES.map(|service| stack.pid(service)), pids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_may_sign_nothing_with_a_key_may_not_rotate_it() {
    let stack = Stack::shared();
    let other = stack.issue("rotator");
    let written = stack.log("signer").len();
    let (dir, whom) = (stack.dir().display().to_string(), id("rotator"));
    let to = [
        "--id",
        whom.as_str(),
        "--method",
        "stella.signer.v1.SignerService/*",
        "--for-tenant",
        "other",
    ];
    stack
        .stella(&[&["access", "grant", "--dir", &dir][..], &to].concat())
        .ok();
    stack.wait_for_log("signer", written, "method table reloaded");

    let channel = stack.connect("signer", &other, None).await.expect("let in");
    let mut request = Request::new(signer_pb::RotateKeyRequest::default());
    select_tenant(&mut request, &"other".parse().expect("a tenant"));
    let answer = SignerServiceClient::new(channel).rotate_key(request).await;
    assert_eq!(
        refused(answer, "another tenant's caller"),
        want(Code::PermissionDenied, "KEY_NOT_ALLOWED")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_operator_may_call_everything_and_yet_neither_witness_nor_seal() {
    let stack = Stack::shared();
    let mut verifier = VerifierServiceClient::new(stack.channel("verifier").await);
    let cosign = verifier_pb::CosignCheckpointRequest {
        checkpoint: "?".into(),
        ..Default::default()
    };
    let answer = verifier.cosign_checkpoint(Request::new(cosign.clone())).await;
    assert_eq!(
        refused(answer, "the operator"),
        want(Code::PermissionDenied, "COSIGN_NOT_ALLOWED")
    );
    let channel = stack
        .connect("verifier", &stack.stolen("signer"), None)
        .await
        .expect("a connection");
    let answer = VerifierServiceClient::new(channel)
        .cosign_checkpoint(Request::new(cosign))
        .await;
    assert_eq!(
        refused(answer, "the Signer"),
        want(Code::InvalidArgument, "CHECKPOINT_MALFORMED")
    );

    let subject = Digest::of(b"sealed");
    let seal = verifier_pb::Seal {
        event: event("evt_sealed", &subject).into(),
        next_rev: 1,
        ..Default::default()
    };
    let verify = verifier_pb::VerifyRequest {
        evidence: "{}".into(),
        seal: Some(seal),
        ..Default::default()
    };
    let answer = verifier.verify(stack.request(verify.clone())).await;
    assert_eq!(
        refused(answer, "the operator"),
        want(Code::PermissionDenied, "SEAL_NOT_ALLOWED")
    );
    let items = vec![verifier_pb::VerifyBatchItem {
        reference: "1".to_owned(),
        request: Some(verify),
    }];
    let batch = stack.request(tokio_stream::once(verifier_pb::VerifyBatchRequest { items }));
    let mut answers = verifier.verify_batch(batch).await.expect("answers").into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    let outcomes: Vec<Option<Refusal>> = answer
        .results
        .into_iter()
        .map(|result| match result.outcome {
            Some(Judged::Error(error)) => Some((error.code.into(), error.reason)),
            _ => None,
        })
        .collect();
    assert_eq!(outcomes, [Some(want(Code::PermissionDenied, "SEAL_NOT_ALLOWED"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn feedser_alone_has_manifests_signed() {
    let stack = Stack::shared();
    let predicate = json!({"count": 0});
    let payload = statement::build("slice", &Digest::of(b"slice"), "stella.ops/slice@v1", predicate);
    let manifest = signer_pb::SignManifestRequest {
        payload: payload.into(),
    };
    let mut signer = SignerServiceClient::new(stack.channel("signer").await);
    let answer = signer.sign_manifest(stack.request(manifest.clone())).await;
    assert_eq!(
        refused(answer, "the operator"),
        want(Code::PermissionDenied, "MANIFEST_NOT_ALLOWED")
    );
    let channel = stack
        .connect("signer", &stack.stolen("feedser"), None)
        .await
        .expect("a connection");
    let answer = SignerServiceClient::new(channel)
        .sign_manifest(stack.request(manifest))
        .await;
    answer.expect("Feedser may");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_clients_keep_nobody_waiting() {
    let stack = Stack::shared();
    for service in SERVICES {
        let mut silent = Vec::new();
        for number in 0..200 {
            let mut stream = TcpStream::connect(address(&stack, service))
                .await
                .expect("connects");
            if number % 2 == 0 {
                // The beginning of a ClientHello, and never the rest.
                stream
                    .write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01])
                    .await
                    .expect("writes");
            }
            silent.push(stream);
        }
        let asked = tokio::time::timeout(AT_ONCE, ask(&stack, service, &stack.operator(), Some("dev"))).await;
        assert_eq!(asked, Ok(Ok(())), "{service}");
        for stream in &silent {
            let read = stream.try_read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(
                read,
                Err(std::io::ErrorKind::WouldBlock),
                "{service} still waits for them"
            );
        }
    }
}
