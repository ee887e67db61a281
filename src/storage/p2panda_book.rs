//! p2panda's address book over ours: who is known, where each can be reached, and which topics they share with us.
//!
//! A topic here is that of a document in the store (`DocumentKey::topic`); others have no place. Records are signed: their
//! type says so, and who sends one from the future is refused. `insert_node_info` keeps the newest record, and may make room
//! by forgetting another stranger. What is shared with other nodes is the signed [`PeerAddress`] alone.

use std::collections::HashSet;
use std::time::Duration;

use p2panda_core::Topic;
use p2panda_store::address_book::{AddressBookStore, NodeInfo};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{P2pandaStoreError, SqliteStore, book};
use crate::address::PeerAddress;
use crate::ids::{LogId, PeerId};
use crate::limits::{BOOK_STALE_FAILURES, MAX_KNOWN_PEERS};
use crate::store::{KnownPeer, Store};

impl NodeInfo<PeerId> for KnownPeer {
    type Transports = PeerAddress;

    fn id(&self) -> PeerId {
        self.address.peer_id()
    }

    fn is_bootstrap(&self) -> bool {
        self.bootstrap
    }

    fn is_stale(&self) -> bool {
        self.failures >= BOOK_STALE_FAILURES
    }

    fn transports(&self) -> Option<PeerAddress> {
        Some(self.address.clone())
    }
}

/// The signed record as one byte string.
impl Serialize for PeerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::Bytes::new(&self.encode()).serialize(serializer)
    }
}

/// Verifies the signature.
impl<'de> Deserialize<'de> for PeerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        Self::decode(&bytes).map_err(serde::de::Error::custom)
    }
}

impl AddressBookStore<PeerId, KnownPeer> for SqliteStore {
    type Error = P2pandaStoreError;

    async fn insert_node_info(&self, info: KnownPeer) -> Result<bool, Self::Error> {
        let known = Store::known_peer(self, info.address.peer_id()).await?.is_some();
        let noted = self.note_peers(vec![info.address], info.bootstrap).await?;
        match noted.refused {
            0 => Ok(!known),
            _ => Err(P2pandaStoreError::Mismatch("the record was signed too far in the future, or too long ago")),
        }
    }

    async fn remove_node_info(&self, id: &PeerId) -> Result<bool, Self::Error> {
        let id = *id;
        Ok(self.write(0, move |engine| engine.forget_peer(&id)).await?)
    }

    /// By when a record was last heard, or the peer last met, whichever was later.
    async fn remove_older_than(&self, duration: Duration) -> Result<usize, Self::Error> {
        let age_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let forget =
            move |engine: &mut super::Engine| engine.forget_peers_before(engine.clock.now_us().saturating_sub(age_us));
        Ok(self.write(0, forget).await?)
    }

    async fn node_info(&self, id: &PeerId) -> Result<Option<KnownPeer>, Self::Error> {
        Ok(self.known_peer(*id).await?)
    }

    async fn node_topics(&self, id: &PeerId) -> Result<HashSet<Topic>, Self::Error> {
        let id = *id;
        let documents = self.read(move |connection, _| book::shared_by(connection, &id)).await?;
        Ok(documents.iter().map(|record| record.key.topic(&record.document)).collect())
    }

    async fn all_node_infos(&self) -> Result<Vec<KnownPeer>, Self::Error> {
        Ok(self.read(|connection, _| book::everybody(connection, false, false)).await?)
    }

    async fn all_nodes_len(&self) -> Result<usize, Self::Error> {
        Ok(self.read(|connection, _| book::count(connection, false)).await?)
    }

    async fn all_bootstrap_nodes_len(&self) -> Result<usize, Self::Error> {
        Ok(self.read(|connection, _| book::count(connection, true)).await?)
    }

    async fn selected_node_infos(&self, ids: &[PeerId]) -> Result<Vec<KnownPeer>, Self::Error> {
        let ids = ids.to_vec();
        let select = move |connection: &rusqlite::Connection, _: &mut super::Authors| {
            let found = ids.iter().map(|id| book::known_peer(connection, id));
            Ok(found.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        };
        Ok(self.read(select).await?)
    }

    /// Replaces what the peer was known to share. Fails, and changes nothing, when a topic is of no document in the store.
    async fn set_topics(&self, id: PeerId, topics: HashSet<Topic>) -> Result<(), Self::Error> {
        let logs: Vec<_> = topics.iter().map(LogId::of_topic).collect();
        match self.write(0, move |engine| engine.set_sharing(&id, &logs)).await? {
            true => Ok(()),
            false => Err(P2pandaStoreError::Mismatch("no such peer is known: insert its record before its topics")),
        }
    }

    async fn node_infos_by_topics(&self, topics: &[Topic]) -> Result<Vec<KnownPeer>, Self::Error> {
        let logs = topics.iter().map(LogId::of_topic).collect();
        Ok(self.sharing_peers(logs, MAX_KNOWN_PEERS).await?)
    }

    async fn random_node(&self) -> Result<Option<KnownPeer>, Self::Error> {
        Ok(self.read(|connection, _| book::everybody(connection, false, true)).await?.pop())
    }

    async fn random_bootstrap_node(&self) -> Result<Option<KnownPeer>, Self::Error> {
        Ok(self.read(|connection, _| book::everybody(connection, true, true)).await?.pop())
    }
}
