//! A cluster of simulated nodes that a test starts, cuts off, crashes and restarts, all from one seed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use panda_network::sim::{LinkOptions, Sim, SimNetwork};
use panda_network::store::StoreError;
use panda_network::{
    Document, DocumentEvent, DocumentTicket, Durability, PandaNetwork, PandaNetworkOptions, PeerId, StartFrom,
    Subscription,
};
use tempfile::TempDir;

/// A simulated node and what its editor holds.
pub struct SimNode {
    directory: TempDir,
    seed: [u8; 32],
    pub address: SocketAddr,
    pub running: Option<Running>,
}

/// A node that runs.
pub struct Running {
    pub network: PandaNetwork,
    pub document: Document,
    events: Subscription,
    /// Operations in the order in which the editor saw them in this run: author, number, payload.
    pub seen: Vec<(PeerId, u32, Vec<u8>)>,
}

/// Nodes that share one document.
pub struct Cluster {
    pub network: SimNetwork,
    pub nodes: Vec<SimNode>,
    pub ticket: Option<DocumentTicket>,
    /// Everything whose publish resolved: author and payload.
    pub acknowledged: Vec<(PeerId, Vec<u8>)>,
}

impl Running {
    /// What the editor hears next; `None` once the document is closed.
    pub async fn next_event(&mut self) -> Option<Result<DocumentEvent, StoreError>> {
        self.events.next().await
    }
}

impl Cluster {
    /// `count` nodes that share a document, all started, on links like `link`. Node 0 made the document, the others have its ticket.
    pub async fn start(sim: &Sim, count: u8, link: LinkOptions) -> Self {
        let network = SimNetwork::new(sim.options().with_default_link(link));
        let nodes = (0..count).map(|index| SimNode {
            directory: tempfile::tempdir().unwrap(),
            seed: sim.derive_seed(&format!("node {index}")),
            address: SocketAddr::from(([10, 0, 0, index + 1], 4000)),
            running: None,
        });
        let mut cluster = Self { network, nodes: nodes.collect(), ticket: None, acknowledged: Vec::new() };
        for index in 0..usize::from(count) {
            cluster.start_node(index).await;
        }
        cluster
    }

    /// Starts a node, or starts it again from its directory.
    pub async fn start_node(&mut self, index: usize) {
        let node = &self.nodes[index];
        let options = PandaNetworkOptions::new(node.directory.path())
            // A crash here is one of the process: the disk does not lose what it was given.
            .with_durability(Durability::Process)
            .with_simulation(&self.network.host(node.address.ip()), node.address.port(), node.seed);
        let network = PandaNetwork::start(options).await.unwrap();
        let known = network.documents().await.unwrap();
        let document = match (known.first(), &self.ticket) {
            (Some(id), _) => network.reopen(*id).await.unwrap(),
            (None, Some(ticket)) => network.open(ticket.clone()).await.unwrap(),
            (None, None) => network.create().await.unwrap(),
        };
        if self.ticket.is_none() {
            self.ticket = Some(document.ticket().await.unwrap());
        }
        let events = document.subscribe(StartFrom::Start).await.unwrap();
        self.nodes[index].running = Some(Running { network, document, events, seen: Vec::new() });
    }

    /// Power cut: nothing is said to anybody, nothing is flushed.
    pub async fn crash(&mut self, index: usize) {
        self.network.crash(self.nodes[index].address.ip());
        self.nodes[index].running = None;
        // The node's tasks end when they are next polled; only then its socket and its lock on the directory are free.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    /// Ends a node as an editor would.
    pub async fn shut_down(&mut self, index: usize) {
        if let Some(running) = self.nodes[index].running.take() {
            running.network.shutdown(Duration::from_secs(5)).await.unwrap();
            drop(running);
            // The process ends; what did not get through until now never will.
            self.network.crash(self.nodes[index].address.ip());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    /// Copies what a node that does not run has on disk.
    pub fn back_up(&self, index: usize) -> TempDir {
        let backup = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(self.nodes[index].directory.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), backup.path().join(file.file_name())).unwrap();
        }
        backup
    }

    /// Puts a backup in place of what a node that does not run has on disk.
    pub fn restore(&mut self, index: usize, backup: TempDir) {
        self.nodes[index].directory = backup;
    }

    /// Publishes at a node, if it runs; what resolved is remembered.
    pub async fn publish(&mut self, index: usize, payload: Vec<u8>) {
        let Some(running) = &self.nodes[index].running else { return };
        running.document.publish(payload.clone()).await.unwrap();
        self.acknowledged.push((running.network.node_id(), payload));
    }

    /// The host of a node.
    pub fn ip(&self, index: usize) -> IpAddr {
        self.nodes[index].address.ip()
    }

    /// A node that runs.
    pub fn running(&self, index: usize) -> &Running {
        self.nodes[index].running.as_ref().unwrap()
    }

    /// Waits, in virtual time, until every running node has as many operations as were acknowledged; fails after `limit`.
    pub async fn converge(&mut self, limit: Duration) {
        let expected = self.acknowledged.len();
        let deadline = tokio::time::Instant::now() + limit;
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let Some(running) = &mut node.running else { continue };
            while running.seen.len() < expected {
                match tokio::time::timeout_at(deadline, running.events.next()).await {
                    Ok(Some(Ok(DocumentEvent::Operation(stored)))) => running.seen.push((
                        stored.operation.author(),
                        stored.operation.seq_num(),
                        stored.operation.payload().to_vec(),
                    )),
                    Ok(Some(Ok(_))) => {}
                    Ok(other) => panic!("node {index}: {other:?}"),
                    Err(_) => panic!(
                        "node {index} has {} of {expected} operations after {limit:?}; {:?} {:?}",
                        running.seen.len(),
                        running.document.status().borrow().clone(),
                        running.network.connection_state().borrow().clone(),
                    ),
                }
            }
        }
    }

    /// D2 and D3: every running node saw every acknowledged operation once, per author in order and without gaps.
    pub fn assert_everything_arrived_once_in_order(&self) {
        let mut expected = self.acknowledged.clone();
        expected.sort();
        let running = self.nodes.iter().enumerate().filter_map(|(index, node)| Some((index, node.running.as_ref()?)));
        for (index, running) in running {
            let mut got: Vec<_> = running.seen.iter().map(|(author, _, payload)| (*author, payload.clone())).collect();
            got.sort();
            assert_eq!(got.len(), expected.len(), "node {index}");
            assert!(got == expected, "node {index} saw other operations than were acknowledged");
            let mut next: BTreeMap<PeerId, u32> = BTreeMap::new();
            for (author, seq_num, _) in &running.seen {
                let next = next.entry(*author).or_insert(0);
                assert_eq!(seq_num, next, "node {index}: gap or repetition in an author's log");
                *next += 1;
            }
        }
    }
}
