//! The daemon: opens the engine, serves its sockets until a signal, and closes in order.
//!
//! Invariants: systemd is told `READY` when clients can connect and what was attached is attached again;
//! at the end connections go first, the engine last, so that nothing is answered that is not kept.
//! Absent: the command line (`main.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::attach::Attach;
use crate::config::Config;
use crate::control::{self, Access, Audit, Control, Role, Services};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::faults;
use crate::freeze::Freezer;
use crate::handover;
use crate::memory;
use crate::metrics::{self, Metrics};
use crate::nbd::activation::{Inherited, InheritedFd, inherited};
use crate::nbd::listen::{Listener, bind_tcp, bind_unix};
use crate::nbd::{Resumed, Server};
use crate::policy::Policies;
use crate::pool::file::IoMode;
use crate::usage;
use crate::vault::Vault;
use crate::watchdog;

/// How long connections may take to end at shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long connections may take to come to a message boundary. One client that stops in the middle of a
/// message must not keep the others waiting for long.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(2);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The pool cannot be opened or a socket cannot be bound.
pub fn run(config: &Config) -> Result<()> {
    let inherited = inherited()?;
    // Before any thread: what is set for this one, the others inherit.
    memory::begin(config.lock_memory, config.settings.io == IoMode::Direct);
    let began = std::time::Instant::now();
    let engine = Engine::open(config.settings.clone())?;
    tracing::info!(took = ?began.elapsed(), "the pool is open");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::io("start the runtime", &e))?;
    let server = Server::new(&engine, config.busy_poll)?;
    let attach = Attach::new(&engine, &server, config.attach)?;
    let freezer = Freezer::new(config.freeze.clone());
    let vault = Vault::new(&engine)?;
    let metrics = Metrics::new(&engine, &freezer);
    let policies = Policies::new(&engine, &freezer);
    let audit = Arc::new(Audit::new(config.audit.clone()));
    let told = format!("{config:#?}\n").into();
    let services =
        Services { engine, attach, freezer, vault, metrics, policies, audit, config: told };
    let daemon = Daemon { services, server };
    let served = runtime.block_on(daemon.serve(config, inherited));
    daemon.services.policies.close();
    // Before the connections, so that they stand still for as short as possible.
    runtime.shutdown_timeout(DRAIN_LIMIT);
    daemon.services.vault.close();
    let left = daemon.leave();
    daemon.services.vault.end();
    served.and(left).and(daemon.services.engine.close())
}

/// The parts of the daemon.
struct Daemon {
    services: Services,
    server: Arc<Server>,
}

impl Daemon {
    /// Serves until a signal; connections are still served afterwards.
    async fn serve(&self, config: &Config, inherited: Inherited) -> Result<()> {
        // Before anybody is told that the daemon is ready: a signal would end it on the spot until then.
        let signals = Signals::listen()?;
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let listeners = listeners(config, inherited.listening)?;
        let controls = controls(config)?;
        let scrapes = match config.metrics.listen {
            Some(address) => Some(metrics::listen::bind(address).await?),
            None => None,
        };
        self.take_over(inherited.stored);
        for listener in listeners {
            tracing::info!(address = listener.address(), "serving NBD");
            tasks.spawn(Arc::clone(&self.server).serve(listener, stopped.clone()));
        }
        for (listener, role, access) in controls {
            let (services, stopped) = (self.services.clone(), stopped.clone());
            tasks.spawn(async move {
                if let Err(error) = Control::serve(services, listener, role, access, stopped).await
                {
                    tracing::error!(%error, "control socket");
                }
            });
        }
        tasks.spawn(usage::sample(
            Arc::clone(&self.services.engine),
            Arc::clone(&self.services.vault),
            stopped.clone(),
        ));
        self.tell_metrics(&config.metrics, scrapes, &mut tasks, &stopped);
        if let Some(limit) = sd_notify::watchdog_enabled() {
            let engine = Arc::clone(&self.services.engine);
            // Takes the locks of the catalogue and of the allocator.
            let ask = move || drop(engine.status());
            let tell = || notify(&[sd_notify::NotifyState::Watchdog]);
            tasks.spawn(watchdog::run(limit, ask, tell, stopped.clone()));
        }
        // Only now can the devices below what is frozen answer.
        self.services.freezer.recover(&self.services.engine)?;
        // Copies can wait, and who uses the disks cannot.
        if let Err(error) = self.services.vault.resume() {
            tracing::error!(%error, "not all copies under way go on; the next start tries again");
        }
        // What is due freezes file systems, which are thawed and can answer from here on.
        self.services.policies.start()?;
        notify(&[sd_notify::NotifyState::Ready]);
        faults::hold_point("daemon.ready");
        tracing::info!(dir = %config.settings.dir.display(), "ready");
        signals.arrived().await;
        notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping");
        stop.send_replace(true);
        self.services.freezer.close();
        while tasks.join_next().await.is_some() {}
        remove_sockets(config);
        Ok(())
    }

