//! Presence: small states that live for a moment (cursors, names, colours), signed by their peer, newest wins.
//!
//! States travel in datagrams, each on its own, and are passed on, so that peers in a line see each other. Losing one costs
//! nothing: a state that is set is sent again, with a new counter, several times per time to live. A peer whose last
//! session closed is gone at once; one behind a third peer is gone when its state expires.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use minicbor::{Decoder, Encoder};
use thiserror::Error;
use tokio::time::Instant;

use crate::identity::Identity;
use crate::ids::{LogId, PeerId};
use crate::limits::{PRESENCE_MAX_BYTES, PRESENCE_MAX_PEERS, PRESENCE_RENEWAL, PRESENCE_TTL};
use crate::sync::tokens::{TOKEN_BYTES, Token};
use crate::watch;

/// Domain separation of the signature under a presence state.
const PRESENCE_CONTEXT: &[u8] = b"panda-network/1 presence";

/// A presence state was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// Larger than a datagram carries. The caller or the peer.
    #[error(
        "presence state of {actual} bytes, at most {PRESENCE_MAX_BYTES} are allowed; send less, or publish an operation"
    )]
    TooLarge {
        /// Its size.
        actual: usize,
    },
    /// Not a presence datagram, or not signed by the peer it speaks of.
    #[error("peer sent a damaged presence datagram")]
    Damaged,
}

/// A state as it travels. The counter grows with every state of a peer; an empty state clears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SignedPresence {
    pub peer: PeerId,
    pub counter: u64,
    pub state: Bytes,
    signature: [u8; 64],
}

impl SignedPresence {
    fn sign(identity: &Identity, log: LogId, counter: u64, state: Bytes) -> Self {
        let peer = identity.peer_id();
        let signature = identity.signing_key().sign(&signing_bytes(log, counter, &state)).to_bytes();
        Self { peer, counter, state, signature }
    }

    fn is_genuine(&self, log: LogId) -> bool {
        let signed = signing_bytes(log, self.counter, &self.state);
        self.peer.verifies(&signed, &self.signature)
    }

    /// One datagram: the document's token, then the state.
    pub fn encode(&self, token: Token) -> Bytes {
        let mut encoder = Encoder::new(Vec::with_capacity(160 + self.state.len()));
        // Writing to a Vec cannot fail.
        let _ = encoder
            .array(5)
            .and_then(|e| e.bytes(&token.0))
            .and_then(|e| e.bytes(self.peer.as_bytes()))
            .and_then(|e| e.u64(self.counter))
            .and_then(|e| e.bytes(&self.state))
            .and_then(|e| e.bytes(&self.signature));
        encoder.into_writer().into()
    }

    /// Reads a datagram. The signature is checked later, by the document, when the state is news.
    pub fn decode(datagram: &Bytes) -> Result<(Token, Self), PresenceError> {
        let mut decoder = Decoder::new(datagram);
        let mut read = || -> Option<(Token, Self)> {
            (decoder.array().ok()? == Some(5)).then_some(())?;
            let token: [u8; TOKEN_BYTES] = decoder.bytes().ok()?.try_into().ok()?;
            let peer = PeerId::from_bytes(decoder.bytes().ok()?.try_into().ok()?).ok()?;
            let counter = decoder.u64().ok()?;
            let state = datagram.slice_ref(decoder.bytes().ok()?);
            let signature = decoder.bytes().ok()?.try_into().ok()?;
            (decoder.position() == datagram.len()).then_some((Token(token), Self { peer, counter, state, signature }))
        };
        let (token, presence) = read().ok_or(PresenceError::Damaged)?;
        match presence.state.len() {
            0..=PRESENCE_MAX_BYTES => Ok((token, presence)),
            actual => Err(PresenceError::TooLarge { actual }),
        }
    }
}

fn signing_bytes(log: LogId, counter: u64, state: &[u8]) -> Vec<u8> {
    [PRESENCE_CONTEXT, log.as_bytes(), &counter.to_be_bytes(), state].concat()
}

#[derive(Debug, Clone)]
struct Entry {
    presence: SignedPresence,
    /// `None` once the peer is gone; the counter stays, so that an old datagram cannot bring it back.
    expires: Option<Instant>,
}

impl Entry {
    fn is_shown(&self, now: Instant) -> bool {
        !self.presence.state.is_empty() && self.expires.is_some_and(|expires| now < expires)
    }
}

