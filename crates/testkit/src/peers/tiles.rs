//! Serves the files below a directory over HTTP, as an object store in front of a tile log does.

use std::path::{Path, PathBuf};
use std::thread;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, Uri};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The server; it ends when this is dropped.
pub(crate) struct Tiles {
    url: String,
    _stop: oneshot::Sender<()>,
}

impl Tiles {
    /// Serves what lies below `directory`.
    pub(crate) fn serve(directory: &Path) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket of our own");
        let address = listener.local_addr().expect("a bound socket");
        let app = Router::new().fallback(file).with_state(directory.to_owned());
        let (stop, stopped) = oneshot::channel::<()>();
        // A thread of its own: the test may block its runtime, or have none.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = TcpListener::from_std(listener).expect("a socket of our own");
                tokio::select! {
                    served = axum::serve(listener, app) => served.expect("never ends"),
                    _ = stopped => {}
                }
            });
        });
        Self {
            url: format!("http://{address}"),
            _stop: stop,
        }
    }

    /// Its base URL, without a slash at the end.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

async fn file(State(directory): State<PathBuf>, uri: Uri) -> Response {
    let path = uri.path().trim_start_matches('/');
    if path.split('/').any(|part| part == "..") {
        return StatusCode::NOT_FOUND.into_response();
    }
    match tokio::fs::read(directory.join(path)).await {
        Ok(content) => content.into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}
