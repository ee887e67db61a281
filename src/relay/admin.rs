//! `/healthz` and `/metrics` over plain HTTP, for whoever runs the relay.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use axum::serve::Listener;

use super::shared::Shared;
use crate::net::StreamListener;
use crate::transports::stream::TokioStream;

/// The text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How long accepting pauses after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The port's listener as axum's.
struct AdminListener(Box<dyn StreamListener>);

impl Listener for AdminListener {
    type Io = TokioStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TokioStream, SocketAddr) {
        loop {
            match poll_fn(|context| self.0.poll_accept(context)).await {
                Ok((stream, from)) => return (TokioStream(stream), from),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local_address())
    }
}

/// Serves until the relay stops.
pub(super) async fn serve(shared: Arc<Shared>, listener: Box<dyn StreamListener>) {
    let mut stopping = shared.stopping.subscribe();
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(metrics))
        .with_state(shared.clone());
    let server = axum::serve(AdminListener(listener), router).with_graceful_shutdown(async move {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    });
    if let Err(error) = server.await {
        tracing::warn!(%error, "the admin address is served no more");
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> ([(axum::http::HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, PROMETHEUS)], shared.snapshot().to_prometheus())
}
