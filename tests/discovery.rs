//! Peers that know somebody who knows somebody find everybody else of their documents, and nobody learns of the others.

#![cfg(feature = "sim")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use minicbor::{Decoder, Encoder};
use panda_network::address::{Capabilities, TransportKind};
use panda_network::discovery::DiscoveryOptions;
use panda_network::discovery::topics::DiscoveryStats;
use panda_network::frame::FrameDecoder;
use panda_network::identity::Identity;
use panda_network::ids::LogId;
use panda_network::limits::{DISCOVERED_PEERS_PER_DOCUMENT, DISCOVERY_RECORDS, WALK_PEERS};
use panda_network::net::HostNetwork;
use panda_network::sim::{self, LinkOptions, Sim, SimNetwork};
use panda_network::storage::{SqliteStore, StorageOptions};
use panda_network::store::{Heard, Store};
use panda_network::sync::hello::PROTOCOL_VERSIONS;
use panda_network::sync::wire::StreamOpen;
use panda_network::transport::{BiStream, CloseReason, Connection, Priority, Transport};
use panda_network::transports::quic::{QuicTransport, QuicTransportOptions};
use panda_network::{
    Document, DocumentId, DocumentKey, DocumentTicket, Durability, NetworkEvent, NetworkEvents, PandaNetwork,
    PandaNetworkOptions, PeerAddress, PeerId,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// Virtual time after which something that should have happened did not.
const PATIENCE: Duration = Duration::from_secs(300);

struct Node {
    network: PandaNetwork,
    directory: TempDir,
}

fn link() -> LinkOptions {
    LinkOptions::new().with_latency(Duration::from_millis(20))
}

async fn node(sim: &Sim, network: &SimNetwork, number: u8, topics: bool) -> Node {
    node_in(sim, network, number, topics, tempfile::tempdir().unwrap()).await
}

async fn node_in(sim: &Sim, network: &SimNetwork, number: u8, topics: bool, directory: TempDir) -> Node {
    let host = network.host([10, 0, 0, number].into());
    let options = PandaNetworkOptions::new(directory.path())
        .with_durability(Durability::Process)
        .with_discovery(DiscoveryOptions::new().with_topics(topics))
        .with_simulation(&host, 4000, sim.derive_seed(&format!("node {number}")));
    Node { network: PandaNetwork::start(options).await.unwrap(), directory }
}

/// A ticket that names nobody.
fn ticket(number: u8) -> DocumentTicket {
    DocumentTicket::new(
        DocumentId::from_uuid(uuid::Uuid::from_u128(number.into())),
        DocumentKey::from_bytes([number; 32]),
    )
}

impl Node {
    fn id(&self) -> PeerId {
        self.network.node_id()
    }

    fn address(&self) -> PeerAddress {
        self.network.address().unwrap()
    }

    fn stats(&self) -> DiscoveryStats {
        self.network.discovery_stats()
    }

    async fn knows(&self, other: &Node) {
        self.network.add_peer(other.address()).await.unwrap();
    }

    async fn open(&self, number: u8) -> Document {
        self.network.open(ticket(number)).await.unwrap()
    }

    fn connections(&self) -> BTreeSet<PeerId> {
        self.network.connections().into_iter().map(|(info, _)| info.peer_id).collect()
    }
}

/// Waits until as many peers of a document are connected.
async fn partners(document: &Document, count: usize) {
    let mut status = document.status();
    let reached = timeout(PATIENCE, status.wait_for(|status| status.peers >= count)).await;
    assert!(reached.is_ok(), "{} of {count} peers of the document were found", document.status().borrow().peers);
}

/// Partners, and the few strangers whose run is under way.
fn assert_only_partners_are_connected(nodes: &[Node], holders: &BTreeMap<u8, BTreeSet<usize>>) {
    let mut partners_of: BTreeMap<usize, BTreeSet<PeerId>> = BTreeMap::new();
    for of in holders.values() {
        for index in of {
            partners_of
                .entry(*index)
                .or_default()
                .extend(of.iter().filter(|other| *other != index).map(|of| nodes[*of].id()));
        }
    }
    for (index, node) in nodes.iter().enumerate() {
        let partners = partners_of.remove(&index).unwrap_or_default();
        assert!(node.connections().is_superset(&partners), "node {index} lost a partner");
        assert!(node.connections().len() <= partners.len() + 8, "node {index} keeps connections to strangers");
    }
}

/// A world of 50 nodes, each of which knows the next one; every one of 25 documents is open on 2 to 5 of them.
async fn fifty(sim: Sim, seed: u64) -> String {
    let network = SimNetwork::new(sim.options().with_default_link(link()));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut nodes = Vec::new();
    for number in 1..=50 {
        nodes.push(node(&sim, &network, number, true).await);
    }
    for (index, node) in nodes.iter().enumerate() {
        node.knows(&nodes[(index + 1) % nodes.len()]).await;
    }
    let started = Instant::now();
    let mut holders: BTreeMap<u8, BTreeSet<usize>> = BTreeMap::new();
    for document in 1..=25 {
        let count = random.random_range(2..=5);
        let of = holders.entry(document).or_default();
        while of.len() < count {
            of.insert(random.random_range(0..nodes.len()));
        }
    }
    let mut open = Vec::new();
    for (number, of) in &holders {
        for index in of {
            open.push((*number, *index, nodes[*index].open(*number).await));
        }
    }
    for (number, _, document) in &open {
        partners(document, holders[number].len() - 1).await;
    }
    let took = started.elapsed();
    for (number, index, document) in &open {
        let expected: BTreeSet<_> =
            holders[number].iter().filter(|of| *of != index).map(|of| nodes[*of].id()).collect();
        let found: BTreeSet<_> = document.peers().iter().map(|peer| peer.peer).collect();
        assert_eq!(found, expected, "document {number} on node {index}");
    }
    let sum = |of: &dyn Fn(&Node) -> u64| nodes.iter().map(of).sum::<u64>();
    let dialled = sum(&|node| node.network.transport_stats().dialled);
    let (runs, bytes) = (sum(&|node| node.stats().asked), sum(&|node| node.stats().bytes) / 2);
    // Whoever shares nothing is left again, and less and less is asked.
    let asked_within = async |time| {
        let before = sum(&|node| node.stats().asked);
        sleep(time).await;
        (sum(&|node| node.stats().asked) - before) as f64 / nodes.len() as f64
    };
    let window = Duration::from_secs(30);
    let (soon, later) = (asked_within(window).await, {
        sleep(4 * window).await;
        asked_within(window).await
    });
    assert_only_partners_are_connected(&nodes, &holders);
    let line = format!(
        "50 nodes in a ring, 25 documents: all partners found after {took:?} with {dialled} connections, {runs} runs, \
         {bytes} bytes of messages; then {soon:.1} runs per node in {window:?}, {later:.1} two minutes later"
    );
    assert!(took < Duration::from_secs(120), "{line}");
    // Everybody asks everybody once, from one side or the other, and some from both at once.
    assert!(runs <= 50 * 49, "{line}");
    assert!(later < soon.max(6.0) / 2.0, "{line}");
    line
}

#[test]
fn fifty_nodes_that_each_know_one_other_find_all_peers_of_their_documents() {
    let seed = std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("seed {seed}: {}", sim::run(seed, |sim| fifty(sim, seed)));
}

#[test]
fn two_who_know_one_common_peer_find_each_other_though_it_knows_nothing_of_their_document() {
    assert_eq!(common_peer(1), common_peer(1), "the same seed gives the same packets");
}

/// Returns the digest of the trace.
fn common_peer(seed: u64) -> u64 {
    sim::run(seed, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(link()));
        let (hub, alice, bob) = (
            node(&sim, &network, 1, true).await,
            node(&sim, &network, 2, true).await,
            node(&sim, &network, 3, true).await,
        );
        alice.knows(&hub).await;
        bob.knows(&hub).await;
        let (document, there) = (alice.open(7).await, bob.open(7).await);
        document.publish("hello").await.unwrap();
        partners(&document, 1).await;
        partners(&there, 1).await;
        // The hub had nothing open, and so it asked nobody and found nobody.
        assert_eq!((hub.stats().asked, hub.stats().found), (0, 0));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(alice.connections(), BTreeSet::from([bob.id()]), "the hub is left again");
        // A document that is opened later is asked for at once, and not with the next round.
        let opened = Instant::now();
        let later = (alice.open(8).await, bob.open(8).await);
        partners(&later.0, 1).await;
        assert!(opened.elapsed() < Duration::from_secs(1));
        network.trace_digest()
    })
}

