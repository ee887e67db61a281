//! The sending half of a session: does what the session says, and waits when it has nothing to say.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::error::BridgeError;
use super::link::{Link, add};
use super::pace::{Times, Why};
use super::round::Signals;
use super::session::Say;
use crate::limits::{BRIDGE_CLOSE_DEADLINE, FRAME_MAX_BYTES};
use crate::store::Position;
use crate::transport::SendHalf;
use crate::watch;

/// Sends what the session says.
pub(super) struct Writer<'a> {
    link: &'a Link,
    send: Box<dyn SendHalf>,
    signals: &'a Signals,
    out: Vec<u8>,
    /// Operations of this session that are counted already.
    sent: usize,
    times: Times,
    is_live: bool,
    closed_at: Option<Instant>,
}

/// Until when to wait for something to send, and what then.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// The Node has to speak, or somebody here: until then.
    Something,
    /// The session ends, for this reason.
    End(Instant, Why),
    /// The Node should have closed the session.
    Closed(Instant),
}

impl<'a> Writer<'a> {
    pub(super) fn new(link: &'a Link, send: Box<dyn SendHalf>, signals: &'a Signals) -> Self {
        let began = Instant::now();
        let times = Times { began, live: began, sent: began };
        Self { link, send, signals, out: Vec::new(), sent: 0, times, is_live: false, closed_at: None }
    }

    /// Until it fails: the Node closes what was closed here.
    pub(super) async fn run(mut self) -> Result<(), BridgeError> {
        let mut newest = self.link.document.newest();
        let (store, log) = (&self.link.context.store, self.link.log);
        loop {
            let stored = *newest.borrow_and_update();
            let say = {
                let mut session = self.link.session();
                session.on_stored(stored);
                session.say()
            };
            match say {
                Say::Send(message) => {
                    message.put(log, &mut self.out);
                    if self.out.len() >= FRAME_MAX_BYTES {
                        self.flush().await?;
                    }
                }
                Say::ReadRange(range) => {
                    let page = store.author_page(log, range.author, range.first, range.last).await?;
                    self.link.session().on_range(page);
                }
                Say::ReadAfter(position) => {
                    let page = store.page_after(log, position).await?;
                    self.link.session().on_newer(page);
                }
                Say::Wait => {
                    self.flush().await?;
                    self.wait(&mut newest).await?;
                }
            }
        }
    }

    async fn wait(&mut self, newest: &mut watch::Receiver<Position>) -> Result<(), BridgeError> {
        let until = self.until();
        let end = async {
            match until {
                Until::Something => std::future::pending().await,
                Until::End(at, _) | Until::Closed(at) => sleep_until(at).await,
            }
        };
        tokio::select! {
            biased;
            () = self.signals.heard.notified() => return Ok(()),
            Ok(()) = newest.changed() => return Ok(()),
            () = end => {}
        }
        match until {
            Until::Something => {}
            Until::End(_, Why::Verify(_)) => self.link.session().verify(),
            Until::End(..) => self.link.session().end(),
            Until::Closed(_) => return Err(BridgeError::Silent),
        }
        Ok(())
    }

    /// How long to wait now that all is written.
    fn until(&mut self) -> Until {
        let (session, now) = (self.link.session(), Instant::now());
        if session.is_closing() {
            return Until::Closed(*self.closed_at.get_or_insert(now) + BRIDGE_CLOSE_DEADLINE);
        }
        if session.is_live() && !self.is_live {
            (self.is_live, self.times.live) = (true, now);
            self.link.on_live();
        }
        let due = session.reasons().map(|why| (why.due(&self.times), why));
        due.min_by_key(|(at, _)| *at).map_or(Until::Something, |(at, why)| Until::End(at, why))
    }

    async fn flush(&mut self) -> Result<(), BridgeError> {
        let mut out = Bytes::from(std::mem::take(&mut self.out));
        while !out.is_empty() {
            let piece = out.split_to(out.len().min(FRAME_MAX_BYTES));
            self.signals.is_writing.store(true, Ordering::Relaxed);
            self.send.write(piece).await?;
            self.signals.is_writing.store(false, Ordering::Relaxed);
            self.signals.moved.notify_one();
        }
        let sent = self.link.session().sent();
        if sent > self.sent {
            add(&self.link.node.sent, (sent - self.sent) as u64);
            (self.sent, self.times.sent) = (sent, Instant::now());
        }
        Ok(())
    }
}