/// The peer whose state is not shown for longest; those that left come before those that only expired.
fn longest_gone(entries: &BTreeMap<PeerId, Entry>, now: Instant) -> Option<PeerId> {
    let gone = entries.iter().filter(|(_, entry)| !entry.is_shown(now));
    gone.min_by_key(|(_, entry)| entry.expires).map(|(peer, _)| *peer)
}

/// All presence states of one document.
#[derive(Debug)]
pub(super) struct PresenceBoard {
    entries: Mutex<BTreeMap<PeerId, Entry>>,
    version: watch::Sender<u64>,
}

impl PresenceBoard {
    pub fn new() -> Self {
        Self { entries: Mutex::new(BTreeMap::new()), version: watch::Sender::new(0) }
    }

    /// Changes whenever a state does; expiry does not change it.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Sets this node's own state; an empty one clears it. `now_us` keeps the counter growing over restarts.
    pub fn set_own(
        &self,
        identity: &Identity,
        log: LogId,
        state: Bytes,
        now: Instant,
        now_us: u64,
    ) -> Result<(), PresenceError> {
        if state.len() > PRESENCE_MAX_BYTES {
            return Err(PresenceError::TooLarge { actual: state.len() });
        }
        let previous = self.entries().get(&identity.peer_id()).map_or(0, |entry| entry.presence.counter);
        let presence = SignedPresence::sign(identity, log, now_us.max(previous + 1), state);
        self.insert(presence, now);
        Ok(())
    }

    /// Signs the own state again with a new counter when it is time for that, so that it lives on at the peers.
    pub fn renew_own(&self, identity: &Identity, log: LogId, now: Instant, now_us: u64) {
        let entry = self.entries().get(&identity.peer_id()).cloned();
        let Some(Entry { presence, expires: Some(expires) }) = entry else { return };
        if !presence.state.is_empty() && now + (PRESENCE_TTL - PRESENCE_RENEWAL) >= expires {
            let counter = now_us.max(presence.counter + 1);
            self.insert(SignedPresence::sign(identity, log, counter, presence.state), now);
        }
    }

    /// Takes a state from a peer: true when it is genuine and newer than what is here.
    pub fn receive(&self, log: LogId, presence: SignedPresence, now: Instant) -> bool {
        let is_news = |entries: &BTreeMap<PeerId, Entry>| match entries.get(&presence.peer) {
            Some(entry) => entry.presence.counter < presence.counter,
            None => entries.len() < PRESENCE_MAX_PEERS || longest_gone(entries, now).is_some(),
        };
        if !is_news(&self.entries()) || !presence.is_genuine(log) {
            return false;
        }
        self.make_room(presence.peer, now);
        self.insert(presence, now);
        true
    }

    /// Forgets whoever is gone for longest when there are too many for one more.
    fn make_room(&self, peer: PeerId, now: Instant) {
        let mut entries = self.entries();
        if entries.len() >= PRESENCE_MAX_PEERS
            && !entries.contains_key(&peer)
            && let Some(gone) = longest_gone(&entries, now)
        {
            entries.remove(&gone);
        }
    }