#[test]
fn a_node_that_does_not_take_part_is_neither_asked_nor_named() {
    sim::run(1, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(link()));
        let (hub, alice, shy) = (
            node(&sim, &network, 1, true).await,
            node(&sim, &network, 2, true).await,
            node(&sim, &network, 3, false).await,
        );
        // The hub is a partner of the shy one, and knows where it is.
        let (with_shy, _at_shy) = (hub.open(1).await, shy.open(1).await);
        hub.network.open(ticket(1).with_peers([shy.address()])).await.unwrap();
        partners(&with_shy, 1).await;
        alice.knows(&hub).await;
        alice.knows(&shy).await;
        let document = alice.open(2).await;
        sleep(Duration::from_secs(600)).await;
        let stats = alice.stats();
        assert!(stats.asked > 0 && stats.failed > 0, "{stats:?}");
        assert_eq!((stats.found, stats.known, document.status().borrow().peers), (0, 2, 0), "named by its user only");
        assert_eq!(shy.stats(), DiscoveryStats::default());
    });
}

#[test]
fn who_was_cut_off_for_hours_finds_within_minutes_who_came_meanwhile_though_only_a_peer_that_was_met_knows() {
    for tell in [false, true] {
        sim::run(1, |sim| async move {
            let network = SimNetwork::new(sim.options().with_default_link(link()));
            let (first, hub, alice, bob) = (
                node(&sim, &network, 1, true).await,
                node(&sim, &network, 2, true).await,
                node(&sim, &network, 3, true).await,
                node(&sim, &network, 4, true).await,
            );
            // The one that Alice's user named leads to the hub, and is gone for good.
            first.knows(&hub).await;
            alice.knows(&first).await;
            let document = alice.open(7).await;
            sleep(Duration::from_secs(10)).await;
            assert_eq!(alice.stats().known, 2);
            network.isolate([10, 0, 0, 1].into());
            network.isolate([10, 0, 0, 3].into());
            sleep(Duration::from_secs(600)).await;
            bob.knows(&hub).await;
            let _there = bob.open(7).await;
            // For so long that Bob has given Alice up as well.
            sleep(Duration::from_secs(4 * 3600)).await;
            network.reconnect([10, 0, 0, 3].into());
            let back = Instant::now();
            if tell {
                alice.network.on_network_change();
            }
            partners(&document, 1).await;
            let limit = Duration::from_secs(if tell { 20 } else { 180 });
            assert!(back.elapsed() < limit, "found after {:?}", back.elapsed());
        });
    }
}

