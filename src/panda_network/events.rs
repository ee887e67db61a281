//! What happens to a node's peers, for whoever wants to watch: found, connected, gone.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::discovery::Source;
use crate::discovery::policy::Refusal;
use crate::ids::{DocumentId, PeerId};
use crate::limits::EVENTS_QUEUE;
use crate::transport::{PathKind, TransportKind};

/// Something happened to a peer.
///
/// A peer that discovery finds is handed over to the connections: [`PeerFound`](Self::PeerFound) says how it was found, and
/// [`PeerConnected`](Self::PeerConnected) by which of the transports that it advertises it was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkEvent {
    /// A peer was found that shares a document, and will be dialled unless it is connected. Told once per peer, document and
    /// source while the document is open, and again when it was given up for others meanwhile. It names itself: whether it is there, and who it is, shows when it is connected.
    PeerFound {
        /// Who it is.
        peer: PeerId,
        /// What it shares.
        document: DocumentId,
        /// How it was found.
        source: Source,
    },
    /// A peer was found, or dialled this node, and is not connected to by choice
    /// ([`DiscoveryOptions`](crate::discovery::DiscoveryOptions)). Told once per peer and reason, however often it dials; again
    /// when 1,024 others were told of since.
    PeerRefused {
        /// Who it is.
        peer: PeerId,
        /// Why.
        reason: Refusal,
    },
    /// A peer is connected. Not told again when a newer connection takes over, or the path changes.
    PeerConnected {
        /// Who it is; it has proven that.
        peer: PeerId,
        /// Which transport carries the connection.
        transport: TransportKind,
        /// How its packets travel at first; [`PandaNetwork::connections`](crate::PandaNetwork::connections) says how they do now.
        path: PathKind,
        /// True when this node dialled.
        dialled: bool,
    },
    /// A peer is not connected any more.
    PeerDisconnected {
        /// Who it is.
        peer: PeerId,
    },
}

/// A listener of events was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{missed} events were missed; ask the node for its connections, and read on")]
pub struct EventsMissed {
    /// How many; those after them follow.
    pub missed: u64,
}

/// Events from the moment of asking on.
#[derive(Debug)]
pub struct NetworkEvents(Option<broadcast::Receiver<NetworkEvent>>);

impl NetworkEvents {
    /// The next event; `None` when the node has ended. Up to 1,024 wait for a slow listener. Cancel-safe.
    ///
    /// # Errors
    /// [`EventsMissed`] when more than that came meanwhile: the oldest are lost, and reading goes on after them.
    pub async fn next(&mut self) -> Option<Result<NetworkEvent, EventsMissed>> {
        match self.0.as_mut()?.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(RecvError::Lagged(missed)) => Some(Err(EventsMissed { missed })),
            Err(RecvError::Closed) => None,
        }
    }
}

/// Where the node's parts tell events. Ends with [`close`](Self::close), whoever still holds it.
#[derive(Debug)]
pub(super) struct Events(Mutex<Telling>);

#[derive(Debug)]
struct Telling {
    sender: Option<broadcast::Sender<NetworkEvent>>,
    /// Refusals that were told of.
    refused: BTreeSet<(PeerId, Refusal)>,
}

impl Events {
    pub fn new() -> Self {
        let sender = Some(broadcast::Sender::new(EVENTS_QUEUE));
        Self(Mutex::new(Telling { sender, refused: BTreeSet::new() }))
    }

    /// Without a listener nothing is kept.
    pub fn tell(&self, event: NetworkEvent) {
        let Telling { sender, refused } = &mut *self.lock();
        let Some(sender) = sender.as_ref().filter(|sender| sender.receiver_count() > 0) else { return };
        if let NetworkEvent::PeerRefused { peer, reason } = event {
            // Whoever is refused dials again and again, and would push out what else happens.
            if refused.len() >= EVENTS_QUEUE {
                refused.clear();
            }
            if !refused.insert((peer, reason)) {
                return;
            }
        }
        let _ = sender.send(event);
    }

    pub fn subscribe(&self) -> NetworkEvents {
        NetworkEvents(self.lock().sender.as_ref().map(broadcast::Sender::subscribe))
    }

    pub fn close(&self) {
        self.lock().sender = None;
    }

    fn lock(&self) -> MutexGuard<'_, Telling> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[tokio::test]
    async fn a_peer_that_is_refused_again_and_again_is_told_of_once_and_pushes_nothing_out() {
        let events = Events::new();
        let mut listener = events.subscribe();
        let peer = Identity::from_seed(&[1; 32]).peer_id();
        let refused = |reason| NetworkEvent::PeerRefused { peer, reason };
        for _ in 0..2 * EVENTS_QUEUE {
            events.tell(refused(Refusal::Limit));
            events.tell(refused(Refusal::NotAllowed));
        }
        events.close();
        assert_eq!(listener.next().await, Some(Ok(refused(Refusal::Limit))));
        assert_eq!(listener.next().await, Some(Ok(refused(Refusal::NotAllowed))));
        assert_eq!(listener.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_how_many_events_it_missed_and_reads_on() {
        let events = Events::new();
        let mut listener = events.subscribe();
        let peer = Identity::from_seed(&[1; 32]).peer_id();
        for _ in 0..EVENTS_QUEUE + 7 {
            events.tell(NetworkEvent::PeerDisconnected { peer });
        }
        events.close();
        assert_eq!(listener.next().await, Some(Err(EventsMissed { missed: 7 })));
        for _ in 0..EVENTS_QUEUE {
            assert_eq!(listener.next().await, Some(Ok(NetworkEvent::PeerDisconnected { peer })));
        }
        assert_eq!(listener.next().await, None);
        assert_eq!(events.subscribe().next().await, None, "the node has ended");
    }
}
