//! Two nodes meet through a relay: one offers, the other answers, both open their NATs, and the relay forwards meanwhile.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::checker::Checker;
use super::leases::RelayLease;
use super::{Traversal, Word, lock};
use crate::ids::PeerId;
use crate::limits::RELAYS_PER_DIAL;
use crate::nat::check::Side;
use crate::nat::path::Path;
use crate::nat::path_selection::{PathEvent, PathSelection};
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::signal::{Candidate, SessionSecret, Signal};
use crate::rendezvous::wire::NodeFrame;
use crate::transports::quic::attempt::{Attempt, Introduction};
use crate::transports::quic::paths::{Offered, RouteGuard};
use crate::transports::relay_client::RelayState;

/// How long the answering end keeps its NAT open for a dial.
const ANSWERING: Duration = Duration::from_secs(10);
/// Time between two offers that nobody answers.
const OFFER_AGAIN: Duration = Duration::from_secs(2);
/// Words that wait for one meeting. More: lost, and said again with the next offer.
pub(super) const WORDS: usize = 16;

/// The paths that a meeting found, for the dial that uses them.
#[derive(Debug)]
pub(crate) struct Meeting<'a> {
    traversal: Arc<Traversal>,
    /// A stranger is looked for only at relays that there are sessions with.
    stranger: bool,
    attempt: &'a Attempt,
    found: Mutex<Found>,
    news: Notify,
}

/// What a dial has to do about a path that a meeting found.
#[derive(Debug)]
pub(crate) enum DialNews {
    /// This route holds it already: that of a handshake of the peer's, or of a connection that is dying.
    Held(RouteGuard),
    /// The handshake on this route has to begin again.
    Afresh(SocketAddr),
}

#[derive(Debug, Default)]
struct Found {
    virtual_address: Option<SocketAddr>,
    paths: BTreeSet<Path>,
    news: Vec<DialNews>,
}

impl<'a> Meeting<'a> {
    pub(in crate::transports::quic) fn new(traversal: &Arc<Traversal>, stranger: bool, attempt: &'a Attempt) -> Self {
        Self { traversal: traversal.clone(), stranger, attempt, found: Mutex::default(), news: Notify::new() }
    }

    /// The dial uses this route from now on.
    pub(crate) fn use_route(&self, virtual_address: SocketAddr) {
        let mut found = lock(&self.found);
        found.virtual_address = Some(virtual_address);
        let paths: Vec<_> = found.paths.iter().copied().collect();
        for path in paths {
            self.offer_path(&mut found, virtual_address, path);
        }
    }

    /// What the dial has to do next.
    pub(crate) async fn news(&self) -> DialNews {
        loop {
            if let Some(news) = lock(&self.found).news.pop() {
                return news;
            }
            self.news.notified().await;
        }
    }

    fn add(&self, path: Path) {
        let mut found = lock(&self.found);
        if found.paths.insert(path)
            && let Some(virtual_address) = found.virtual_address
        {
            self.offer_path(&mut found, virtual_address, path);
        }
    }

    fn offer_path(&self, found: &mut Found, virtual_address: SocketAddr, path: Path) {
        found.news.extend(match self.traversal.paths.add_candidate(&virtual_address, path) {
            Offered::Taken => None,
            Offered::Held(route) => Some(DialNews::Held(route)),
            Offered::Afresh => Some(DialNews::Afresh(virtual_address)),
        });
        self.news.notify_one();
    }

    /// Looks for paths to a peer through these relays, and those that it moved to, until it is dropped. It goes on when all
    /// meetings have ended: a dial has other ways.
    pub(crate) async fn run(&self, peer: PeerId, mut relays: Vec<RelayAddress>) -> Infallible {
        let (moved, mut more) = mpsc::channel(RELAYS_PER_DIAL);
        let run_at = |relay: &RelayAddress| Box::pin(self.run_at(peer, relay.clone(), moved.clone()));
        let mut running: Vec<_> = relays.iter().map(run_at).collect();
        // Polls all of them, in order, for as long as this is polled.
        std::future::poll_fn(|context| {
            while let Poll::Ready(Some(relay)) = more.poll_recv(context) {
                let relay: RelayAddress = relay;
                let known = relays.iter().any(|known| known.server == relay.server);
                let allowed = !self.stranger || self.traversal.has_relay(&relay);
                if !known && allowed && relays.len() < RELAYS_PER_DIAL {
                    self.traversal.doorkeeper.get().into_iter().for_each(|keeper| keeper.moved(&peer));
                    running.push(run_at(&relay));
                    relays.push(relay);
                }
            }
            running.retain_mut(|meeting| meeting.as_mut().poll(context).is_pending());
            Poll::Pending
        })
        .await
    }

