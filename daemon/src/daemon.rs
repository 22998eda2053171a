//! The daemon: opens the engine, serves its sockets until a signal, and closes in order.
//!
//! Invariants: systemd is told `READY` when clients can connect; at the end connections go first, the
//! engine last, so that nothing is answered that is not kept.
//! Absent: the command line (`main.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::control::{self, Access, Control, Role};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::nbd::Server;
use crate::nbd::activation::inherited_sockets;
use crate::nbd::listen::{Listener, bind_tcp, bind_unix};

/// How long connections may take to end at shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The pool cannot be opened or a socket cannot be bound.
pub fn run(config: &Config) -> Result<()> {
    let engine = Engine::open(config.settings.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::io("start the runtime", &e))?;
    let served = runtime.block_on(serve(config, &engine));
    runtime.shutdown_timeout(DRAIN_LIMIT);
    served.and(engine.close())
}

async fn serve(config: &Config, engine: &Arc<Engine>) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let server = Server::new(engine, config.busy_poll)?;
    let mut tasks = JoinSet::new();
    for listener in listeners(config)? {
        tracing::info!(address = listener.address(), "serving NBD");
        tasks.spawn(Arc::clone(&server).serve(listener, stopped.clone()));
    }
    let access = Access { gids: config.control_gids.clone() };
    for (path, role, mode) in [
        (&config.control_socket, Role::Admin, 0o660),
        (&config.read_only_socket, Role::Observer, 0o660),
    ] {
        let listener = control::bind(path, mode)?;
        let (engine, access, stopped) = (Arc::clone(engine), access.clone(), stopped.clone());
        tasks.spawn(async move {
            if let Err(error) = Control::serve(engine, listener, role, access, stopped).await {
                tracing::error!(%error, "control socket");
            }
        });
    }
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(dir = %config.settings.dir.display(), "ready");
    wait_for_signal().await?;
    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    stop.send_replace(true);
    engine.hang_up_all();
    while tasks.join_next().await.is_some() {}
    if !server.drained(DRAIN_LIMIT).await {
        tracing::warn!("some connections did not end in time");
    }
    remove_sockets(config);
    Ok(())
}

fn listeners(config: &Config) -> Result<Vec<Listener>> {
    let mut all = vec![bind_unix(&config.nbd_socket, config.nbd_socket_mode)?];
    for address in &config.tcp {
        all.push(bind_tcp(*address)?);
    }
    for socket in inherited_sockets()? {
        all.push(Listener::from_fd(socket.fd)?);
    }
    Ok(all)
}

fn remove_sockets(config: &Config) {
    for path in [&config.nbd_socket, &config.control_socket, &config.read_only_socket] {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(%error, path = %path.display(), "socket not removed");
        }
    }
}

async fn wait_for_signal() -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::io("listen for signals", &e));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
