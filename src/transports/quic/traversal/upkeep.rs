//! Keeps the paths of one live connection: both ends say where they are, check all ways, and move to the best.
//!
//! Candidates travel on a stream of the connection itself, so only the authenticated peer hears of them. The checks' secret
//! comes from the connection too. A move happens below QUIC: no stream notices, and the congestion controller starts afresh.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::birthday::Birthday;
use super::checker::Checker;
use super::meeting::{Listed, WORDS};
use super::standbys::Standbys;
use super::{Traversal, Word, lock};
use crate::frame::{FrameDecoder, put_frame};
use crate::ids::PeerId;
use crate::limits::FRAME_MAX_BYTES;
use crate::nat::check::Side;
use crate::nat::path::{Path, Via};
use crate::nat::path_selection::{PathEvent, PathSelection};
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::signal::{Candidate, CandidateKind, Signal};
use crate::rendezvous::wire::NodeFrame;
use crate::transport::{CloseReason, PathKind, PathReport};
use crate::transports::quic::wire::{StreamType, code};
use crate::watch;

/// What the two ends derive session and secret from.
const EXPORTER_LABEL: &[u8] = b"panda-network/1 paths";
/// How often a connection with traffic is looked at for datagrams that nobody answers.
const TRAFFIC_INTERVAL: Duration = Duration::from_millis(100);
/// How often its loss and round trip are looked at.
const QUALITY_INTERVAL: Duration = Duration::from_secs(2);
/// Packets in one look at the quality, for the share of lost ones to mean something.
const QUALITY_PACKETS: u64 = 100;
/// How often a standby at a relay is asked for while there is none.
const STANDBY_AGAIN: Duration = Duration::from_secs(10);
/// How often the peer is told through relays where we are, while no path answers.
const SIGNAL_AGAIN: Duration = Duration::from_secs(2);
/// The same while there is no session with any relay.
const SIGNAL_SOON: Duration = Duration::from_millis(200);

/// A stream of candidates in both directions.
pub(in crate::transports::quic) type PathStream = (SendStream, RecvStream);

/// One connection whose paths are kept.
pub(in crate::transports::quic) struct Kept {
    pub(in crate::transports::quic) quinn: Connection,
    pub(in crate::transports::quic) peer: PeerId,
    pub(in crate::transports::quic) dialled: bool,
    /// Counts the moves, for the congestion controller.
    pub(in crate::transports::quic) epoch: Arc<AtomicU64>,
    /// The kind of the path in use, for reports.
    pub(in crate::transports::quic) kind: watch::Sender<PathKind>,
    /// All paths as they are, for reports.
    pub(in crate::transports::quic) paths: Arc<Mutex<Vec<PathReport>>>,
    /// Brings the stream that the dialler opens.
    pub(in crate::transports::quic) stream: oneshot::Receiver<PathStream>,
    /// Relays at which the peer may be found, for a standby.
    pub(in crate::transports::quic) relays: Vec<RelayAddress>,
}

struct Upkeep {
    traversal: Arc<Traversal>,
    kept: Kept,
    virtual_address: SocketAddr,
    checker: Checker,
    wake: Arc<Notify>,
    /// Lost and sent packets at the last look at the quality.
    counted: (u64, u64),
    asked_for_standby: Option<Instant>,
    standbys: Standbys,
    in_doubt: bool,
    /// In which network this node is, as the hub counts them.
    network: u64,
    /// The connection's number, by which relayed signals name it.
    number: u64,
    /// While no path answers: when the peer is told of ours through relays.
    signal_at: Option<Instant>,
    birthday: Birthday,
}

/// Runs until the connection is gone.
pub(in crate::transports::quic) async fn keep_paths(traversal: Arc<Traversal>, kept: Kept) {
    let quinn = kept.quinn.clone();
    tokio::select! {
        biased;
        _ = quinn.closed() => {}
        () = keep(traversal, kept) => {}
    }
}

