//! One client: greeting, a request line in, a reply line out, and at most one event stream beside
//! them.
//!
//! Invariants: requests are carried out one after the other and each is answered, also one that
//! makes no sense; a reply and an event never mix within a line; a client that stalls in the middle
//! of a line, or does not take its replies, is cut off and costs nothing more.
//! Absent: parameters and replies of methods (`handlers`).

use std::sync::Arc;
use std::time::Duration;

use rowd_proto::{
    Access, Greeting, LineBuffer, Method, PROTOCOL, REQUEST_BYTES_MAX, Rejection, Request,
    Response, ServerInfo, parse_request, to_line,
};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tracing::{debug, error};

use crate::engine::Engine;
use crate::engine::api::Actor;
use crate::error::{Error, ErrorKind};

use super::audit::Call;
use super::convert;
use super::handlers::{self, Failure, Outcome};
use super::{Role, Services, going_down};

/// From the first byte of a line to its last. Programs write a line at once; a minute lets a person
/// type one, and a client that died half-way does not hold a slot for ever.
const LINE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a client may take to make room for a reply or an event.
const REPLY_DEADLINE: Duration = Duration::from_secs(60);
/// One read from the socket: large enough for all but freak requests, small enough for the stack of
/// a task.
const READ_BYTES: usize = 8 << 10;
/// How long an event stream waits at a time, which bounds how long its thread outlives the
/// connection.
const EVENT_WAIT: Duration = Duration::from_secs(1);
/// The nouns this daemon has methods for, as the greeting tells them.
const FEATURES: &[&str] = &[
    "disk", "snapshot", "group", "instance", "image", "freeze", "chain", "tag", "pool", "events",
    "job", "scrub", "metrics", "usage", "audit",
];

/// The connection is of no further use: the client is gone or does not read.
struct Gone;

/// The sending side, shared by replies and events; the lock keeps their lines whole.
type Sender = Arc<Mutex<OwnedWriteHalf>>;

pub(super) struct Connection {
    services: Services,
    role: Role,
    actor: Actor,
    shutdown: watch::Receiver<bool>,
    stream: Option<EventStream>,
}

/// The task that sends events; ends with its connection.
struct EventStream(JoinHandle<()>);

impl Drop for EventStream {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    pub(super) fn new(
        services: Services,
        role: Role,
        actor: Actor,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Connection { services, role, actor, shutdown, stream: None }
    }

    /// Serves the client until it goes, misbehaves, or the daemon goes down.
    pub(super) async fn run(mut self, stream: UnixStream) {
        let (mut receiver, sender) = stream.into_split();
        let sender = Arc::new(Mutex::new(sender));
        if send(&sender, &greeting(self.role)).await.is_err() {
            return;
        }
        let mut buffer = LineBuffer::new(REQUEST_BYTES_MAX);
        loop {
            let line = match self.next_line(&mut receiver, &mut buffer).await {
                Ok(Some(line)) => line,
                Ok(None) => return,
                Err(rejection) => {
                    debug!(pid = self.actor.pid, error = %rejection.body, "control line refused");
                    // The stream cannot be cut into lines any more, so this answer is the last one;
                    // whether it arrives is the client's affair.
                    if send(&sender, &Response::from(rejection)).await.is_err() {
                        debug!(pid = self.actor.pid, "and the client did not take the answer");
                    }
                    return;
                }
            };
            if self.answer(&line, &sender).await.is_err() {
                return;
            }
        }
    }