/// A record of somebody who is not there.
fn made_up(number: u32, timestamp_us: u64) -> PeerAddress {
    let mut seed = [55; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    let [_, _, high, low] = number.to_be_bytes();
    let address = (TransportKind::Quic, SocketAddr::from(([10, 7, high, low], 4000)));
    PeerAddress::sign(&Identity::from_seed(&seed), vec![address], Vec::new(), timestamp_us).unwrap()
}

/// Peers of a document that a node tells of for as long as this takes, and how often they are dialled.
async fn told(events: &mut NetworkEvents, time: Duration) -> BTreeSet<PeerId> {
    let (mut told, end) = (BTreeSet::new(), Instant::now() + time);
    while let Ok(event) = tokio::time::timeout_at(end, events.next()).await {
        if let NetworkEvent::PeerFound { peer, .. } = event.unwrap().unwrap() {
            told.insert(peer);
        }
    }
    told
}

#[test]
fn after_a_restart_a_thousand_made_up_peers_of_a_document_are_within_the_limits_and_the_real_one_is_dialled() {
    sim::run(1, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(link()));
        let (alice, bob) = (node(&sim, &network, 1, false).await, node(&sim, &network, 2, false).await);
        let document = alice.open(7).await;
        bob.network.open(ticket(7).with_peers([alice.address()])).await.unwrap();
        partners(&document, 1).await;
        let Node { network: running, directory } = alice;
        running.shutdown(Duration::from_secs(1)).await.unwrap();
        drop((running, document));
        sleep(Duration::from_secs(1)).await;
        // What others told in the meantime.
        let identity = Identity::from_seed(&sim.derive_seed("node 1"));
        let store = SqliteStore::open(StorageOptions::new(directory.path()).with_inline(true), identity).unwrap();
        let log = store.documents().await.unwrap()[0].log();
        for number in 0..1_000 {
            store.remember_peer(log, made_up(number, 1), Heard::FromOthers).await.unwrap();
        }
        store.close().await.unwrap();
        drop(store);
        let alice = node_in(&sim, &network, 1, false, directory).await;
        let mut events = alice.network.events();
        let document = alice.network.reopen(ticket(7).document()).await.unwrap();
        let found = told(&mut events, Duration::from_secs(20)).await;
        assert!(found.contains(&bob.id()));
        assert_eq!(found.len(), DISCOVERED_PEERS_PER_DOCUMENT + 1);
        assert_eq!(alice.connections(), BTreeSet::from([bob.id()]));
        let ticket = document.ticket().await.unwrap();
        let named: Vec<_> = ticket.peers().iter().map(PeerAddress::peer_id).collect();
        assert_eq!(named, [alice.id(), bob.id()], "an invitation names those that were met");
    });
}

