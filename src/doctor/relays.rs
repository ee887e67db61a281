//! Sessions with relays: which can be had, and how fast.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::options::Step;
use super::report::{ProbeError, RelayFinding, RelaySession, TurnFinding};
use super::stun::Behaviour;
use super::tools::Tools;
use crate::rendezvous::address::{HostPort, RelayAddress};
use crate::transports::relay_client::{RelayClient, RelayInfo, RelayState};

/// How long a session may take. Longer is of no use to anybody.
const SESSION_DEADLINE: Duration = Duration::from_secs(5);
/// What a relay says to somebody whom nobody knows: its welcome.
const FRAMES: usize = 8;

/// A relay that was tried. Its session, if there is one, lasts until this is dropped.
#[derive(Debug)]
pub(super) struct Opened {
    address: RelayAddress,
    session: Result<(RelayInfo, Duration), ProbeError>,
    _client: RelayClient,
    _frames: mpsc::Receiver<(RelayAddress, crate::rendezvous::wire::RelayFrame)>,
}

impl Opened {
    /// What is known of the relay, if its session is up.
    pub(super) fn info(&self) -> Option<&RelayInfo> {
        self.session.as_ref().ok().map(|(info, _)| info)
    }
}

/// Tries all of them at once, and gives them in the order they were named.
pub(super) async fn open(tools: &Arc<Tools>, relays: &[RelayAddress]) -> Vec<Opened> {
    let mut tasks = JoinSet::new();
    for (at, relay) in relays.iter().cloned().enumerate() {
        let tools = tools.clone();
        tasks.spawn(async move { (at, open_one(&tools, relay).await) });
    }
    in_order(tasks).await
}

/// What tasks gave, in the order of their numbers.
pub(super) async fn in_order<T: 'static>(mut tasks: JoinSet<(usize, T)>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        all.extend(ended.ok());
    }
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, of_task)| of_task).collect()
}

async fn open_one(tools: &Tools, address: RelayAddress) -> Opened {
    tools.tell(Step::Relay(address.server.clone()));
    let (heard, frames) = mpsc::channel(FRAMES);
    let started = Instant::now();
    // One attempt is all: jitter between attempts does not matter.
    let client = RelayClient::start(tools.network.clone(), tools.tls.clone(), address.clone(), heard, || 0.5);
    let mut state = client.state();
    let decided = async {
        // It ends when we drop it and not before.
        let _ = state.wait_for(|state| !matches!(state, RelayState::Connecting)).await;
        match &*state.borrow() {
            RelayState::Up(info) => Ok((info.clone(), started.elapsed())),
            RelayState::Down(error) => Err(ProbeError::Relay(error.clone())),
            RelayState::Connecting => Err(ProbeError::NoAnswer),
        }
    };
    let session = timeout(SESSION_DEADLINE, decided).await.unwrap_or(Err(ProbeError::Timeout(SESSION_DEADLINE)));
    Opened { address, session, _client: client, _frames: frames }
}

/// All that was found out about each.
pub(super) fn findings(opened: Vec<Opened>, behaviour: &Behaviour, turn: Vec<Vec<TurnFinding>>) -> Vec<RelayFinding> {
    let with_turn = opened.into_iter().zip(turn);
    with_turn
        .map(|(Opened { address, session, .. }, turn)| {
            let datagrams = session.as_ref().map(|(info, _)| info.datagrams().collect()).unwrap_or_default();
            let datagrams: Vec<std::net::SocketAddr> = datagrams;
            let stun = datagrams.into_iter().map(|at| behaviour.finding(HostPort::from(at), at)).collect();
            let session = session.map(|(info, took)| RelaySession {
                address: info.address,
                key: info.key,
                observed: info.welcome.observed,
                took,
            });
            RelayFinding { address, session, stun, turn }
        })
        .collect()
}
