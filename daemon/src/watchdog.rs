//! The service manager's watchdog: it is told that the daemon lives only when the engine has answered.
//!
//! Invariants: the question takes the locks that every request for a disk takes, on a thread of its own;
//! one that is not answered is waited for, never repeated, so that no threads pile up behind a lock.
//! Absent: what to do about it. The service manager starts the daemon anew.

use std::time::Duration;

use tokio::sync::watch;

/// Tells the service manager, until `stopped` changes, several times within each `limit` that the daemon
/// lives; `ask` is asked first, and `tell` called when it has answered.
pub async fn run(
    limit: Duration,
    ask: impl Fn() + Clone + Send + 'static,
    tell: impl Fn() + Send,
    mut stopped: watch::Receiver<bool>,
) {
    let pause = limit / 4;
    loop {
        let mut asked = tokio::task::spawn_blocking(ask.clone());
        let answered = tokio::select! {
            answered = &mut asked => answered,
            _ = stopped.changed() => return,
            () = tokio::time::sleep(limit / 2) => {
                tracing::error!("the engine does not answer; the watchdog is not told that rowd lives");
                tokio::select! {
                    answered = &mut asked => answered,
                    _ = stopped.changed() => return,
                }
            }
        };
        if let Err(error) = answered {
            tracing::error!(%error, "the engine could not be asked");
            return;
        }
        tell();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.changed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use parking_lot::Mutex;

    use super::*;

    /// While the question hangs, nothing is told; afterwards it goes on.
    #[tokio::test]
    async fn an_engine_that_hangs_is_not_said_to_live() {
        let (stop, stopped) = watch::channel(false);
        // The engine hangs until the sender is gone.
        let (holder, hang) = channel::<()>();
        let (hang, asked) = (Arc::new(Mutex::new(hang)), Arc::new(AtomicUsize::new(0)));
        let ask = {
            let asked = Arc::clone(&asked);
            move || {
                asked.fetch_add(1, Ordering::SeqCst);
                assert!(hang.lock().recv().is_err());
            }
        };
        let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
        let tell = move || told.send(()).unwrap();
        let limit = Duration::from_millis(20);
        let watching = tokio::spawn(run(limit, ask, tell, stopped));
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let early = tokio::time::timeout(10 * limit, tells.recv()).await;
        assert!(early.is_err(), "it was said to live while it hung");
        assert_eq!(asked.load(Ordering::SeqCst), 1, "it was asked again");
        drop(holder);
        for _ in 0..3 {
            tells.recv().await.unwrap();
        }
        stop.send_replace(true);
        watching.await.unwrap();
    }
}