    /// The next line; `None` when the client or the daemon has ended.
    async fn next_line(
        &mut self,
        receiver: &mut OwnedReadHalf,
        buffer: &mut LineBuffer,
    ) -> Result<Option<Vec<u8>>, Rejection> {
        let mut piece = [0u8; READ_BYTES];
        let mut begun: Option<Instant> = None;
        loop {
            match buffer.next_line() {
                Ok(None) => {}
                Ok(line) => return Ok(line),
                Err(error) => return Err(refusal(Error::invalid(error.to_string()))),
            }
            if begun.is_none() && buffer.is_partial() {
                begun = Some(Instant::now());
            }
            let stalled = async {
                match begun {
                    Some(begun) => tokio::time::sleep_until(begun + LINE_DEADLINE).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = going_down(&mut self.shutdown) => return Ok(None),
                received = receiver.read(&mut piece) => match received {
                    Ok(0) | Err(_) => return Ok(None),
                    Ok(count) => buffer.push(&piece[..count]),
                },
                () = stalled => {
                    let message = format!("the line was not finished within {LINE_DEADLINE:?}");
                    return Err(refusal(Error::new(ErrorKind::TimedOut, message)));
                }
            }
        }
    }

    /// Carries out one request and answers it.
    async fn answer(&mut self, line: &[u8], sender: &Sender) -> Result<(), Gone> {
        let request = match parse_request(line) {
            Ok(request) => request,
            Err(rejection) => return send(sender, &Response::from(rejection)).await,
        };
        match self.carry_out(request).await {
            Ok(Outcome::Reply(line)) => send_line(sender, &line).await,
            Ok(Outcome::Subscribe { after, reply }) => {
                // The reply first: it tells the client where the events that follow begin.
                send_line(sender, &reply).await?;
                let (engine, sender) = (Arc::clone(&self.services.engine), Arc::clone(sender));
                self.stream = Some(EventStream(tokio::spawn(stream_events(engine, sender, after))));
                Ok(())
            }
            Err(rejection) => send(sender, &Response::from(rejection)).await,
        }
    }

    async fn carry_out(&self, request: Request) -> Result<Outcome, Rejection> {
        let Request { id, method: name, params, .. } = request;
        let Some(method) = Method::from_name(&name) else {
            return Err(Rejection::no_method(id, &name));
        };
        let refused = self.refused(method);
        let (services, by, role) = (self.services.clone(), self.actor, self.role);
        let asked = id.clone();
        let called = spawn_blocking(move || {
            let began = Instant::now();
            let kept = (method.access() == Access::Admin).then(|| params.clone());
            let outcome = match refused {
                Some(error) => Err(error.into()),
                None => handlers::call(&services, by, (&asked, method), params),
            };
            if let Some(params) = kept {
                let failed = outcome.as_ref().err().map(Failure::told);
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                let (role, method) = (role.name(), method.name());
                services.audit.record(Call { by, role, method, params, millis, failed });
            }
            outcome
        })
        .await;
        let outcome = called.unwrap_or_else(|panic| {
            error!(method = name, %panic, "a control method failed");
            let message = format!("{name} failed inside the daemon");
            let error = Error::internal(message).hint("the daemon's log has the details");
            Err(Failure::Failed(convert::error_body(&error)))
        });
        outcome.map_err(|failure| match failure {
            Failure::Params(why) => Rejection::bad_params(id, &name, why),
            Failure::Failed(body) => Rejection::failed(Some(id), body),
        })
    }

    /// Why this connection may not call this method, if it may not.
    fn refused(&self, method: Method) -> Option<Error> {
        if self.role == Role::Observer && method.access() == Access::Admin {
            let message =
                format!("{} changes something, and this socket is read-only", method.name());
            return Some(Error::new(ErrorKind::NotPermitted, message).hint("use control.sock"));
        }
        if method == Method::EventsSubscribe && self.stream.is_some() {
            let message = "this connection has a subscription already";
            return Some(Error::new(ErrorKind::WrongState, message));
        }
        None
    }
}

/// Tells a client that is not let in why, as far as its socket takes it at once.
pub(super) fn refuse(stream: &UnixStream, error: Error) {
    let written = to_line(&Response::from(refusal(error))).map(|line| stream.try_write(&line));
    if !matches!(written, Ok(Ok(_))) {
        debug!("the refused client did not take the answer");
    }
}

/// An error that answers no particular request.
fn refusal(error: Error) -> Rejection {
    Rejection::failed(None, convert::error_body(&error))
}

fn greeting(role: Role) -> Greeting {
    Greeting {
        rowd: ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            role: role.name().to_owned(),
            features: FEATURES.iter().map(|name| (*name).to_owned()).collect(),
        },
    }
}

/// Sends events as they happen, until the client is gone or the connection ends this task.
async fn stream_events(engine: Arc<Engine>, sender: Sender, mut after: u64) {
    loop {
        let engine = Arc::clone(&engine);
        let waited = spawn_blocking(move || handlers::next_events(&engine, after, EVENT_WAIT));
        let Ok(events) = waited.await else { return };
        for (seq, notification) in events {
            if send(&sender, &notification).await.is_err() {
                return;
            }
            after = seq;
        }
    }
}

/// Sends one message as a line.
async fn send<T: Serialize>(sender: &Sender, message: &T) -> Result<(), Gone> {
    let line = to_line(message).map_err(|error| {
        error!(%error, "a reply cannot be encoded");
        Gone
    })?;
    send_line(sender, &line).await
}

/// Sends a line.
async fn send_line(sender: &Sender, line: &[u8]) -> Result<(), Gone> {
    let write = async { sender.lock().await.write_all(line).await };
    match timeout(REPLY_DEADLINE, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}
