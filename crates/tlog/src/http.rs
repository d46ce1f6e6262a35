//! HTTP to servers that are not believed: bounded in time and size, repeated where that may help.
//!
//! What may pass is asked again, with pauses that grow and differ: a connection refused or cut, no answer in time, 5xx
//! (but 501), 408, 499, and 429, whose `Retry-After` is kept. Everything asked here may be asked twice. Redirects are not
//! followed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::redirect;
use reqwest::{Client, Method, StatusCode, Url};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

/// The pause after the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause that is not the server's wish.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Most requests that are in flight to one server; the others wait for a place.
const IN_FLIGHT: usize = 256;
/// Most connections that are kept open without use.
const IDLE_CONNECTIONS: usize = 64;
/// Most characters of what a server says that are passed on.
const MESSAGE_LENGTH: usize = 300;

/// A server.
pub(crate) struct Http {
    client: Client,
    base: String,
    attempt_timeout: Duration,
    places: Semaphore,
    /// Whether the last attempt failed, so that each change is said once.
    is_away: AtomicBool,
}

/// What is asked.
pub(crate) struct Request<'a> {
    /// Path and query, with a slash in front.
    pub(crate) path: &'a str,
    /// What is posted, with its content type; without it, this is a GET.
    pub(crate) post: Option<(&'static str, &'a [u8])>,
    /// Most bytes of the answer's body.
    pub(crate) limit: usize,
}

/// What was answered, with a status that will not change by asking again.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum HttpError {
    /// None came before the deadline; what was seen last.
    Unavailable(String),
    /// One came that is not read.
    Invalid { reason: &'static str, detail: String },
}

/// Not a URL of a server.
#[derive(Debug)]
pub(crate) enum BadServer {
    Url,
    Client(reqwest::Error),
}

impl<'a> Request<'a> {
    pub(crate) fn get(path: &'a str, limit: usize) -> Self {
        Self {
            path,
            post: None,
            limit,
        }
    }
}

impl Answer {
    /// The beginning of the body, as far as it is text.
    pub(crate) fn message(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let printable = text.chars().filter(|character| !character.is_control());
        printable.take(MESSAGE_LENGTH).collect()
    }

    /// The header `name`, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Why an attempt failed, and when the server wants the next one.
struct Failure {
    seen: String,
    retry_after: Option<Duration>,
}

enum Attempt {
    Failed(Failure),
    Invalid(HttpError),
}

impl Http {
    /// A server whose paths lie below `base`.
    pub(crate) fn new(base: &str, attempt_timeout: Duration) -> Result<Self, BadServer> {
        if base.contains('?') {
            return Err(BadServer::Url);
        }
        Self::at(base.trim_end_matches('/'), attempt_timeout)
    }

    /// A server that is asked at `url` itself, with the empty path.
    pub(crate) fn at(url: &str, attempt_timeout: Duration) -> Result<Self, BadServer> {
        let parsed = Url::parse(url).map_err(|_| BadServer::Url)?;
        if !matches!(parsed.scheme(), "http" | "https")
            || !parsed.has_host()
            || !parsed.username().is_empty()
            || parsed.password().is_some()
        {
            return Err(BadServer::Url);
        }
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .user_agent(concat!("stella/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(BadServer::Client)?;
        Ok(Self {
            client,
            base: url.to_owned(),
            attempt_timeout,
            places: Semaphore::new(IN_FLIGHT),
            is_away: AtomicBool::new(false),
        })
    }

    /// The URL without a query, which may be secret.
    fn name(&self) -> &str {
        self.base.split('?').next().unwrap_or_default()
    }

    /// Asks until there is an answer that counts, or until `deadline`.
    pub(crate) async fn send(&self, request: &Request<'_>, deadline: Instant) -> Result<Answer, HttpError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let Ok(place) = timeout_at(deadline, self.places.acquire()).await else {
                return Err(HttpError::Unavailable("too many requests are in flight".into()));
            };
            let until = deadline.min(Instant::now() + self.attempt_timeout);
            let failure = match timeout_at(until, self.attempt(request)).await {
                Ok(Ok(answer)) => {
                    if self.is_away.swap(false, Ordering::Relaxed) {
                        tracing::info!(url = self.name(), "the server answers again");
                    }
                    return Ok(answer);
                }
                Ok(Err(Attempt::Invalid(error))) => return Err(error),
                Ok(Err(Attempt::Failed(failure))) => failure,
                Err(_) => Failure {
                    seen: "no answer in time".into(),
                    retry_after: None,
                },
            };
            drop(place);
            if !self.is_away.swap(true, Ordering::Relaxed) {
                tracing::warn!(url = self.name(), seen = %failure.seen, "the server does not answer; it is asked again");
            }
            // Never at once, and never all together, whatever the server wishes.
            let wait = failure
                .retry_after
                .unwrap_or_default()
                .saturating_add(jittered(pause));
            // A server may want any pause, so nothing is added to the time.
            if wait >= deadline.saturating_duration_since(Instant::now()) {
                return Err(HttpError::Unavailable(failure.seen));
            }
            tracing::debug!(url = self.name(), path = request.path, seen = %failure.seen, "asking again");
            sleep(wait).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn attempt(&self, request: &Request<'_>) -> Result<Answer, Attempt> {
        let url = format!("{}{}", self.base, request.path);
        let outgoing = match request.post {
            None => self.client.request(Method::GET, url),
            Some((content_type, body)) => self
                .client
                .request(Method::POST, url)
                .header(CONTENT_TYPE, content_type)
                .body(body.to_vec()),
        };
        let response = outgoing.send().await.map_err(|error| failed(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read(response, request.limit).await?;
        let answer = Answer {
            status,
            headers,
            body,
        };
        if is_passing(status) {
            let seconds = answer
                .header(RETRY_AFTER.as_str())
                .and_then(|text| text.parse().ok());
            return Err(Attempt::Failed(Failure {
                seen: format!("status {}: {}", status.as_u16(), answer.message()),
                retry_after: seconds.map(Duration::from_secs),
            }));
        }
        Ok(answer)
    }
}

fn is_passing(status: StatusCode) -> bool {
    match status.as_u16() {
        // A Rekor v2 that works on several requests at once gives up on all of them when one client goes away, and tells
        // the others, too, that they have closed their requests (499).
        408 | 429 | 499 => true,
        501 => false,
        _ => status.is_server_error(),
    }
}

async fn read(mut response: reqwest::Response, limit: usize) -> Result<Vec<u8>, Attempt> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(Attempt::Invalid(HttpError::Invalid {
                reason: "ANSWER_TOO_LARGE",
                detail: format!("more than {limit} bytes"),
            }));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The error with its causes, for the top one says little.
fn failed(error: &reqwest::Error) -> Attempt {
    let mut seen = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        seen = format!("{seen}: {cause}");
        source = cause.source();
    }
    Attempt::Failed(Failure {
        seen,
        retry_after: None,
    })
}

/// Between half of `pause` and all of it, so that those who failed together do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness they do; nothing worse.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    pause / 2 + pause * u32::from(byte[0]) / 512
}
