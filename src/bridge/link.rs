//! One document with one Node, for as long as the document is open: connects, runs session after session, and waits between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::error::BridgeError;
use super::round;
use super::session::Session;
use super::{BridgedDocument, Context, LinkState, NodeState};
use crate::ids::LogId;
use crate::limits::{BRIDGE_UNVERIFIED_OPERATIONS, CONNECT_DEADLINE};
use crate::watch;

/// One document with one Node.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) context: Arc<Context>,
    pub(super) node: Arc<NodeState>,
    pub(super) document: Arc<dyn BridgedDocument>,
    pub(super) log: LogId,
    pub(super) session: Mutex<Session>,
    state: Arc<Mutex<LinkState>>,
    online: watch::Receiver<bool>,
}

impl Link {
    pub(super) fn new(
        context: &Arc<Context>,
        node: &Arc<NodeState>,
        document: &Arc<dyn BridgedDocument>,
        state: &Arc<Mutex<LinkState>>,
        online: watch::Receiver<bool>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            node: Arc::clone(node),
            log: document.record().log(),
            document: Arc::clone(document),
            session: Mutex::new(Session::new(context.own, BRIDGE_UNVERIFIED_OPERATIONS)),
            state: Arc::clone(state),
            online,
        }
    }

    /// Runs until it is aborted.
    pub(super) async fn run(self) {
        let mut online = self.online.clone();
        // Sessions in a row that failed.
        let mut failures = 0;
        while online.wait_for(|online| *online).await.is_ok() {
            let ended = tokio::select! {
                biased;
                _ = online.wait_for(|online| !*online) => None,
                ended = self.connection() => ended,
            };
            let was_live = self.on_disconnected();
            match ended {
                // Closed from here after a while, to hear the Node's heights.
                Some(Ok(())) => failures = 0,
                Some(Err(error)) => {
                    failures = if was_live { 1 } else { failures + 1 };
                    self.on_lost(error);
                    self.node.gate.pause(failures).await;
                }
                // Off line, or not reached: then the gate lets nobody through for a while.
                None => self.session().on_lost(),
            }
        }
    }

    /// One connection, from the dial to its end; `None` when the Node was not reached.
    async fn connection(&self) -> Option<Result<(), BridgeError>> {
        let permit = self.node.gate.admit().await?;
        let began = Instant::now();
        let dialled = self.context.dialler.dial_node(&self.node.node, &self.node.protocol, CONNECT_DEADLINE).await;
        let connection = match dialled {
            Ok(connection) => connection,
            Err(error) => {
                self.node.gate.on_failed(began);
                self.on_lost(error.into());
                return None;
            }
        };
        self.node.gate.on_connected();
        let greeted = match round::greet(self, &*connection).await {
            Ok(greeted) => greeted,
            Err(error) => return Some(Err(error)),
        };
        drop(permit);
        Some(round::run(self, connection, greeted).await)
    }

    /// The Node told its heights.
    pub(super) fn on_connected(&self) {
        self.state().connected = true;
    }

    /// Both sides are past catching up.
    pub(super) fn on_live(&self) {
        let mut state = self.state();
        if !state.live {
            state.live = true;
            tracing::debug!(node = %self.node.node.key().short(), document = %self.log.short(), "live with a Node");
        }
    }

    /// So many operations or frames of the Node were not taken.
    pub(super) fn refuse(&self, count: u64) {
        add(&self.node.refused, count);
    }

    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether it had been live.
    fn on_disconnected(&self) -> bool {
        let mut state = self.state();
        state.connected = false;
        std::mem::take(&mut state.live)
    }

    fn on_lost(&self, error: BridgeError) {
        tracing::info!(node = %self.node.node.key().short(), document = %self.log.short(), %error, "no session with a Node");
        self.session().on_lost();
        self.state().problem = Some(error);
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