#[test]
fn who_joins_learns_all_peers_of_a_document_from_one() {
    sim::run(1, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(link()));
        let (alice, bob) = (node(&sim, &network, 1, false).await, node(&sim, &network, 2, false).await);
        let others: BTreeSet<_> = (0..40).map(|number| made_up(number, 1).peer_id()).collect();
        for first in (0..40).step_by(8) {
            let ticket = ticket(7).with_peers((first..first + 8).map(|number| made_up(number, 1)));
            alice.network.open(ticket).await.unwrap();
        }
        let mut events = bob.network.events();
        bob.network.open(ticket(7).with_peers([alice.address()])).await.unwrap();
        let mut found = told(&mut events, Duration::from_secs(10)).await;
        assert!(found.remove(&alice.id()));
        assert_eq!(found, others);
    });
}

/// A peer that speaks the protocol by hand, and remembers every byte.
struct Recorder {
    identity: Identity,
    transport: QuicTransport,
}

impl Recorder {
    fn new(network: &SimNetwork, number: u16) -> Self {
        let mut seed = [66; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        let identity = Identity::from_seed(&seed);
        let [high, low] = number.to_be_bytes();
        let socket = network.bind(SocketAddr::from(([10, 9, high, low], 4000))).unwrap();
        let options =
            QuicTransportOptions::new().with_socket(socket).with_rng_seed(seed).with_hello(PROTOCOL_VERSIONS.encode());
        let transport = QuicTransport::start(&identity, options).unwrap();
        Self { identity, transport }
    }

    fn record(&self) -> PeerAddress {
        let addresses = self.transport.local_addresses().into_iter().map(|address| (TransportKind::Quic, address));
        let capabilities = Capabilities::NODE.with(Capabilities::DISCOVERY);
        PeerAddress::sign_capable(&self.identity, addresses.collect(), Vec::new(), capabilities, 1).unwrap()
    }

    async fn dial(&self, victim: &Node) -> (Arc<dyn Connection>, BiStream) {
        let connection = self.transport.connect(&victim.address(), PATIENCE).await.unwrap();
        let control = opened(&*connection, StreamOpen::Control).await;
        (connection, control)
    }

    /// Asks a node as Alice does, with these hashes and records. Returns salts, hashes and records, each as they came.
    async fn ask(&self, victim: &Node, records: &[Vec<u8>]) -> Option<Answer> {
        let (connection, _control) = self.dial(victim).await;
        let (mut send, mut receive) = opened(&*connection, StreamOpen::Discovery).await;
        let mut decoder = FrameDecoder::new();
        let salt = [9; 32];
        send.write(frame(0, |e| _ = e.bytes(&salt).unwrap())).await.unwrap();
        let first = next(&mut receive, &mut decoder).await?;
        send.write(frame(2, |e| _ = e.array(0).unwrap())).await.unwrap();
        let second = next(&mut receive, &mut decoder).await?;
        send.write(frame(3, |e| {
            e.array(records.len() as u64).unwrap();
            records.iter().for_each(|record| _ = e.bytes(record).unwrap());
        }))
        .await
        .unwrap();
        send.finish();
        // Until the node is through.
        let _ = timeout(Duration::from_secs(5), receive.read(1)).await;
        let mut bob = Decoder::new(&first);
        assert_eq!((bob.array().unwrap(), bob.u8().unwrap()), (Some(3), 1));
        let bob_salt: [u8; 32] = bob.bytes().unwrap().try_into().unwrap();
        let hashes = byte_strings(&mut bob);
        let mut nodes = Decoder::new(&second);
        assert_eq!((nodes.array().unwrap(), nodes.u8().unwrap()), (Some(2), 3));
        let records = byte_strings(&mut nodes).iter().map(|record| PeerAddress::decode(record).unwrap()).collect();
        let salt = [&salt[..], &bob_salt].concat();
        Some(Answer { raw: [first, second].concat(), salt, hashes, records })
    }
}

struct Answer {
    raw: Vec<u8>,
    salt: Vec<u8>,
    hashes: Vec<Vec<u8>>,
    records: Vec<PeerAddress>,
}

async fn opened(connection: &dyn Connection, open: StreamOpen) -> BiStream {
    let (mut send, receive) = connection.open_bi(Priority::High).await.unwrap();
    let mut out = Vec::new();
    open.encode(&mut out);
    send.write(out.into()).await.unwrap();
    (send, receive)
}

fn frame(kind: u8, fill: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Bytes {
    let mut content = Vec::new();
    let mut encoder = Encoder::new(&mut content);
    encoder.array(2).unwrap().u8(kind).unwrap();
    fill(&mut encoder);
    [&(content.len() as u32).to_be_bytes()[..], &content].concat().into()
}

async fn next(
    receive: &mut Box<dyn panda_network::transport::RecvHalf>,
    decoder: &mut FrameDecoder,
) -> Option<Vec<u8>> {
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return Some(frame.to_vec());
        }
        decoder.push(receive.read(65_536).await.ok()??);
    }
}

