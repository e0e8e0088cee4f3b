//! What a daemon does when it is told to stop, or to say how it is doing.

use std::{io, process, sync::Arc, thread, time::Duration};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};

use serde_json::Value;

use crate::fuse::{Force, Session};

/// How long readers may finish after a signal. Init systems kill after ninety seconds.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// How long threads may take to end after the mount is gone; one may hang in a read of the source.
pub(super) const END_GRACE: Duration = Duration::from_secs(5);

/// How long a forced end may take before the process is ended from within.
pub(super) const FORCED_GRACE: Duration = Duration::from_secs(1);

/// Signals are held back from here on, so that none can end the process between mounting and
/// [`Stop::watch`] and leave a dead mount.
pub(super) struct Stop(Signals);

impl Stop {
    /// # Errors
    /// Where the system refuses the handlers.
    pub(super) fn new() -> io::Result<Self> {
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1]).map(Self)
    }

    /// Takes the mount down at the first signal, gives up its readers at the second; SIGUSR1 logs what `state` says.
    ///
    /// # Errors
    /// Where the system refuses a thread.
    pub(super) fn watch(
        mut self,
        session: Arc<Session>,
        state: impl Fn() -> Result<Value, String> + Send + 'static,
    ) -> io::Result<()> {
        let watch = move || {
            let mut told = false;
            for signal in self.0.forever() {
                if signal == SIGUSR1 {
                    match state() {
                        Ok(state) => tracing::info!("state: {state}"),
                        Err(e) => tracing::warn!("no state: {e}"),
                    }
                    continue;
                }
                tracing::info!(signal, "told to stop");
                let (force, grace) = if told { (Force::Yes, FORCED_GRACE) } else { (Force::No, GRACE) };
                told = true;
                stop(&session, force, grace);
            }
        };
        thread::Builder::new().name("signals".into()).spawn(watch).map(drop)
    }
}

/// Takes the mount down; the process ends with its last reader, or when the grace is over.
pub(super) fn stop(session: &Arc<Session>, force: Force, grace: Duration) {
    // Started first: not even an unmount that hangs may keep the process.
    end_within(grace, "readers that are left get errors");
    match session.unmount(force) {
        Err(e) => tracing::error!("{e}"),
        Ok(()) => match session.open_files() {
            0 => tracing::info!("unmounted"),
            open => tracing::info!(open, "unmounted; readers finish (a second signal ends them)"),
        },
    }
}

/// Ends the process from within when the time is over, whatever hangs.
pub(super) fn end_within(grace: Duration, what: &'static str) {
    let watchdog = thread::Builder::new().name("watchdog".into()).spawn(move || {
        thread::sleep(grace);
        tracing::warn!("the grace of {} s is over; {what}", grace.as_secs());
        process::exit(0);
    });
    if let Err(e) = watchdog {
        tracing::error!("no watchdog: {e}");
    }
}