async fn keep(traversal: Arc<Traversal>, mut kept: Kept) {
    let virtual_address = kept.quinn.remote_address();
    let Some(path) = traversal.paths.path(&virtual_address) else { return };
    let mut derived = [0; 40];
    if kept.quinn.export_keying_material(&mut derived, EXPORTER_LABEL, b"").is_err() {
        return;
    }
    let (number, secret) = derived.split_at(8);
    let (Ok(number), Ok(secret)) = (number.try_into(), <[u8; 32]>::try_from(secret)) else { return };
    let side = if kept.dialled { Side::Dialler } else { Side::Acceptor };
    let selection = PathSelection::on(Instant::now().into_std(), path, PathKind::Direct, kept.quinn.rtt());
    let selection = if kept.dialled { selection } else { selection.following() };
    let number = u64::from_be_bytes(number);
    let Some(checker) = Checker::start(&traversal, number, side, &secret, selection) else { return };
    let (words, mut heard) = mpsc::channel(WORDS);
    let listing = traversal.clone();
    let _listed = Listed::new(&listing, (kept.peer, number), words);
    let stream = if kept.dialled { open(&kept.quinn).await } else { (&mut kept.stream).await.ok() };
    let Some((mut send, mut receive)) = stream else { return };
    let counted = (0, 0);
    let wake = Arc::new(Notify::new());
    let (asked_for_standby, in_doubt, signal_at) = (None, false, None);
    let birthday = Birthday::new(&traversal, kept.peer);
    let network = traversal.networks.load(Ordering::Relaxed);
    let standbys = Standbys::new(std::mem::take(&mut kept.relays));
    let mut upkeep = Upkeep {
        traversal,
        kept,
        virtual_address,
        checker,
        wake,
        counted,
        asked_for_standby,
        standbys,
        in_doubt,
        network,
        number,
        signal_at,
        birthday,
    };
    let ended = upkeep.run(&mut send, &mut receive, &mut heard).await;
    if ended.is_none() {
        // The peer said what cannot be understood; the connection goes on where it is.
        let _ = receive.stop(code(CloseReason::BadFrame));
    }
}

/// Whether this node is not reached any more where its own network, or its NAT, had put it. Relayed and mapped addresses are
/// lent by others, and come and go with those.
fn is_gone(before: &[Candidate], now: &[Candidate]) -> bool {
    let own = |candidate: &&Candidate| match candidate.kind {
        CandidateKind::Host | CandidateKind::ServerReflexive => true,
        CandidateKind::PeerReflexive | CandidateKind::Mapped | CandidateKind::Relayed => false,
    };
    before.iter().filter(own).any(|candidate| now.iter().all(|still| still.address != candidate.address))
}

async fn open(quinn: &Connection) -> Option<PathStream> {
    let (mut send, receive) = quinn.open_bi().await.ok()?;
    // Moving is more urgent than data: it may be what data waits for.
    let _ = send.set_priority(2);
    send.write_chunk(Bytes::copy_from_slice(&[StreamType::Paths.to_byte()])).await.ok()?;
    Some((send, receive))
}

impl Upkeep {
    /// `None` when the peer broke the protocol or the stream ended.
    async fn run(
        &mut self,
        send: &mut SendStream,
        receive: &mut RecvStream,
        heard: &mut mpsc::Receiver<Word>,
    ) -> Option<()> {
        let mut own = self.traversal.candidates();
        let mut flows = self.traversal.flows_changed.subscribe();
        let mut decoder = FrameDecoder::new();
        flows.mark_changed();
        self.tell_kind();
        let mut told = own.borrow_and_update().clone();
        self.tell(send, told.clone()).await?;
        let (mut look_at, mut quality_at) = (Instant::now() + TRAFFIC_INTERVAL, Instant::now() + QUALITY_INTERVAL);
        let mut watching = true;
        self.refresh();
        loop {
            for word in self.birthday.drive(&mut self.checker) {
                self.say(send, Signal::Birthday { session: 0, word }).await?;
            }
            let wake = self.wake.clone();
            // While no path answers the peer is told again, whether or not there is traffic.
            let looking = watching || self.signal_at.is_some();
            tokio::select! {
                biased;
                chunk = receive.read_chunk(FRAME_MAX_BYTES, true) => {
                    decoder.push(chunk.ok()??.bytes);
                    while let Some(frame) = decoder.next_frame().ok()? {
                        self.on_said(Signal::decode(&frame).ok()?)?;
                    }
                }
                Some(word) = heard.recv() => {
                    if let Word::Signal(Signal::Candidates { candidates, .. }) = word {
                        self.checker.add_candidates(&candidates);
                    }
                }
                Ok(()) = own.changed() => {
                    let candidates = own.borrow_and_update().clone();
                    let before = std::mem::replace(&mut told, candidates.clone());
                    self.tell(send, candidates).await?;
                    self.on_own_candidates(is_gone(&before, &told));
                }
                Ok(()) = flows.changed() => self.take_flows(),
                event = self.checker.next() => if self.on_checked(event) {
                    // Something of ours has to go by the new path, so that both directions are seen to work.
                    let candidates = own.borrow().clone();
                    self.tell(send, candidates).await?;
                },
                () = self.birthday.next() => {}
                () = wake.notified(), if !watching => {
                    watching = true;
                    look_at = Instant::now() + TRAFFIC_INTERVAL;
                    continue;
                }
                () = sleep_until(look_at.min(quality_at)), if looking => {
                    let now = Instant::now();
                    look_at = now + TRAFFIC_INTERVAL;
                    watching = self.look_at_traffic(now)?;
                    // The paths are what they were: traffic wakes us far more often than they change.
                    if now < quality_at {
                        // Nobody looks again before the next datagram.
                        if !watching {
                            self.learn_datagram_size();
                        }
                        continue;
                    }
                    self.look_at_quality();
                    quality_at = now + QUALITY_INTERVAL;
                }
            }
            self.refresh();
        }
    }

