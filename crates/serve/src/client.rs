//! Connections of tools and tests: files in, a channel out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::access::SpiffeId;
use crate::config::ServiceUrl;
use crate::tls::{Credentials, install_provider};
use crate::upstream::{ConnectError, Connector, UpstreamChannel};

/// Connects to a service. With `expected`, only the service of that identity will do.
///
/// A server that refuses our certificate says so only after the handshake (TLS 1.3): then this may still succeed, and
/// the first call fails.
pub async fn connect(
    ca: &Path,
    certificate: &Path,
    key: &Path,
    url: &ServiceUrl,
    expected: Option<SpiffeId>,
) -> Result<UpstreamChannel, ConnectError> {
    connect_many(ca, certificate, key, url, expected, 1).await
}

/// The same over several connections; clones made with [`UpstreamChannel::turn`] take turns on them.
pub async fn connect_many(
    ca: &Path,
    certificate: &Path,
    key: &Path,
    url: &ServiceUrl,
    expected: Option<SpiffeId>,
    connections: usize,
) -> Result<UpstreamChannel, ConnectError> {
    install_provider();
    let credentials = Credentials::load(ca, certificate, key)?;
    let connector = Connector {
        credentials: Arc::new(ArcSwap::from_pointee(credentials)),
        url: url.clone(),
        expected,
        timeout: Duration::from_secs(10),
    };
    connector.connected(connections).await
}
