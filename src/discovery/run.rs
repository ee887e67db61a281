//! One run of confidential discovery with one peer: p2panda's private set intersection over a stream of ours.
//!
//! Both sides send salted hashes of the topics of their open documents and learn those that they have in common, and no
//! more than the number of the others. A topic is hashed with the TLS exporter of the connection before it goes into the
//! protocol: hashes are good between these two ends only, and somebody in the middle of two runs cannot pass them on and be
//! taken for a partner. Then both send records: their own, those of peers that share a document which they have in common, and
//! of some peers that want to be known.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{sink, stream};
use p2panda_core::Topic;
use p2panda_discovery::psi_hash::{Config, PsiHashDiscoveryProtocol};
use p2panda_discovery::traits::{DiscoveryProtocol, LocalTopics};
use p2panda_store::address_book::AddressBookStore;
use thiserror::Error;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout;

use super::wire::{self, Message};
use crate::address::PeerAddress;
use crate::cbor::CborError;
use crate::frame::{FrameDecoder, FrameError};
use crate::ids::PeerId;
use crate::limits::{DISCOVERY_RECORDS, FRAME_MAX_BYTES};
use crate::store::{DocumentRecord, KnownPeer, Store, StoreError};
use crate::transport::{BiStream, Connection, RecvHalf, SendHalf, TransportError};

/// Label of the TLS exporter that topics are bound to.
const EXPORTER_LABEL: &[u8] = b"panda-network/1 discovery";

/// How long the asking end waits for the end of a run that was through.
const LAST_WORD: Duration = Duration::from_secs(2);

/// A run came to nothing.
#[derive(Debug, Error)]
pub(super) enum RunError {
    /// The peer broke the protocol.
    #[error("peer broke the protocol of discovery: {0}")]
    Protocol(String),
    /// The stream ended, or the peer refused it.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Our store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It took too long.
    #[error("discovery was not through within {0:?}")]
    Timeout(Duration),
}

