//! One end of a simulated TCP connection, pure: time is handed in, segments go in and come out.
//!
//! Drive it with [`Connection::on_segment`], [`Connection::on_timeout`] at [`Connection::deadline`], and after each call,
//! as after each read and write, with [`Connection::poll_transmit`] until it returns `None`.
//!
//! It repeats what was lost when Linux does: timestamps measure every round trip, and a probe of the tail comes before the
//! timeout. Not TCP to the bit: no simultaneous open, no delayed or selective acknowledgements, numbers start at 0.

use std::io;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;

use super::receiving::Receiving;
use super::segment::{Kind, Segment};
use super::sending::Sending;

/// Silence of a peer that owes an answer after which a connection is lost. Systems take minutes; nobody waits for them.
pub(super) const GIVE_UP: Duration = Duration::from_secs(30);

/// RFC 6298, section 2: before a round trip was measured.
const INITIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// What the timeout is longer than the round trip at least, as on Linux; and how long it may get, short enough to notice
/// that a partition healed.
const MIN_MARGIN: Duration = Duration::from_millis(200);
const MAX_TIMEOUT: Duration = Duration::from_secs(5);

/// RFC 8985, section 7.2: beyond two round trips, when several segments are on their way, and when one is, whose
/// acknowledgement may be delayed.
const PROBE_MARGIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));

/// How long a closed connection stays to answer what comes late.
const LINGER: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// We asked and wait for the answer.
    Connecting,
    /// We answered and wait to hear that the answer arrived.
    Accepting,
    Open,
    Failed(io::ErrorKind),
}