fn byte_strings(decoder: &mut Decoder<'_>) -> Vec<Vec<u8>> {
    let count = decoder.array().unwrap().unwrap();
    (0..count).map(|_| decoder.bytes().unwrap().to_vec()).collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn who_shares_nothing_learns_a_number_and_nothing_about_the_documents() {
    sim::run(1, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(link()));
        // Bob is Alice's partner, takes no part in discovery, and is nobody's business.
        let (alice, bob) = (node(&sim, &network, 1, true).await, node(&sim, &network, 2, false).await);
        let document = alice.open(7).await;
        alice.open(8).await;
        bob.network.open(ticket(7).with_peers([alice.address()])).await.unwrap();
        partners(&document, 1).await;
        let recorder = Recorder::new(&network, 1);
        let first = recorder.ask(&alice, &[recorder.record().encode()]).await.unwrap();
        assert!(recorder.ask(&alice, &[]).await.is_none(), "twice within ten seconds is refused");
        sleep(Duration::from_secs(15)).await;
        let second = recorder.ask(&alice, &[]).await.unwrap();
        for answer in [&first, &second] {
            assert_eq!(answer.hashes.len(), 2, "how many documents there are is not hidden");
            assert_eq!(answer.records.iter().map(PeerAddress::peer_id).collect::<Vec<_>>(), [alice.id()]);
            assert!(!contains(&answer.raw, bob.id().as_bytes()));
            for number in [7, 8] {
                let (id, key) = (ticket(number).document(), ticket(number).key().clone());
                let topic = key.topic(&id);
                let log = LogId::of_topic(&topic);
                for secret in [&id.as_uuid().as_bytes()[..], key.as_bytes(), topic.as_bytes(), log.as_bytes()] {
                    assert!(!contains(&answer.raw, secret), "document {number}");
                    assert!(!contains(&answer.raw, blake3::hash(secret).as_bytes()), "document {number}");
                }
                // Not even who knows the topic finds it, on another connection: what p2panda would send is not there either.
                for side in [0, 1] {
                    let salted = blake3::hash(&[topic.as_bytes(), &answer.salt[..], &[side]].concat());
                    assert!(!contains(&answer.raw, salted.as_bytes()), "document {number}");
                }
            }
        }
        assert!(first.hashes.iter().all(|hash| !second.hashes.contains(hash)), "a document looks the same in two runs");
        assert_eq!((alice.stats().answered, alice.stats().refused, alice.stats().found), (2, 1, 0));
    });
}

