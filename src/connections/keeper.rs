//! Drives the state machine of one peer, and accepts those who dial us.

use std::sync::Arc;

use tokio::time::Instant;

use super::Inner;
use super::peer_machine::{PeerConnectionState, PeerMachine};
use crate::address::PeerAddress;
use crate::ids::PeerId;
use crate::limits::CONNECT_DEADLINE;
use crate::watch;

/// Takes connections until the transport is shut down.
pub(super) async fn accept(inner: Arc<Inner>) {
    while let Some(connection) = inner.transport.accept().await {
        inner.establish(connection);
    }
}

/// Keeps one peer connected until it is forgotten. Then its address ends, and without a connection also what `connected`
/// follows: each end must end this, or the loop would spin on it.
pub(super) async fn keep_connected(
    inner: Arc<Inner>,
    peer_id: PeerId,
    mut address: watch::Receiver<PeerAddress>,
    mut connected: watch::Receiver<Option<u64>>,
) {
    let (mut online, mut retries) = (inner.online.subscribe(), inner.retries.subscribe());
    let mut machine = PeerMachine::new(inner.policy.clone());
    loop {
        observe(&inner, &mut machine, *online.borrow_and_update(), connected.borrow_and_update().is_some());
        if machine.state() == PeerConnectionState::Connecting {
            let target = address.borrow_and_update().clone();
            let attempt = inner.transport.connect(&target, CONNECT_DEADLINE);
            tokio::select! {
                biased;
                _ = online.changed() => {}
                // Both dialled at once: the attempt of the smaller id is the one that will stay, so only the other is given up.
                changed = connected.changed(), if inner.node > peer_id => if changed.is_err() { return },
                result = attempt => match result {
                    Ok(connection) => {
                        machine.on_connected(Instant::now());
                        inner.establish(connection);
                    }
                    Err(error) => {
                        tracing::debug!(peer = %peer_id.short(), %error, "attempt failed");
                        machine.on_attempt_failed(Instant::now(), inner.random());
                    }
                },
            }
            continue;
        }
        let timeout = machine.poll_timeout().map(|(at, _reason)| at);
        tokio::select! {
            biased;
            _ = online.changed() => {}
            changed = connected.changed() => if changed.is_err() { return },
            _ = retries.changed() => machine.on_network_change(),
            changed = address.changed() => match changed {
                Ok(()) => machine.on_network_change(),
                // The peer was forgotten.
                Err(_) => return,
            },
            () = async { tokio::time::sleep_until(timeout.unwrap_or_else(Instant::now)).await }, if timeout.is_some() => {
                machine.on_timeout(Instant::now());
            }
        }
    }
}

/// Tells the machine what is the case now.
fn observe(inner: &Inner, machine: &mut PeerMachine, online: bool, connected: bool) {
    let now = Instant::now();
    let was_connected = matches!(machine.state(), PeerConnectionState::Connected { .. });
    match (online, connected) {
        (false, _) => machine.on_offline(),
        (true, true) => machine.on_connected(now),
        (true, false) if was_connected => machine.on_lost(now, inner.random()),
        (true, false) if machine.state() == PeerConnectionState::Disconnected => machine.on_network_change(),
        (true, false) => {}
    }
}