#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    sending: Sending,
    receiving: Receiving,
    /// Nobody holds it any more; it ends by itself.
    abandoned: bool,
    timeout: Duration,
    smoothed: Option<(Duration, Duration)>,
    /// When the segment was sent that the next acknowledgement is for.
    echo: Option<Duration>,
    probe_tail_at: Option<Duration>,
    retransmit_at: Option<Duration>,
    linger_until: Option<Duration>,
    /// When we last heard from the peer, or began to wait for it.
    heard: Duration,
    greeting_due: bool,
    acknowledgement_due: bool,
    probe_due: bool,
    reset_due: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Connection {
    pub(super) fn connect(now: Duration) -> Self {
        Self::new(now, State::Connecting)
    }

    /// Answers a greeting that was sent at `greeted`.
    pub(super) fn accept(now: Duration, greeted: Duration) -> Self {
        Self { echo: Some(greeted), ..Self::new(now, State::Accepting) }
    }

    fn new(now: Duration, state: State) -> Self {
        Self {
            state,
            sending: Sending::new(),
            receiving: Receiving::default(),
            abandoned: false,
            timeout: INITIAL_TIMEOUT,
            smoothed: None,
            echo: None,
            probe_tail_at: None,
            retransmit_at: Some(now + INITIAL_TIMEOUT),
            linger_until: None,
            heard: now,
            greeting_due: true,
            acknowledgement_due: false,
            probe_due: false,
            reset_due: false,
            reader: None,
            writer: None,
        }
    }

    /// Whether the handshake is done, or why it failed.
    pub(super) fn is_open(&self) -> Result<bool, io::ErrorKind> {
        match self.state {
            State::Connecting | State::Accepting => Ok(false),
            State::Open => Ok(true),
            State::Failed(kind) => Err(kind),
        }
    }

    /// Bytes for the reader, 0 at the end; `None`: nothing yet.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Option<Result<usize, io::ErrorKind>> {
        let count = self.receiving.read(buffer);
        if count > 0 {
            self.acknowledgement_due |= self.receiving.has_news();
            return Some(Ok(count));
        }
        match self.state {
            _ if buffer.is_empty() || self.receiving.finished => Some(Ok(0)),
            State::Failed(kind) => Some(Err(kind)),
            State::Connecting | State::Accepting | State::Open => None,
        }
    }

    /// How many bytes were taken; `None`: no room.
    pub(super) fn write(&mut self, now: Duration, bytes: &[u8]) -> Option<Result<usize, io::ErrorKind>> {
        match self.state {
            State::Failed(kind) => return Some(Err(kind)),
            _ if self.sending.is_finished() => return Some(Err(io::ErrorKind::BrokenPipe)),
            State::Connecting | State::Accepting | State::Open => {}
        }
        self.begin_to_wait(now);
        let count = self.sending.write(bytes);
        (count > 0 || bytes.is_empty()).then_some(Ok(count))
    }

    pub(super) fn finish(&mut self, now: Duration) {
        self.begin_to_wait(now);
        self.sending.finish();
    }

    /// Its owner is gone: what was written still goes out, the rest is refused.
    pub(super) fn abandon(&mut self, now: Duration) {
        self.abandoned = true;
        self.finish(now);
    }

    /// Tells the peer that nobody is here.
    pub(super) fn reset(&mut self) {
        self.abandoned = true;
        self.reset_due = true;
    }

    /// It can be forgotten.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        let lingered = self.linger_until.is_some_and(|until| until <= now);
        let opening = matches!(self.state, State::Connecting | State::Accepting);
        self.abandoned && (lingered || opening || matches!(self.state, State::Failed(_)))
    }

    /// When to call [`on_timeout`](Self::on_timeout).
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Failed(_) => None,
            State::Connecting | State::Accepting | State::Open => {
                self.linger_until.or_else(|| self.retransmit_at.into_iter().chain(self.probe_tail_at).min())
            }
        }
    }

    pub(super) fn on_timeout(&mut self, now: Duration) {
        let due = self.retransmit_at.into_iter().chain(self.probe_tail_at).any(|at| at <= now);
        if due && self.sending.may_probe() {
            self.sending.probe_tail();
            (self.retransmit_at, self.probe_tail_at) = (None, None);
            return;
        }
        if self.retransmit_at.is_none_or(|at| at > now) {
            return;
        }
        if now.saturating_sub(self.heard) >= GIVE_UP {
            return self.fail(io::ErrorKind::TimedOut);
        }
        self.timeout = (self.timeout * 2).min(MAX_TIMEOUT);
        (self.retransmit_at, self.probe_tail_at) = (None, None);
        match self.state {
            State::Connecting | State::Accepting => self.greeting_due = true,
            State::Open if self.sending.is_outstanding() => self.sending.on_timeout(),
            State::Open => self.probe_due = true,
            State::Failed(_) => {}
        }
    }

    pub(super) fn on_segment(&mut self, now: Duration, segment: &Segment) {
        // RFC 7323, section 4.3: of what fills a gap, not of what came after it.
        if segment.kind != Kind::Reset && segment.sequence <= self.receiving.expected {
            self.echo = Some(segment.sent);
        }
        match (self.state, segment.kind) {
            (State::Failed(_), _) | (State::Connecting, Kind::Syn | Kind::Data | Kind::Probe) => {}
            (State::Connecting, Kind::Reset) => self.fail(io::ErrorKind::ConnectionRefused),
            (State::Accepting | State::Open, Kind::Reset) => self.fail(io::ErrorKind::ConnectionReset),
            (State::Connecting, Kind::SynAck) => {
                self.open(now, segment);
                self.sending.on_acknowledged(0, segment.window, false);
                self.acknowledgement_due = true;
            }
            (State::Accepting, Kind::Syn) => self.greeting_due = true,
            (State::Accepting, _) => {
                self.open(now, segment);
                self.on_data(now, segment);
            }
            // Our answer was lost.
            (State::Open, Kind::Syn | Kind::SynAck) => self.acknowledgement_due = true,
            (State::Open, Kind::Data | Kind::Probe) => self.on_data(now, segment),
        }
    }

    /// The next segment that has to go out.
    pub(super) fn poll_transmit(&mut self, now: Duration) -> Option<Segment> {
        if std::mem::take(&mut self.reset_due) {
            self.fail(io::ErrorKind::ConnectionAborted);
            return Some(Segment::reset());
        }
        match self.state {
            State::Failed(_) => return None,
            State::Connecting | State::Accepting => {
                let kind = if self.state == State::Connecting { Kind::Syn } else { Kind::SynAck };
                self.retransmit_at.get_or_insert(now + self.timeout);
                return std::mem::take(&mut self.greeting_due).then(|| self.segment(now, kind, 0, Bytes::new(), false));
            }
            State::Open => {}
        }
        if let Some(chunk) = self.sending.poll_chunk() {
            self.retransmit_at.get_or_insert(now + self.timeout);
            self.probe_tail_at = self.probe_tail_at(now);
            return Some(self.segment(now, Kind::Data, chunk.sequence, chunk.payload, chunk.finish));
        }
        self.retransmit_at = match self.retransmit_at {
            at if self.sending.is_busy() => at.or(Some(now + self.timeout)),
            _ => None,
        };
        if self.abandoned && self.sending.is_finish_acknowledged() {
            self.linger_until.get_or_insert(now + LINGER);
        }
        if std::mem::take(&mut self.probe_due) {
            return Some(self.segment(now, Kind::Probe, 0, Bytes::new(), false));
        }
        std::mem::take(&mut self.acknowledgement_due).then(|| self.segment(now, Kind::Data, 0, Bytes::new(), false))
    }

    fn segment(&mut self, sent: Duration, kind: Kind, sequence: u64, payload: Bytes, finish: bool) -> Segment {
        self.acknowledgement_due = false;
        let window = self.receiving.announce();
        let (acknowledged, echo) = (self.receiving.expected, self.echo);
        Segment { kind, sequence, acknowledged, window, sent, echo, payload, finish }
    }

    /// When the last segment is sent once more, unless something is heard before.
    fn probe_tail_at(&self, now: Duration) -> Option<Duration> {
        let (smoothed, _) = self.smoothed.filter(|_| self.sending.may_probe())?;
        let margin = if self.sending.outstanding() > 1 { PROBE_MARGIN.0 } else { PROBE_MARGIN.1 };
        Some(now + smoothed * 2 + margin)
    }

    fn open(&mut self, now: Duration, segment: &Segment) {
        self.state = State::Open;
        self.greeting_due = false;
        self.heard = now;
        self.measure(now, segment);
        self.retransmit_at = None;
    }

    fn on_data(&mut self, now: Duration, segment: &Segment) {
        self.heard = now;
        let is_bare = segment.length() == 0 && segment.kind == Kind::Data;
        if self.sending.on_acknowledged(segment.acknowledged, segment.window, is_bare) {
            self.measure(now, segment);
            self.retransmit_at = None;
            self.probe_tail_at = self.probe_tail_at(now);
        }
        if self.abandoned && !segment.payload.is_empty() && self.receiving.expected <= segment.sequence {
            return self.reset();
        }
        self.acknowledgement_due |= !is_bare;
        self.receiving.take(segment);
    }

    /// RFC 6298, section 2, of an acknowledgement of something new.
    fn measure(&mut self, now: Duration, segment: &Segment) {
        let Some(sent) = segment.echo else { return };
        let sample = now.saturating_sub(sent);
        let (smoothed, variation) = match self.smoothed {
            None => (sample, sample / 2),
            Some((old, variation)) => ((old * 7 + sample) / 8, (variation * 3 + old.abs_diff(sample)) / 4),
        };
        self.smoothed = Some((smoothed, variation));
        self.timeout = (smoothed + (variation * 4).max(MIN_MARGIN)).min(MAX_TIMEOUT);
    }

    /// A peer that owed nothing until now has its full time to answer.
    fn begin_to_wait(&mut self, now: Duration) {
        if !self.sending.is_busy() {
            self.heard = now;
        }
    }

    fn fail(&mut self, kind: io::ErrorKind) {
        self.state = State::Failed(kind);
        (self.retransmit_at, self.probe_tail_at) = (None, None);
    }

    /// Somebody who waits for it should look again.
    pub(super) fn is_readable(&self) -> bool {
        self.receiving.finished || self.receiving.has_unread() || matches!(self.state, State::Failed(_))
    }

    /// There is room to write, or there never will be.
    pub(super) fn is_writable(&self) -> bool {
        match self.state {
            State::Connecting | State::Accepting => false,
            State::Open => self.sending.room() > 0,
            State::Failed(_) => true,
        }
    }
}