    /// The last session with this peer closed.
    pub fn on_peer_gone(&self, peer: PeerId) {
        if let Some(entry) = self.entries().get_mut(&peer) {
            entry.expires = None;
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// The states that are shown now, and when the first of them expires.
    pub fn shown(&self, now: Instant) -> (BTreeMap<PeerId, Bytes>, Option<Instant>) {
        let entries = self.entries();
        let shown = || entries.iter().filter(|(_, entry)| entry.is_shown(now));
        let states = shown().map(|(peer, entry)| (*peer, entry.presence.state.clone())).collect();
        (states, shown().filter_map(|(_, entry)| entry.expires).min())
    }

    /// States that a session has not passed on yet: those newer than the counters in `sent`, which is brought up to date.
    pub fn unsent(&self, sent: &mut BTreeMap<PeerId, u64>, to: PeerId) -> Vec<SignedPresence> {
        let entries = self.entries();
        sent.retain(|peer, _| entries.contains_key(peer));
        let alive = entries.values().filter(|entry| entry.expires.is_some() && entry.presence.peer != to);
        let newer = |presence: &&SignedPresence| sent.get(&presence.peer).is_none_or(|sent| *sent < presence.counter);
        let unsent: Vec<_> = alive.map(|entry| &entry.presence).filter(newer).cloned().collect();
        sent.extend(unsent.iter().map(|presence| (presence.peer, presence.counter)));
        unsent
    }

    fn insert(&self, presence: SignedPresence, now: Instant) {
        self.entries().insert(presence.peer, Entry { presence, expires: Some(now + PRESENCE_TTL) });
        self.version.send_modify(|version| *version += 1);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PeerId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn setup() -> (Identity, Identity, LogId, PresenceBoard, Instant) {
        let (alice, bob) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        (alice, bob, LogId::from([9; 32]), PresenceBoard::new(), Instant::now())
    }

    fn state(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_state_expires_by_itself_and_an_old_datagram_does_not_bring_it_back() {
        let (alice, _, log, board, now) = setup();
        let presence = SignedPresence::sign(&alice, log, 5, state("here"));
        assert!(board.receive(log, presence.clone(), now));
        assert_eq!(board.shown(now).0.get(&alice.peer_id()), Some(&state("here")));
        let later = now + PRESENCE_TTL;
        assert!(board.shown(later).0.is_empty());
        assert!(!board.receive(log, presence, later));
        assert!(board.receive(log, SignedPresence::sign(&alice, log, 6, state("back")), later));
    }

    #[test]
    fn a_forged_or_foreign_state_is_refused() {
        let (alice, bob, log, board, now) = setup();
        let mut forged = SignedPresence::sign(&bob, log, 5, state("i am alice"));
        forged.peer = alice.peer_id();
        assert!(!board.receive(log, forged, now));
        let foreign = SignedPresence::sign(&bob, LogId::from([8; 32]), 5, state("other document"));
        assert!(!board.receive(log, foreign, now));
    }

    #[test]
    fn a_session_passes_on_what_is_news_to_its_peer_once() {
        let (alice, bob, log, board, now) = setup();
        board.set_own(&alice, log, state("me"), now, 100).unwrap();
        let mut sent = BTreeMap::new();
        assert_eq!(board.unsent(&mut sent, bob.peer_id()).len(), 1);
        assert!(board.unsent(&mut sent, bob.peer_id()).is_empty());
        board.receive(log, SignedPresence::sign(&bob, log, 5, state("bob")), now);
        assert!(board.unsent(&mut sent, bob.peer_id()).is_empty(), "bob's own state is not sent to bob");
        board.renew_own(&alice, log, now + Duration::from_secs(1), 101);
        assert!(board.unsent(&mut sent, bob.peer_id()).is_empty(), "too early to renew");
        board.renew_own(&alice, log, now + PRESENCE_RENEWAL, 102);
        assert_eq!(board.unsent(&mut sent, bob.peer_id()).len(), 1);
    }

    #[test]
    fn a_full_board_takes_newcomers_only_in_place_of_those_who_are_gone() {
        let (alice, _, log, board, now) = setup();
        let peers: Vec<_> = (0..PRESENCE_MAX_PEERS as u16)
            .map(|number| Identity::from_seed(blake3::hash(&number.to_be_bytes()).as_bytes()))
            .collect();
        assert!(peers.iter().all(|peer| board.receive(log, SignedPresence::sign(peer, log, 1, state("here")), now)));
        assert!(!board.receive(log, SignedPresence::sign(&alice, log, 1, state("me too")), now));
        board.on_peer_gone(peers[7].peer_id());
        assert!(board.receive(log, SignedPresence::sign(&alice, log, 1, state("me too")), now));
        assert_eq!(board.shown(now).0.len(), PRESENCE_MAX_PEERS);
    }

    #[test]
    fn a_peer_that_left_is_gone_at_once() {
        let (alice, _, log, board, now) = setup();
        board.receive(log, SignedPresence::sign(&alice, log, 5, state("here")), now);
        board.on_peer_gone(alice.peer_id());
        assert!(board.shown(now).0.is_empty());
    }

    #[test]
    fn the_largest_state_fits_the_smallest_datagram_of_quic() {
        let (alice, _, log, _, _) = setup();
        let presence = SignedPresence::sign(&alice, log, u64::MAX, Bytes::from(vec![1; PRESENCE_MAX_BYTES]));
        let datagram = presence.encode(Token([0; TOKEN_BYTES]));
        assert!(datagram.len() <= 1100, "{} bytes", datagram.len());
        assert_eq!(SignedPresence::decode(&datagram), Ok((Token([0; TOKEN_BYTES]), presence)));
    }
}