#[test]
fn somebody_between_two_partners_is_not_taken_for_one() {
    sim::run(1, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(link()));
        let (alice, bob) = (node(&sim, &network, 1, true).await, node(&sim, &network, 2, true).await);
        // They hear of each other through Mallory, and must not find each other without her.
        network.set_link_both_ways([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), link().with_loss(1.0));
        let (_document, _there) = (alice.open(7).await, bob.open(7).await);
        let mallory = Recorder::new(&network, 1);
        let (to_bob, _control) = mallory.dial(&bob).await;
        alice.network.add_peer(mallory.record()).await.unwrap();
        let from_alice = timeout(PATIENCE, mallory.transport.accept()).await.unwrap().unwrap();
        // Everything that Alice asks Mallory, Mallory asks Bob.
        let (mut alice_send, mut alice_receive) = loop {
            let (send, mut receive) = from_alice.accept_bi().await.unwrap();
            let mut decoder = FrameDecoder::new();
            let open = loop {
                match decoder.next_frame().unwrap() {
                    Some(frame) => break StreamOpen::decode(&frame).unwrap(),
                    None => decoder.push(receive.read(decoder.missing()).await.unwrap().unwrap()),
                }
            };
            if open == StreamOpen::Discovery {
                break (send, receive);
            }
        };
        let (mut bob_send, mut bob_receive) = opened(&*to_bob, StreamOpen::Discovery).await;
        let there = async {
            while let Ok(Some(bytes)) = alice_receive.read(65_536).await {
                bob_send.write(bytes).await.unwrap();
            }
            bob_send.finish();
        };
        let mut passed = Vec::new();
        let back = async {
            while let Ok(Some(bytes)) = bob_receive.read(65_536).await {
                passed.extend_from_slice(&bytes);
                alice_send.write(bytes).await.unwrap();
            }
            alice_send.finish();
        };
        let _ = timeout(Duration::from_secs(15), async { tokio::join!(there, back) }).await;
        assert!(!passed.is_empty());
        sleep(Duration::from_secs(1)).await;
        assert_eq!((alice.stats().asked, bob.stats().answered), (1, 1), "both runs were through");
        assert_eq!((alice.stats().found, bob.stats().found), (0, 0), "and showed nothing in common");
    });
}

