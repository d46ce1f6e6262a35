//! Logs, traces and metrics of a process.
//!
//! Logs go to standard error, as text for people or as JSON, one line a call (see `door`). Traces go to an OTLP
//! collector when one is configured, joined to the caller's by the W3C header `traceparent`. Metrics are kept for
//! Prometheus and read at `/metrics`.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tonic::metadata::{MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry};

use crate::config::{LogFormat, TelemetryConfig};

/// Upper bounds of the latency histograms, in seconds.
const BUCKETS: [f64; 14] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter in `telemetry.log` makes no sense.
    #[error("`telemetry.log` is not a filter")]
    Filter(#[from] ParseError),
    /// `telemetry.otlp_endpoint` cannot be used.
    #[error("`telemetry.otlp_endpoint` cannot be used")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// What runs in the background; must be flushed at the end.
pub(crate) struct Telemetry {
    tracer: Option<SdkTracerProvider>,
    metrics: &'static PrometheusHandle,
}

impl Telemetry {
    /// Sets up logs, traces and metrics. Only the first subscriber of a process counts: a test may have its own.
    pub(crate) fn install(service: &str, config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let filter: Targets = config.log.parse()?;
        let tracer = config
            .otlp_endpoint
            .as_deref()
            .map(|endpoint| tracer(service, endpoint, config))
            .transpose()?;
        let traces = tracer.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("stella"))
                .with_level(true)
        });
        let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
        let lines = match config.format {
            LogFormat::Text => lines.with_ansi(false).boxed(),
            LogFormat::Json => lines
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .boxed(),
        };
        // An error means that the process has a subscriber already.
        let _ = Registry::default()
            .with(filter)
            .with(traces)
            .with(lines)
            .try_init();
        Ok(Self {
            tracer,
            metrics: recorder(),
        })
    }

    /// Whether calls get spans.
    pub(crate) fn is_traced(&self) -> bool {
        self.tracer.is_some()
    }

    /// The metrics in Prometheus' text format.
    pub(crate) fn metrics(&self) -> &'static PrometheusHandle {
        self.metrics
    }

    /// Sends what is still to be sent. Blocks for at most five seconds.
    pub(crate) fn flush(&self) {
        if let Some(tracer) = &self.tracer
            && let Err(error) = tracer.shutdown_with_timeout(Duration::from_secs(5))
        {
            tracing::warn!(%error, "traces were not sent");
        }
    }
}

fn tracer(
    service: &str,
    endpoint: &str,
    config: &TelemetryConfig,
) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
            config.trace_ratio.get(),
        ))))
        .with_resource(
            Resource::builder()
                .with_service_name(format!("stella-{service}"))
                .build(),
        )
        .build())
}

/// The recorder of this process; the first call makes it and starts its upkeep.
fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets(&BUCKETS)
            .expect("there are buckets")
            .build_recorder();
        let handle = recorder.handle();
        // An error means that the process has a recorder already; then ours stays empty.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        let upkeep = handle.clone();
        let spawned = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                loop {
                    std::thread::sleep(Duration::from_secs(5));
                    upkeep.run_upkeep();
                }
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "histograms are tidied only when they are read");
        }
        handle
    })
}

fn describe() {
    metrics::describe_counter!("stella_calls_total", "Calls that ended, by method and gRPC code.");
    metrics::describe_histogram!("stella_call_seconds", "Time that calls took, by method.");
    metrics::describe_gauge!("stella_calls_in_flight", "Calls that run.");
    metrics::describe_gauge!("stella_connections", "Connections that are open.");
    metrics::describe_counter!(
        "stella_connections_refused_total",
        "Connections closed at once because there were too many, in all or from one address, by reason."
    );
    metrics::describe_counter!(
        "stella_connections_closed_total",
        "Connections closed because their peers were silent for too long, by what was missing."
    );
    metrics::describe_counter!(
        "stella_tls_handshake_failures_total",
        "TLS handshakes that failed, by reason."
    );
    metrics::describe_counter!(
        "stella_reloads_total",
        "Files read again, by what they are and by outcome."
    );
}

/// The span of a call of `method`, a child of the caller's.
pub(crate) fn call_span(method: &str, headers: &http::HeaderMap) -> Span {
    let span = tracing::info_span!(
        "call",
        otel.kind = "server",
        otel.name = method,
        otel.status_code = tracing::field::Empty,
        rpc.system = "grpc",
        rpc.grpc.status_code = tracing::field::Empty,
        caller = tracing::field::Empty,
        tenant = tracing::field::Empty,
        request_id = tracing::field::Empty,
    );
    let parent =
        opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)));
    // An error means that no collector is configured.
    let _ = span.set_parent(parent);
    span
}

/// Puts the current trace into a request to another service.
pub(crate) fn inject(metadata: &mut MetadataMap) {
    let span = Span::current();
    if !span.is_none() {
        let context = span.context();
        opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut Metadata(metadata));
        });
    }
}

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}