    /// Keeps the metrics where the configuration wants them.
    fn tell_metrics(
        &self,
        settings: &metrics::Settings,
        scrapes: Option<TcpListener>,
        tasks: &mut JoinSet<()>,
        stopped: &watch::Receiver<bool>,
    ) {
        let told = || Arc::clone(&self.services.metrics);
        if let Some(listener) = scrapes {
            tasks.spawn(metrics::listen::serve(told(), listener, stopped.clone()));
        }
        if let Some(path) = &settings.textfile {
            let (path, every) = (path.clone(), settings.interval);
            tasks.spawn(metrics::textfile::keep(told(), path, every, stopped.clone()));
        }
    }

    /// Goes on with the connections of the process before, and attaches what should be attached.
    fn take_over(&self, stored: Vec<InheritedFd>) {
        let (devices, others): (Vec<_>, Vec<_>) =
            handover::take(stored).into_iter().partition(|(_, kept)| kept.device.is_some());
        // Kernel devices first: what waits for them may be what everything else needs.
        self.services.attach.restore(devices);
        for (fd, kept) in others {
            let peer = kept.peer.clone();
            if let Err(error) = self.server.resume(Resumed { fd, kept, device: None }) {
                tracing::warn!(%error, peer, "a connection is closed");
            }
        }
    }

    /// Ends the connections, or hands them over where there is somebody to take them.
    fn leave(&self) -> Result<()> {
        let Services { engine, attach, .. } = &self.services;
        attach.stop();
        let hands_over = handover::possible();
        if hands_over {
            // Leaves less to do between the last answer here and the first of the next process.
            engine.checkpoint()?;
            self.server.leave()?;
        } else {
            engine.hang_up_all();
        }
        if !self.server.drained(if hands_over { HAND_OVER_LIMIT } else { DRAIN_LIMIT }) {
            tracing::warn!("some connections did not end in time");
            engine.hang_up_all();
            if !self.server.drained(DRAIN_LIMIT) {
                tracing::warn!("some connections are cut off");
            }
        }
        let kept = self.server.take_kept();
        let connections = kept.len();
        handover::store(kept)?;
        if connections > 0 {
            tracing::info!(connections, "handed over");
        }
        Ok(())
    }
}

/// The control sockets, with who may use them.
fn controls(config: &Config) -> Result<[(UnixListener, Role, Access); 2]> {
    let admin = Access { gids: config.control_gids.clone() };
    let mut observer = admin.clone();
    observer.gids.extend(&config.observer_gids);
    // Others than the group of the file come then; the kernel tells who they are.
    let mode = if config.observer_gids.is_empty() { 0o660 } else { 0o666 };
    Ok([
        (control::bind(&config.control_socket, 0o660)?, Role::Admin, admin),
        (control::bind(&config.read_only_socket, mode)?, Role::Observer, observer),
    ])
}

fn listeners(config: &Config, inherited: Vec<InheritedFd>) -> Result<Vec<Listener>> {
    let mut all = vec![bind_unix(&config.nbd_socket, config.nbd_socket_mode)?];
    for address in &config.tcp {
        all.push(bind_tcp(*address)?);
    }
    for socket in inherited {
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

/// The signals that ask the daemon to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Signals> {
        let listen = |kind| signal(kind).map_err(|e| Error::io("listen for signals", &e));
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Signals { terminate: listen(terminate)?, interrupt: listen(interrupt)? })
    }

    /// Returns when one of them has come, be it before the call.
    async fn arrived(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