    /// The peer said something on the stream of paths; `None` when it may not say that there.
    fn on_said(&mut self, signal: Signal) -> Option<()> {
        match signal {
            Signal::Candidates { candidates, .. } => {
                self.birthday.on_candidates(&candidates);
                self.checker.add_candidates(&candidates);
                self.tell_kind();
            }
            Signal::Birthday { word, .. } => self.birthday.on_word(word),
            Signal::Offer { .. } | Signal::Answer { .. } | Signal::Refused { .. } => return None,
        }
        Some(())
    }

    /// This node may be reached elsewhere now. Where it was before is `gone`, or the network is another: whatever is in use may
    /// be dead. One more address says nothing of the others; the peer will check it, and our NAT has to let that in.
    fn on_own_candidates(&mut self, gone: bool) {
        let network = self.traversal.networks.load(Ordering::Relaxed);
        let moved = std::mem::replace(&mut self.network, network) != network;
        if gone || moved || self.in_doubt {
            self.on_network_change();
        } else {
            self.checker.punch(Duration::ZERO);
        }
    }

    fn on_network_change(&mut self) {
        let now = Instant::now();
        if self.in_doubt {
            // The stream may carry nothing any more; waiting for the third missed check would cost seconds.
            self.signal_at = Some(now);
            self.signal(now);
        }
        self.birthday.on_network_change();
        self.checker.selection.on_network_change(now.into_std());
        self.note_doubt();
    }

    /// Takes over what the connection learnt of its path, and tells what is known of all of them.
    fn refresh(&mut self) {
        self.learn_datagram_size();
        self.tell_paths();
    }

    fn learn_datagram_size(&mut self) {
        self.checker.selection.set_datagram_bytes(self.kept.quinn.stats().path.current_mtu);
    }

    /// True when the connection moved.
    fn on_checked(&mut self, event: Option<PathEvent>) -> bool {
        for path in std::mem::take(&mut self.checker.asked) {
            self.traversal.paths.attach(&self.virtual_address, path);
            self.birthday.on_asked(path);
        }
        self.checker.relayed.clear();
        if std::mem::take(&mut self.checker.answered) {
            self.signal_at = None;
            self.send_unheard();
            self.traversal.paths.on_answer(&self.virtual_address);
        }
        let moved = self.on_event(event);
        self.note_doubt();
        moved
    }

    /// Sends what is kept. Not the end of a handshake while there is no doubt: that is repeated until it is confirmed.
    fn send_unheard(&self) {
        if self.in_doubt || !self.traversal.paths.is_finishing(&self.virtual_address) {
            self.traversal.paths.send_unheard(&self.virtual_address);
        }
    }

    /// What is sent while nobody may hear it is kept, to be sent again as soon as somebody may.
    fn note_doubt(&mut self) {
        let in_doubt = self.checker.selection.is_in_doubt();
        if std::mem::replace(&mut self.in_doubt, in_doubt) != in_doubt {
            self.traversal.paths.set_in_doubt(&self.virtual_address, in_doubt);
            if in_doubt {
                self.traversal.look.notify_one();
            }
        }
    }

    fn on_event(&mut self, event: Option<PathEvent>) -> bool {
        match event {
            Some(PathEvent::Selected(path)) => {
                self.signal_at = None;
                self.traversal.paths.select(&self.virtual_address, path);
                self.send_unheard();
                self.kept.epoch.fetch_add(1, Ordering::Relaxed);
                self.hold_relays(Some(path));
                self.tell_kind();
                tracing::debug!(peer = %self.kept.peer.short(), kind = %*self.kept.kind.borrow(), "moved to another path");
                true
            }
            Some(PathEvent::Lost) => {
                self.hold_relays(None);
                tracing::debug!(peer = %self.kept.peer.short(), "no path answers");
                let now = Instant::now();
                self.signal_at = Some(now);
                self.signal(now);
                false
            }
            None => false,
        }
    }

    /// Flows that relays opened to the peer; the dialler asks for one at every relay where the peer may be.
    fn take_flows(&mut self) {
        let flows = self.traversal.flows_to(&self.kept.peer);
        for path in flows.values() {
            self.traversal.announce(*path);
            self.checker.add_relayed(*path);
        }
        let gone: BTreeSet<_> = self
            .checker
            .selection
            .paths()
            .map(|(path, ..)| path)
            .filter(|path| matches!(path.via, Via::Forward { .. }))
            .filter(|path| !flows.values().any(|flow| flow == path))
            .collect();
        for path in gone {
            self.checker.selection.remove(Instant::now().into_std(), &path);
        }
        self.hold_relays(self.checker.selection.selected().map(|(path, _)| path));
    }

