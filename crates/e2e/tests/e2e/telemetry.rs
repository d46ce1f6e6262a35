//! Traces, as an OTLP collector receives them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use serde_json::json;
use stella_testkit::stack::Stack;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// The methods that each trace went through, as `service method`.
type Traces = BTreeMap<Vec<u8>, Vec<String>>;

/// Longest wait for spans; services send them every few seconds.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Traces>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut traces = self.0.lock().expect("whole");
        for of_service in request.into_inner().resource_spans {
            let attributes = of_service.resource.unwrap_or_default().attributes;
            let name = attributes
                .into_iter()
                .find(|attribute| attribute.key == "service.name");
            let name = match name.and_then(|name| name.value?.value) {
                Some(Value::StringValue(name)) => name,
                other => panic!("service.name is {other:?}"),
            };
            for span in of_service.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                traces
                    .entry(span.trace_id)
                    .or_default()
                    .push(format!("{name} {}", span.name));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_sees_a_call_on_its_way_from_service_to_service_as_one_trace() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = TraceServiceServer::new(collector.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    let stack = Stack::start_with(|dir| {
        for service in ["signer", "verifier", "feedser", "backfill"] {
            let file = dir.join(format!("{service}/{service}.toml"));
            let config = std::fs::read_to_string(&file).unwrap();
            let telemetry = format!("[telemetry]\notlp_endpoint = \"http://127.0.0.1:{port}\"\n");
            std::fs::write(&file, format!("{config}\n{telemetry}")).unwrap();
        }
    });
    let subject = stack.write("app.bin", "traced");
    let bundle = stack.attest("vex", &subject, &json!({"statements": []}), "traced");
    stack
        .stella(&["publish", &bundle.display().to_string(), "--kind", "VEX"])
        .ok();

    let of_feedser = "stella-feedser stella.feedser.v1.FeedserService/AppendEvents";
    let want = [
        of_feedser,
        "stella-verifier stella.verifier.v1.VerifierService/Verify",
    ];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let traces = collector.0.lock().unwrap().clone();
        let is_whole = |spans: &Vec<String>| {
            want.iter()
                .all(|want| spans.iter().any(|span| span.starts_with(want)))
        };
        if traces.values().any(is_whole) {
            return;
        }
        assert!(Instant::now() < deadline, "no trace has both spans: {traces:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