#[test]
fn a_run_that_was_through_counts_also_when_the_other_end_breaks_off_at_its_end() {
    sim::run(1, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(link()));
        let alice = node(&sim, &network, 1, true).await;
        let _document = alice.open(7).await;
        let mallory = Recorder::new(&network, 1);
        alice.network.add_peer(mallory.record()).await.unwrap();
        let from_alice = timeout(PATIENCE, mallory.transport.accept()).await.unwrap().unwrap();
        let (mut send, mut receive, mut decoder) = loop {
            let (send, mut receive) = from_alice.accept_bi().await.unwrap();
            let mut decoder = FrameDecoder::new();
            let open = next(&mut receive, &mut decoder).await.unwrap();
            if StreamOpen::decode(&open.into()).unwrap() == StreamOpen::Discovery {
                break (send, receive, decoder);
            }
        };
        next(&mut receive, &mut decoder).await.unwrap();
        let mut content = Vec::new();
        Encoder::new(&mut content).array(3).unwrap().u8(1).unwrap().bytes(&[9; 32]).unwrap().array(0).unwrap();
        send.write([&(content.len() as u32).to_be_bytes()[..], &content].concat().into()).await.unwrap();
        next(&mut receive, &mut decoder).await.unwrap();
        send.write(frame(3, |e| _ = e.array(1).unwrap().bytes(&mallory.record().encode()).unwrap())).await.unwrap();
        next(&mut receive, &mut decoder).await.unwrap();
        send.reset(CloseReason::TooBusy);
        sleep(Duration::from_secs(1)).await;
        let stats = alice.stats();
        assert_eq!((stats.asked, stats.failed), (1, 0), "{stats:?}");
    });
}

#[test]
fn ten_thousand_identities_forged_and_future_records_change_nothing_but_counters() {
    sim::run(1, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(link()));
        let (hub, alice, bob) = (
            node(&sim, &network, 1, true).await,
            node(&sim, &network, 2, true).await,
            node(&sim, &network, 3, true).await,
        );
        alice.knows(&hub).await;
        let document = alice.open(7).await;
        // All of them say that they can be found at relays, where somebody waits for connections.
        let evil = network.host([10, 7, 0, 1].into());
        let mut evil = evil.listen_tcp(([10, 7, 0, 1], 443).into()).unwrap();
        let relays: Vec<_> = (443..447).map(|port| format!("10.7.0.1:{port}")).collect();
        let own = alice.address();
        let mut identities = 0u32;
        let mut made_up = |timestamp_us, forged| {
            identities += 1;
            let mut seed = [77; 32];
            seed[..4].copy_from_slice(&identities.to_be_bytes());
            let address = (TransportKind::Quic, SocketAddr::from(([10, 8, 0, 1], 4000)));
            let capabilities = Capabilities::NODE.with(Capabilities::DISCOVERY);
            let identity = Identity::from_seed(&seed);
            let record =
                PeerAddress::sign_capable(&identity, vec![address], relays.clone(), capabilities, timestamp_us);
            let mut record = record.unwrap().encode();
            let last = record.len() - 1;
            record[last] ^= u8::from(forged);
            record
        };
        for number in 0..170 {
            for (victim, number) in [(&alice, number), (&bob, 1_000 + number)] {
                let mallory = Recorder::new(&network, number);
                let mut records = vec![mallory.record().encode()];
                records.push(made_up(1, true));
                records.push(made_up(u64::MAX, false));
                records.extend((records.len()..DISCOVERY_RECORDS).map(|_| made_up(1, false)));
                assert!(mallory.ask(victim, &records).await.is_some(), "{number}");
            }
        }
        assert!(identities > 20_000);
        for victim in [&alice, &bob] {
            let stats = victim.stats();
            assert_eq!((stats.answered, stats.forged, stats.out_of_time), (170, 170, 170), "{stats:?}");
            assert!(stats.known <= WALK_PEERS as u64, "{stats:?}");
            assert_eq!(stats.found, 0);
            assert!(victim.network.relays().is_empty());
        }
        let connected = std::future::poll_fn(|context| evil.poll_accept(context));
        assert!(timeout(Duration::from_secs(60), connected).await.is_err(), "a stranger's relay is left alone");
        assert_eq!((alice.address().relays(), alice.address().addresses()), (own.relays(), own.addresses()));
        // They still find each other, through the one that their users named: later, since half of all visits are in vain.
        bob.knows(&hub).await;
        let _there = bob.open(7).await;
        let mut status = document.status();
        let found = timeout(3 * PATIENCE, status.wait_for(|status| status.peers == 1)).await;
        assert!(matches!(found, Ok(Ok(_))), "{:?}, {:?}", alice.stats(), bob.stats());
        assert!(alice.connections().contains(&bob.id()));
    });
}