impl From<CborError> for RunError {
    fn from(error: CborError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<FrameError> for RunError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// What was learnt.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// Documents that both have open.
    pub shared: Vec<DocumentRecord>,
    /// Records that the peer sent, its own among them.
    pub records: BTreeMap<PeerId, PeerAddress>,
    /// Records that were not signed by whom they speak of.
    pub forged: usize,
    /// Bytes of messages in both directions.
    pub bytes: u64,
}

/// What a run starts from.
#[derive(Debug)]
pub(super) struct Run {
    /// This node's record.
    pub own: PeerAddress,
    /// Documents that are open here.
    pub documents: Vec<DocumentRecord>,
    /// Peers that want to be known, and that we met.
    pub findable: Vec<PeerId>,
    pub store: Arc<dyn Store>,
}

impl Run {
    /// Runs the protocol to its end, as the one who asks or the one who is asked.
    pub async fn run(self, connection: &dyn Connection, stream: BiStream, asks: bool) -> Result<Learnt, RunError> {
        let exporter = connection.export_secret(EXPORTER_LABEL)?;
        let (me, peer) = (self.own.peer_id(), connection.info().peer_id);
        let blind = |record: &DocumentRecord| (bound(&record.key.topic(&record.document), &exporter), record.clone());
        let documents: Arc<HashMap<Topic, DocumentRecord>> = Arc::new(self.documents.iter().map(blind).collect());
        let topics = Topics(documents.keys().copied().collect());
        let view = View { run: self, peer, documents: Arc::clone(&documents) };
        let config = Config { share_nodes_with_common_topics: true };
        let protocol = PsiHashDiscoveryProtocol::<_, _, _, KnownPeer>::with_config(view, topics, me, peer, config);
        let failure = Failure::default();
        let (send, receive) = stream;
        let (send, count) = (Arc::new(AsyncMutex::new(send)), Count::default());
        let receive = Arc::new(AsyncMutex::new((receive, FrameDecoder::new())));
        let mut tx = Box::pin(sink(Arc::clone(&send), failure.clone(), Arc::clone(&count)));
        let mut rx = Box::pin(messages(Arc::clone(&receive), failure.clone(), Arc::clone(&count)));
        let result = match asks {
            true => protocol.alice(&mut tx, &mut rx).await,
            false => protocol.bob(&mut tx, &mut rx).await,
        };
        drop((tx, rx));
        // p2panda's protocol does not say why its stream failed.
        let result = result.map_err(|error| error.to_string());
        send.lock().await.finish();
        if asks && result.is_ok() {
            // The other end says the last word, which is its end: before, the connection must not be closed. However that ends,
            // the run was through.
            let _ = timeout(LAST_WORD, receive.lock().await.0.read(1)).await;
        }
        let mut learnt = Learnt::default();
        (learnt.bytes, learnt.forged) = *lock(&count);
        let found = result.map_err(|error| failure.take().unwrap_or(RunError::Protocol(error)))?;
        learnt.shared = found.topics.iter().filter_map(|topic| documents.get(topic).cloned()).collect();
        learnt.shared.sort_by_key(|record| record.document);
        learnt.records = found.transport_infos;
        Ok(learnt)
    }
}

/// A topic under a name that only the two ends of one connection know.
fn bound(topic: &Topic, exporter: &[u8; 32]) -> Topic {
    (*blake3::keyed_hash(exporter, topic.as_bytes()).as_bytes()).into()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first reason why a stream failed.
#[derive(Debug, Default, Clone)]
struct Failure(Arc<Mutex<Option<RunError>>>);

impl Failure {
    fn note(&self, error: impl Into<RunError>) {
        lock(&self.0).get_or_insert(error.into());
    }

    fn take(&self) -> Option<RunError> {
        lock(&self.0).take()
    }
}

/// Bytes, and forged records.
type Count = Arc<Mutex<(u64, usize)>>;

fn sink(
    send: Arc<AsyncMutex<Box<dyn SendHalf>>>,
    failure: Failure,
    count: Count,
) -> impl futures_util::Sink<Message, Error = ()> + Send {
    sink::unfold((), move |(), message: Message| {
        let (send, failure, count) = (Arc::clone(&send), failure.clone(), Arc::clone(&count));
        async move {
            let out = wire::encode(&message);
            lock(&count).0 += out.len() as u64;
            send.lock().await.write(out.into()).await.map_err(|error| failure.note(error))
        }
    })
}

fn messages(
    receive: Arc<AsyncMutex<(Box<dyn RecvHalf>, FrameDecoder)>>,
    failure: Failure,
    count: Count,
) -> impl futures_util::Stream<Item = Result<Message, ()>> + Send {
    stream::unfold((), move |()| {
        let (receive, failure, count) = (Arc::clone(&receive), failure.clone(), Arc::clone(&count));
        async move {
            let (receive, decoder) = &mut *receive.lock().await;
            let next = next_message(receive, decoder, &count).await;
            Some((next.map_err(|error| failure.note(error)), ()))
        }
    })
}

async fn next_message(
    receive: &mut Box<dyn RecvHalf>,
    decoder: &mut FrameDecoder,
    count: &Count,
) -> Result<Message, RunError> {
    loop {
        if let Some(frame) = decoder.next_frame()? {
            let mut forged = 0;
            let message = wire::decode(&frame, &mut forged)?;
            let mut count = lock(count);
            (count.0, count.1) = (count.0 + frame.len() as u64, count.1 + forged);
            return Ok(message);
        }
        match receive.read(decoder.missing().min(FRAME_MAX_BYTES)).await? {
            Some(chunk) => decoder.push(chunk),
            None => return Err(RunError::Protocol("the stream ended before its time".into())),
        }
    }
}

/// The documents that are open here, under their names on this connection.
struct Topics(HashSet<Topic>);

impl LocalTopics for Topics {
    type Error = Infallible;

    async fn topics(&self) -> Result<HashSet<Topic>, Infallible> {
        Ok(self.0.clone())
    }
}

/// What the address book shows to one peer: who shares documents that it shares as well, and who wants to be known. The
/// protocol only asks for these and for ourselves; nothing else is to be had here, and nothing is kept.
struct View {
    run: Run,
    peer: PeerId,
    documents: Arc<HashMap<Topic, DocumentRecord>>,
}

impl View {
    fn own(&self) -> KnownPeer {
        KnownPeer { address: self.run.own.clone(), bootstrap: false, heard_us: 0, met_us: 0, tried_us: 0, failures: 0 }
    }

    async fn known(&self, ids: &[PeerId]) -> Result<Vec<KnownPeer>, StoreError> {
        let mut known = Vec::new();
        for id in ids {
            known.extend(self.run.store.known_peer(*id).await?);
        }
        Ok(known)
    }
}

impl AddressBookStore<PeerId, KnownPeer> for View {
    type Error = StoreError;

    async fn node_infos_by_topics(&self, topics: &[Topic]) -> Result<Vec<KnownPeer>, StoreError> {
        let logs = topics.iter().filter_map(|topic| self.documents.get(topic)).map(DocumentRecord::log).collect();
        let mut infos = vec![self.own()];
        infos.extend(self.run.store.sharing_peers(logs, DISCOVERY_RECORDS / 2).await?);
        // It may have changed its mind since it was met.
        infos.extend(self.known(&self.run.findable).await?.into_iter().filter(|known| known.address.is_findable()));
        infos.retain(|known| known.address.peer_id() != self.peer);
        infos.truncate(DISCOVERY_RECORDS);
        Ok(infos)
    }

    async fn node_info(&self, id: &PeerId) -> Result<Option<KnownPeer>, StoreError> {
        Ok((*id == self.run.own.peer_id()).then(|| self.own()))
    }

    async fn all_node_infos(&self) -> Result<Vec<KnownPeer>, StoreError> {
        self.node_infos_by_topics(&[]).await
    }

    async fn selected_node_infos(&self, ids: &[PeerId]) -> Result<Vec<KnownPeer>, StoreError> {
        let all = self.all_node_infos().await?;
        Ok(all.into_iter().filter(|known| ids.contains(&known.address.peer_id())).collect())
    }

    async fn all_nodes_len(&self) -> Result<usize, StoreError> {
        Ok(self.all_node_infos().await?.len())
    }

    async fn all_bootstrap_nodes_len(&self) -> Result<usize, StoreError> {
        Ok(0)
    }

    async fn random_node(&self) -> Result<Option<KnownPeer>, StoreError> {
        Ok(self.all_node_infos().await?.pop())
    }

    async fn random_bootstrap_node(&self) -> Result<Option<KnownPeer>, StoreError> {
        Ok(None)
    }

    async fn node_topics(&self, _: &PeerId) -> Result<HashSet<Topic>, StoreError> {
        Ok(HashSet::new())
    }

    async fn insert_node_info(&self, _: KnownPeer) -> Result<bool, StoreError> {
        Err(read_only())
    }

    async fn remove_node_info(&self, _: &PeerId) -> Result<bool, StoreError> {
        Err(read_only())
    }

    async fn remove_older_than(&self, _: Duration) -> Result<usize, StoreError> {
        Err(read_only())
    }

    async fn set_topics(&self, _: PeerId, _: HashSet<Topic>) -> Result<(), StoreError> {
        Err(read_only())
    }
}

fn read_only() -> StoreError {
    StoreError::Io("what a peer is shown of the address book cannot be written to".into())
}