    /// `selected`: the path in use, `None` while none answers.
    fn hold_relays(&mut self, selected: Option<Path>) {
        let flows = self.traversal.flows_to(&self.kept.peer);
        self.standbys.update(&self.traversal, &flows, selected);
    }

    fn ask_for_standby(&mut self, now: Instant) {
        if !self.kept.dialled || self.asked_for_standby.is_some_and(|asked| now < asked + STANDBY_AGAIN) {
            return;
        }
        let flows = self.traversal.flows_to(&self.kept.peer);
        self.asked_for_standby = Some(now);
        for relay in self.standbys.without_flow(&flows) {
            self.traversal.say(relay, NodeFrame::Forward { to: self.kept.peer });
        }
    }

    /// No path answers: we or the peer may be somewhere else now, and relays are all that is left to say so.
    fn signal(&mut self, now: Instant) {
        if self.signal_at.is_none_or(|at| now < at) {
            return;
        }
        let candidates = self.traversal.candidates.borrow().clone();
        let signal = Signal::Candidates { session: self.number, candidates };
        let mut taken = false;
        for relay in self.traversal.all_relays() {
            // Where the peer is not known, or we are not, nothing comes of it.
            taken |= self.traversal.signal(&relay, self.kept.peer, &signal);
        }
        self.signal_at = Some(now + if taken { SIGNAL_AGAIN } else { SIGNAL_SOON });
    }

    /// Looks for datagrams without an answer. False when all is quiet: the next datagram wakes us.
    fn look_at_traffic(&mut self, now: Instant) -> Option<bool> {
        self.ask_for_standby(now);
        self.signal(now);
        let seen = self.traversal.paths.watch(&self.virtual_address, Some(self.wake.clone()))?;
        let std_now = now.into_std();
        if seen.send_failed
            && let Some((path, _)) = self.checker.selection.selected()
        {
            self.checker.selection.on_send_error(std_now, path);
        }
        self.checker.selection.on_traffic(std_now, seen.unanswered_since);
        self.note_doubt();
        Some(seen.unanswered_since.is_some())
    }

    fn look_at_quality(&mut self) {
        let stats = self.kept.quinn.stats().path;
        let (lost, sent) = (stats.lost_packets, stats.sent_packets);
        let (new_lost, new_sent) = (lost.saturating_sub(self.counted.0), sent.saturating_sub(self.counted.1));
        if new_sent < QUALITY_PACKETS {
            return;
        }
        self.counted = (lost, sent);
        let permille = u32::try_from(new_lost * 1000 / new_sent).unwrap_or(1000);
        self.checker.selection.on_quality(Instant::now().into_std(), permille, stats.rtt);
    }

    fn tell_kind(&self) {
        if let Some((path, _)) = self.checker.selection.selected() {
            let kind = self.checker.kind(path);
            self.checker.note_in_use(path, kind);
            self.kept.kind.send_if_modified(|current| std::mem::replace(current, kind) != kind);
        }
    }

    fn tell_paths(&self) {
        let selection = &self.checker.selection;
        let selected = selection.selected().map(|(path, _)| path);
        let mut reports = lock(&self.kept.paths);
        reports.clear();
        reports.extend(selection.paths().map(|(path, _, round_trip)| PathReport {
            kind: self.checker.kind(path),
            remote: path.remote,
            round_trip,
            selected: selected == Some(path),
        }));
    }

    async fn tell(&self, send: &mut SendStream, candidates: Vec<Candidate>) -> Option<()> {
        self.say(send, Signal::Candidates { session: 0, candidates }).await
    }

    async fn say(&self, send: &mut SendStream, signal: Signal) -> Option<()> {
        let mut out = Vec::new();
        put_frame(&mut out, |out| out.extend(signal.encode()));
        send.write_chunk(out.into()).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loss_of_an_address_of_its_own_says_that_a_node_is_elsewhere() {
        use CandidateKind::{Host, Mapped, Relayed, ServerReflexive};
        let at = |kind, host: u8| Candidate { kind, address: SocketAddr::from(([192, 0, 2, host], 4000)) };
        let before = [at(Host, 1), at(ServerReflexive, 2), at(Mapped, 3), at(Relayed, 4)];
        assert!(!is_gone(&before, &before) && !is_gone(&[], &before));
        assert!(!is_gone(&before, &[at(Relayed, 5), at(ServerReflexive, 2), at(Host, 1)]));
        assert!(!is_gone(&before, &[at(Host, 1), at(Mapped, 2)]), "the same address by another name");
        assert!(is_gone(&before, &before[1..]) && is_gone(&before, &[before[0], before[2], before[3]]));
    }
}