    async fn run_at(&self, peer: PeerId, relay: RelayAddress, moved: mpsc::Sender<RelayAddress>) {
        let traversal = &self.traversal;
        let tell = |what| self.attempt.introduced(&relay.server, what);
        tell(Introduction::NoSession);
        let Some(lease) = self.lease(&relay).await else { return };
        // By the name that it has here.
        let (relay, mut state) = (lease.address().clone(), lease.state());
        if state.wait_for(|state| matches!(state, RelayState::Up(_))).await.is_err() {
            return;
        }
        let (number, secret) = (u64::from_be_bytes(traversal.random()), SessionSecret(traversal.random()));
        let Some(mut checker) = Checker::start(traversal, number, Side::Dialler, &secret.0, PathSelection::new())
        else {
            return;
        };
        checker.stranger = self.stranger;
        tell(Introduction::NoAnswer);
        let mut checker = Written { checker, attempt: self.attempt };
        let (words, mut heard) = mpsc::channel(WORDS);
        let _listed = Listed::new(traversal, (peer, number), words);
        let mut flows = traversal.flows_changed.subscribe();
        flows.mark_changed();
        let mut candidates = traversal.candidates();
        let (mut offer_at, mut answered) = (Instant::now(), false);
        loop {
            tokio::select! {
                biased;
                Some(word) = heard.recv() => match word {
                    Word::Signal(Signal::Answer { candidates, .. } | Signal::Candidates { candidates, .. }) => {
                        tell(Introduction::Answered);
                        checker.add_candidates(&candidates);
                        if !std::mem::replace(&mut answered, true) {
                            traversal.say(&relay, NodeFrame::Punch { to: peer, session: number });
                        }
                    }
                    Word::Punch(after) => checker.punch(after),
                    // It may come while the dial lasts, or be at other relays by now.
                    Word::NotHere => {
                        tell(Introduction::NotHere);
                        traversal.say(&relay, NodeFrame::Lookup { peer });
                    }
                    // Full: as many as will be asked.
                    Word::Moved(relays) => relays.into_iter().for_each(|relay| _ = moved.try_send(relay)),
                    // It may change its mind.
                    Word::Signal(Signal::Refused { .. }) => tell(Introduction::Refused),
                    Word::Signal(Signal::Offer { .. } | Signal::Birthday { .. }) => {}
                },
                Ok(()) = flows.changed() => if let Some(path) = traversal.flows_to(&peer).get(&relay) {
                    traversal.announce(*path);
                    checker.add_relayed(*path);
                    self.add(*path);
                },
                Ok(()) = candidates.changed(), if answered => {
                    let candidates = candidates.borrow_and_update().clone();
                    traversal.signal(&relay, peer, &Signal::Candidates { session: number, candidates });
                }
                event = checker.next() => {
                    if let Some(PathEvent::Selected(path)) = event {
                        self.add(path);
                    }
                    std::mem::take(&mut checker.relayed).into_iter().for_each(|path| self.add(path));
                    (checker.answered, checker.asked) = (false, Vec::new());
                }
                () = tokio::time::sleep_until(offer_at), if !answered => {
                    self.offer(&relay, peer, number, &secret);
                    candidates.borrow_and_update();
                    offer_at = Instant::now() + OFFER_AGAIN;
                }
            }
        }
    }

    /// Leases a relay, as soon as there is room for it; for a stranger one that is there.
    async fn lease(&self, relay: &RelayAddress) -> Option<RelayLease> {
        if self.stranger {
            return self.traversal.lease_relay(relay);
        }
        loop {
            match self.traversal.borrow_relay(relay) {
                Some(lease) => return Some(lease),
                None => sleep(OFFER_AGAIN).await,
            }
        }
    }

