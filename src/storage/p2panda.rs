//! p2panda's store traits over our tables, so that p2panda code can read and fill our documents.
//!
//! They work with `p2panda_core::Operation<E>` for any extensions `E` that decode from a header of ours, and with any log
//! id that encodes like the [`Hash`](struct@Hash) that names a document's log. Every call sees what is committed and is
//! a transaction of its own, also the `_tx` variants: there is no transaction to hold open, and with one writer none is
//! needed. What is inserted goes through the same checks as what a peer sends. What was acknowledged is never deleted
//! or pruned: those calls fail with [`P2pandaStoreError::Unsupported`].

use std::collections::BTreeMap;

use p2panda_core::cbor::{decode_cbor, encode_cbor};
use p2panda_core::{Extensions, Hash, Header, SeqNum, Topic, VerifyingKey};
use p2panda_store::logs::LogStore;
use p2panda_store::operations::OperationStore;
use p2panda_store::topics::TopicStore;
use thiserror::Error;

use super::{SqliteStore, read};
use crate::error::OperationError;
use crate::ids::{LogId, PeerId};
use crate::limits::P2PANDA_RANGE_MAX_BYTES;
use crate::operation::Operation;
use crate::store::{RefusedReason, Store, StoreError};

/// A call of p2panda's store traits failed.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum P2pandaStoreError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operation is not one that our documents can hold. Its author erred.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The operation does not fit into its author's log. Its author or its sender erred.
    #[error("operation refused: {0}")]
    Refused(#[from] RefusedReason),
    /// Id, log or topic do not belong to what was given with them. The caller erred.
    #[error("{0}")]
    Mismatch(&'static str),
    /// The log id is not the 32-byte hash that names a log of ours. The caller erred.
    #[error("not the id of a document's log: expected a 32-byte hash")]
    NotALog,
    /// Our headers do not hold such extensions. The caller erred.
    #[error("a stored header does not decode with these extensions: {0}")]
    Extensions(String),
    /// The range is larger than what is returned at once. The caller should ask for a part.
    #[error("a range of {actual} bytes, at most {limit} are read at once; ask for less")]
    RangeTooLarge {
        /// Its bytes.
        actual: u64,
        /// The limit.
        limit: usize,
    },
    /// This store does not do that.
    #[error("{0}")]
    Unsupported(&'static str),
}

type P2pandaOperation<E> = p2panda_core::Operation<E>;

impl<E: Extensions> OperationStore<P2pandaOperation<E>, Hash> for SqliteStore {
    type Error = P2pandaStoreError;

    /// The document of the log has to be in the store. The signature is verified again.
    async fn insert_operation<L: p2panda_core::LogId>(
        &self,
        id: &Hash,
        operation: &P2pandaOperation<E>,
        log: &L,
    ) -> Result<bool, Self::Error> {
        let log = log_id(log)?;
        let body = operation.body.as_ref().ok_or(P2pandaStoreError::Unsupported(
            "an operation without its body cannot be kept: documents are never pruned",
        ))?;
        let decoded = Operation::decode(log, operation.header.encode().into(), body.to_bytes().into())?;
        if decoded.id().hash() != *id {
            return Err(P2pandaStoreError::Mismatch("the id is not the hash of the operation's header"));
        }
        let ingested = self.ingest(log, vec![decoded]).await?;
        match ingested.refused.first() {
            Some(refused) => Err(refused.reason.into()),
            None => Ok(!ingested.stored.is_empty()),
        }
    }

    async fn get_operation(&self, id: &Hash) -> Result<Option<P2pandaOperation<E>>, Self::Error> {
        let id = (*id).into();
        let stored = self.read(move |connection, authors| read::operation_by_id(connection, authors, id)).await?;
        stored.map(|stored| to_p2panda(&stored.operation)).transpose()
    }

    async fn get_operation_tx(&self, id: &Hash) -> Result<Option<P2pandaOperation<E>>, Self::Error> {
        self.get_operation(id).await
    }

    async fn has_operation(&self, id: &Hash) -> Result<bool, Self::Error> {
        let id = (*id).into();
        Ok(self.read(move |connection, _| read::has_operation(connection, id)).await?)
    }

    async fn has_operation_tx(&self, id: &Hash) -> Result<bool, Self::Error> {
        OperationStore::<P2pandaOperation<E>, Hash>::has_operation(self, id).await
    }

    async fn delete_operation(&self, _: &Hash) -> Result<bool, Self::Error> {
        Err(P2pandaStoreError::Unsupported("operations are never deleted: their log would have a gap"))
    }

    async fn delete_operation_payload(&self, _: &Hash) -> Result<bool, Self::Error> {
        Err(P2pandaStoreError::Unsupported("payloads are never deleted: other editors may still need them"))
    }
}

impl<E, L> LogStore<P2pandaOperation<E>, VerifyingKey, L, SeqNum, Hash> for SqliteStore
where
    E: Extensions,
    L: p2panda_core::LogId,
{
    type Error = P2pandaStoreError;

    async fn get_latest_entry(
        &self,
        author: &VerifyingKey,
        log: &L,
    ) -> Result<Option<P2pandaOperation<E>>, Self::Error> {
        let (log, author) = (log_id(log)?, (*author).into());
        let latest = self
            .read(move |connection, _| match read::height(connection, log, author)? {
                Some(head) => read::author_page(connection, log, author, (head, head)),
                None => Ok(Vec::new()),
            })
            .await?;
        latest.first().map(|stored| to_p2panda(&stored.operation)).transpose()
    }

    async fn get_latest_entry_tx(
        &self,
        author: &VerifyingKey,
        log: &L,
    ) -> Result<Option<P2pandaOperation<E>>, Self::Error> {
        self.get_latest_entry(author, log).await
    }

    async fn get_log_heights(
        &self,
        author: &VerifyingKey,
        logs: &[L],
    ) -> Result<Option<BTreeMap<L, SeqNum>>, Self::Error> {
        let mut heights = BTreeMap::new();
        for log in logs {
            let (id, author) = (log_id(log)?, (*author).into());
            if let Some(height) = self.read(move |connection, _| read::height(connection, id, author)).await? {
                heights.insert(log.clone(), height);
            }
        }
        Ok((!heights.is_empty()).then_some(heights))
    }

    /// Count and bytes, `None` when there are no such entries. What does not fit 32 bits is cut to the largest value.
    async fn get_log_size(
        &self,
        author: &VerifyingKey,
        log: &L,
        after: Option<SeqNum>,
        until: Option<SeqNum>,
    ) -> Result<Option<(u32, u32)>, Self::Error> {
        let Some(range) = range(after, until) else { return Ok(None) };
        let (log, author) = (log_id(log)?, (*author).into());
        let (count, bytes) = self.read(move |connection, _| read::range_size(connection, log, author, range)).await?;
        let cut = |value| u32::try_from(value).unwrap_or(u32::MAX);
        Ok((count > 0).then_some((cut(count), cut(bytes))))
    }

    /// Reads the whole range into memory, as the trait demands, up to `limits::P2PANDA_RANGE_MAX_BYTES`.
    async fn get_log_entries(
        &self,
        author: &VerifyingKey,
        log: &L,
        after: Option<SeqNum>,
        until: Option<SeqNum>,
    ) -> Result<Option<Vec<(P2pandaOperation<E>, Vec<u8>)>>, Self::Error> {
        let Some((mut first, last)) = range(after, until) else { return Ok(None) };
        let (log, author) = (log_id(log)?, (*author).into());
        let (count, actual) =
            self.read(move |connection, _| read::range_size(connection, log, author, (first, last))).await?;
        if actual > P2PANDA_RANGE_MAX_BYTES as u64 {
            return Err(P2pandaStoreError::RangeTooLarge { actual, limit: P2PANDA_RANGE_MAX_BYTES });
        }
        let mut entries = Vec::new();
        // What is stored meanwhile is left out: the size was checked for this many.
        while (entries.len() as u64) < count {
            let page = self.author_page(log, author, first, last).await?;
            let Some(newest) = page.last().map(|stored| stored.operation.seq_num()) else { break };
            for stored in page {
                entries.push((to_p2panda(&stored.operation)?, stored.operation.header().to_vec()));
            }
            let Some(next) = newest.checked_add(1) else { break };
            first = next;
        }
        entries.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        Ok((!entries.is_empty()).then_some(entries))
    }

    async fn prune_entries(&self, _: &VerifyingKey, _: &L, _: &SeqNum) -> Result<u64, Self::Error> {
        Err(P2pandaStoreError::Unsupported("logs are never pruned: other editors may still need their operations"))
    }
}

impl<L: p2panda_core::LogId> TopicStore<Topic, VerifyingKey, L> for SqliteStore {
    type Error = P2pandaStoreError;

    /// Every author with an operation in a document's log belongs to the document's topic, by itself: there is nothing to
    /// add, so this is always `false`.
    async fn associate(&self, topic: &Topic, _: &VerifyingKey, log: &L) -> Result<bool, Self::Error> {
        match log_id(log)? == LogId::of_topic(topic) {
            true => Ok(false),
            false => Err(P2pandaStoreError::Mismatch("this log does not belong to the topic: it is not its hash")),
        }
    }

    async fn remove(&self, _: &Topic, _: &VerifyingKey, _: &L) -> Result<bool, Self::Error> {
        Err(P2pandaStoreError::Unsupported("an author cannot be removed from a document's topic"))
    }

    async fn resolve(&self, topic: &Topic) -> Result<BTreeMap<VerifyingKey, Vec<L>>, Self::Error> {
        let log = LogId::of_topic(topic);
        let authors = self.read(move |connection, _| read::authors(connection, log)).await?;
        let encoded = encode_cbor(&log.hash()).map_err(|_| P2pandaStoreError::NotALog)?;
        let log: L = decode_cbor(&encoded[..]).map_err(|_| P2pandaStoreError::NotALog)?;
        Ok(authors.iter().filter_map(PeerId::verifying_key).map(|author| (author, vec![log.clone()])).collect())
    }
}

/// Our name for a log, from anything that encodes like its hash.
fn log_id(log: &impl p2panda_core::LogId) -> Result<LogId, P2pandaStoreError> {
    let encoded = encode_cbor(log).map_err(|_| P2pandaStoreError::NotALog)?;
    let hash: Hash = decode_cbor(&encoded[..]).map_err(|_| P2pandaStoreError::NotALog)?;
    Ok(LogId::from(*hash.as_bytes()))
}

/// The range after one sequence number and up to another, both ends included. `None` when it is empty.
fn range(after: Option<SeqNum>, until: Option<SeqNum>) -> Option<(SeqNum, SeqNum)> {
    let first = after.map_or(Some(0), |after| after.checked_add(1))?;
    Some((first, until.unwrap_or(SeqNum::MAX)))
}

fn to_p2panda<E: Extensions>(operation: &Operation) -> Result<P2pandaOperation<E>, P2pandaStoreError> {
    let header =
        Header::<E>::decode(operation.header()).map_err(|error| P2pandaStoreError::Extensions(error.to_string()))?;
    Ok(P2pandaOperation { hash: operation.id().hash(), header, body: Some(operation.body().to_vec().into()) })
}
