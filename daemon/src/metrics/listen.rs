//! The listener for scrapes: `GET /metrics` over HTTP on a loopback address.
//!
//! Invariants: loopback only, which the configuration checks; one request for each connection, within a deadline; the
//! number of connections is bounded, and others wait in the kernel.
//! Absent: encryption and passwords: every program on this host may read the names of disks here.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::Metrics;
use crate::error::{Error, Result};

/// Scrapes at the same time.
const CONNECTIONS_MAX: usize = 8;
/// From the connection to the last byte of the answer; Prometheus itself gives up after ten seconds.
const DEADLINE: Duration = Duration::from_secs(30);
/// From the connection to the end of the request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What the text is.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Binds the address. Must be called inside a tokio runtime.
///
/// # Errors
/// The address is taken.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let failed = |e| Error::io(format!("listen on {address} (metrics.listen)"), &e);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tracing::info!(%address, "serving metrics");
    Ok(listener)
}

/// Answers scrapes until `shutdown` becomes true.
pub async fn serve(
    metrics: Arc<Metrics>,
    listener: TcpListener,
    mut shutdown: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let slot = Arc::clone(&slots).acquire_owned();
        let accepted = tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => return,
            Some(_) = connections.join_next() => continue,
            accepted = async { (slot.await, listener.accept().await) } => accepted,
        };
        match accepted {
            (Ok(slot), Ok((stream, _))) => {
                let metrics = Arc::clone(&metrics);
                connections.spawn(async move {
                    if timeout(DEADLINE, answer(metrics, stream)).await.is_err() {
                        tracing::debug!("a scrape took too long and was cut off");
                    }
                    drop(slot);
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "cannot accept a scrape");
                sleep(ACCEPT_PAUSE).await;
            }
            (Err(_), _) => return,
        }
    }
}

async fn answer(metrics: Arc<Metrics>, stream: TcpStream) {
    let service = service_fn(move |request| {
        let metrics = Arc::clone(&metrics);
        async move { Ok::<_, Infallible>(respond(metrics, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scrape");
    }
}

async fn respond(metrics: Arc<Metrics>, request: Request<Incoming>) -> Response<String> {
    if request.uri().path() != "/metrics" {
        let text = "rowd: the metrics are at /metrics\n";
        return plain(StatusCode::NOT_FOUND, text, None);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = (ALLOW, HeaderValue::from_static("GET, HEAD"));
        return plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are only read\n", Some(allow));
    }
    match spawn_blocking(move || metrics.text()).await {
        Ok(Ok(text)) => {
            let format = (CONTENT_TYPE, HeaderValue::from_static(FORMAT));
            plain(StatusCode::OK, &text, Some(format))
        }
        Ok(Err(error)) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.message(), None),
        Err(error) => {
            tracing::error!(%error, "metrics");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the daemon's log has the details\n", None)
        }
    }
}

fn plain(
    status: StatusCode,
    text: &str,
    header: Option<(HeaderName, HeaderValue)>,
) -> Response<String> {
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = status;
    if let Some((name, value)) = header {
        response.headers_mut().insert(name, value);
    }
    response
}