    fn offer(&self, relay: &RelayAddress, peer: PeerId, session: u64, secret: &SessionSecret) {
        let traversal = &self.traversal;
        let proofs = traversal.doorkeeper.get().map(|keeper| keeper.proofs(&peer, session)).unwrap_or_default();
        let candidates = traversal.candidates.borrow().clone();
        let offer = Signal::Offer { session, secret: secret.clone(), candidates, proofs };
        traversal.signal(relay, peer, &offer);
        traversal.say(relay, NodeFrame::Forward { to: peer });
    }
}

/// The checks of a dial: what came of them is written down when they end, also when the dial is dropped.
struct Written<'a> {
    checker: Checker,
    attempt: &'a Attempt,
}

impl Deref for Written<'_> {
    type Target = Checker;

    fn deref(&self) -> &Checker {
        &self.checker
    }
}

impl DerefMut for Written<'_> {
    fn deref_mut(&mut self) -> &mut Checker {
        &mut self.checker
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        for (path, kind, outcome) in self.checker.outcomes() {
            self.attempt.tried(path, kind, outcome);
        }
    }
}

/// A meeting that words can be brought to.
pub(super) struct Listed<'a>(&'a Traversal, (PeerId, u64));

impl<'a> Listed<'a> {
    pub(super) fn new(traversal: &'a Traversal, meeting: (PeerId, u64), words: mpsc::Sender<Word>) -> Self {
        lock(&traversal.meetings).insert(meeting, words);
        Self(traversal, meeting)
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.0.meetings).remove(&self.1);
    }
}

/// A meeting that is answered, among those that may be.
struct Place<'a>(&'a Traversal, &'a RelayAddress, PeerId);

impl<'a> Place<'a> {
    fn take(traversal: &'a Traversal, relay: &'a RelayAddress, peer: PeerId) -> Option<Self> {
        let begun = lock(&traversal.answered).begin(relay, peer);
        begun.then(|| Self(traversal, relay, peer))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.0.answered).end(self.1, &self.2);
    }
}

/// Answers an offer: says where this node is, and opens its NAT for the other end's checks.
pub(super) async fn answer(
    traversal: Arc<Traversal>,
    relay: RelayAddress,
    peer: PeerId,
    (session, secret): (u64, SessionSecret),
    offered: Vec<Candidate>,
) {
    if lock(&traversal.meetings).contains_key(&(peer, session)) {
        // The offer came a second time: the answer may have been lost.
        let candidates = traversal.candidates.borrow().clone();
        traversal.signal(&relay, peer, &Signal::Answer { session, candidates });
        return;
    }
    // Full: silence, for the peer offers again.
    let Some(_place) = Place::take(&traversal, &relay, peer) else { return };
    let Some(mut checker) = Checker::start(&traversal, session, Side::Acceptor, &secret.0, PathSelection::new()) else {
        return;
    };
    let (words, mut heard) = mpsc::channel(WORDS);
    let _listed = Listed::new(&traversal, (peer, session), words);
    let mut own = traversal.candidates();
    let candidates = own.borrow_and_update().clone();
    traversal.signal(&relay, peer, &Signal::Answer { session, candidates });
    checker.add_candidates(&offered);
    let mut flows = traversal.flows_changed.subscribe();
    flows.mark_changed();
    let meeting = async {
        loop {
            tokio::select! {
                biased;
                Some(word) = heard.recv() => match word {
                    Word::Signal(Signal::Candidates { candidates, .. }) => checker.add_candidates(&candidates),
                    Word::Punch(after) => checker.punch(after),
                    Word::Signal(_) | Word::NotHere | Word::Moved(_) => {}
                },
                Ok(()) = flows.changed() => if let Some(path) = traversal.flows_to(&peer).get(&relay) {
                    traversal.announce(*path);
                    checker.add_relayed(*path);
                },
                Ok(()) = own.changed() => {
                    let candidates = own.borrow_and_update().clone();
                    traversal.signal(&relay, peer, &Signal::Candidates { session, candidates });
                }
                _ = checker.next() => {
                    (checker.answered, checker.asked, checker.relayed) = (false, Vec::new(), Vec::new());
                }
            }
        }
    };
    // Over: the connection has paths of its own by now, or there is none.
    let _: Result<(), _> = timeout(ANSWERING, meeting).await;
}
