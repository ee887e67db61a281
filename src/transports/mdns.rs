//! A board in the local networks of this machine, by multicast DNS (RFC 6762) and service discovery (RFC 6763).
//!
//! Every notice is an instance of one service type, with names that are hashes of it. It travels in the TXT
//! record, cut into strings; the SRV record says nothing: its port would be a name that stays. `mdns-sd` does the rest, on a
//! thread and sockets of its own (UDP port 5353, shared with other programs).
//!
//! That library keeps what it hears for as long as others say, without a bound of its own. So its size is looked at every two
//! seconds, and when there is too much of it, it is stopped, and starts anew after a minute: whoever floods a network can
//! keep us from finding peers there, and no more.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};
use std::time::Duration;

use data_encoding::HEXLOWER;
use mdns_sd::{DaemonEvent, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo, TxtProperty};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::limits::{LAN_CACHED_RECORDS, LAN_HEARD_QUEUE, LAN_NOTICE_MAX_BYTES};
use crate::net::LanBoard;
use crate::watch;

/// The service type of our notices.
const SERVICE: &str = "_panda-network._udp.local.";
/// Where multicast DNS is spoken.
const PORT: u16 = 5353;
/// The port that SRV records name: discard. Nobody connects by them.
const NO_PORT: u16 = 9;
/// Bytes of a notice in one string of a TXT record, which has 255 with its key.
const STRING_BYTES: usize = 250;
/// Strings that hold the largest notice.
const STRINGS: usize = LAN_NOTICE_MAX_BYTES.div_ceil(STRING_BYTES);
/// Domain separation of the names.
const INSTANCE_CONTEXT: &str = "panda-network 2026 LAN instance";
const HOST_CONTEXT: &str = "panda-network 2026 LAN host";
/// Bytes of a name, before they are written as digits.
const NAME_BYTES: usize = 16;
/// How often it is looked how much the library keeps.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long this machine hears and says nothing after a flood, or when multicast DNS cannot be used.
const QUIET: Duration = Duration::from_secs(60);

/// The board of this machine's local networks.
#[derive(Debug)]
pub struct MdnsBoard {
    posts: watch::Sender<Option<Vec<u8>>>,
    heard: mpsc::Receiver<Vec<u8>>,
}

impl MdnsBoard {
    /// Starts to listen, within a tokio runtime. Where multicast does not work nothing is heard.
    pub fn open() -> Self {
        Self::open_at(PORT, LAN_CACHED_RECORDS)
    }

    fn open_at(port: u16, max_records: i64) -> Self {
        let (posts, (sender, heard)) = (watch::Sender::new(None), mpsc::channel(LAN_HEARD_QUEUE));
        tokio::spawn(keep_open(port, max_records, posts.subscribe(), sender));
        Self { posts, heard }
    }
}

impl LanBoard for MdnsBoard {
    fn post(&mut self, notice: Option<Vec<u8>>) {
        self.posts.send_replace(notice);
    }

    fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        self.heard.poll_recv(context)
    }
}

/// Why a daemon was stopped.
#[derive(Debug)]
enum Stopped {
    /// The board was dropped.
    Closed,
    /// Others say more than we keep.
    Flooded,
    /// It does not work.
    Failed(mdns_sd::Error),
}

impl From<mdns_sd::Error> for Stopped {
    fn from(error: mdns_sd::Error) -> Self {
        Self::Failed(error)
    }
}

async fn keep_open(
    port: u16,
    max_records: i64,
    mut posts: watch::Receiver<Option<Vec<u8>>>,
    heard: mpsc::Sender<Vec<u8>>,
) {
    loop {
        posts.mark_changed();
        match serve(port, max_records, &mut posts, &heard).await {
            Stopped::Closed => return,
            Stopped::Flooded => tracing::warn!("the local network is flooded with names; not listening for a while"),
            Stopped::Failed(error) => tracing::warn!(%error, "multicast DNS does not work"),
        }
        let closed = async { while posts.changed().await.is_ok() {} };
        if timeout(QUIET, closed).await.is_ok() {
            return;
        }
    }
}

/// Runs one daemon until there is a reason to stop it.
async fn serve(
    port: u16,
    max_records: i64,
    posts: &mut watch::Receiver<Option<Vec<u8>>>,
    heard: &mpsc::Sender<Vec<u8>>,
) -> Stopped {
    let mut daemon = match Daemon::start(port) {
        Ok(daemon) => daemon,
        Err(error) => return error.into(),
    };
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            changed = posts.changed() => match changed {
                Ok(()) => {
                    let notice = posts.borrow_and_update().clone();
                    daemon.post(notice.as_deref())
                }
                Err(_) => return Stopped::Closed,
            },
            event = daemon.heard.recv_async() => match event {
                // Full: dropped. What is genuine is announced again.
                Ok(ServiceEvent::ServiceResolved(service)) => {
                    let _ = heard.try_send(notice_of(&service));
                    Ok(())
                }
                Ok(_) => Ok(()),
                // The library gave up because more came than could be taken.
                Err(_) => return Stopped::Flooded,
            },
            Ok(event) = daemon.events.recv_async() => {
                if let DaemonEvent::Error(error) = event {
                    tracing::debug!(%error, "multicast DNS");
                }
                Ok(())
            }
            _ = look.tick() => match daemon.records().await {
                Ok(records) if records > max_records => return Stopped::Flooded,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            },
        };
        if let Err(error) = done {
            return error.into();
        }
    }
}

/// A running daemon, stopped when this is dropped.
struct Daemon {
    daemon: ServiceDaemon,
    heard: Receiver<ServiceEvent>,
    events: Receiver<DaemonEvent>,
    /// The full name of what is posted.
    posted: Option<String>,
}

impl Daemon {
    fn start(port: u16) -> mdns_sd::Result<Self> {
        check(port).map_err(|error| mdns_sd::Error::Msg(format!("UDP port {port}: {error}")))?;
        let daemon = ServiceDaemon::new_with_port(port)?;
        let (heard, events) = (daemon.browse(SERVICE)?, daemon.monitor()?);
        Ok(Self { daemon, heard, events, posted: None })
    }

    fn post(&mut self, notice: Option<&[u8]>) -> mdns_sd::Result<()> {
        if let Some(posted) = self.posted.take() {
            // That it is gone is told to everybody; nobody waits for that.
            self.daemon.unregister(&posted)?;
        }
        if let Some(notice) = notice {
            let info = instance(notice)?;
            self.posted = Some(info.get_fullname().to_owned());
            self.daemon.register(info)?;
        }
        Ok(())
    }

    /// How many records the library keeps.
    async fn records(&self) -> mdns_sd::Result<i64> {
        let answer = self.daemon.get_metrics()?;
        let metrics = answer.recv_async().await.unwrap_or_default();
        Ok(metrics.iter().filter(|(name, _)| name.starts_with("cached-")).map(|(_, count)| count).sum())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Takes back what is posted, and ends the thread.
        let _ = self.daemon.shutdown();
    }
}

/// Whether a socket for multicast DNS can be had, of one family at least: the library says nothing when it gets none.
fn check(port: u16) -> io::Result<()> {
    let bind = |domain, address: SocketAddr| {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        #[cfg(unix)]
        socket.set_reuse_port(true)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())
    };
    let four = bind(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into());
    four.or_else(|error| bind(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()).map_err(|_| error))
}

/// The instance of our service that stands for a notice.
fn instance(notice: &[u8]) -> mdns_sd::Result<ServiceInfo> {
    let (name, host) = (name_of(INSTANCE_CONTEXT, notice), name_of(HOST_CONTEXT, notice));
    let mut info = ServiceInfo::new(SERVICE, &name, &format!("{host}.local."), (), NO_PORT, strings(notice))?;
    // Nobody else has these names.
    info.set_requires_probe(false);
    Ok(info.enable_addr_auto())
}

/// A name that is as random as the notice, and says no more.
fn name_of(kind: &str, notice: &[u8]) -> String {
    HEXLOWER.encode(&blake3::derive_key(kind, notice)[..NAME_BYTES])
}

/// A notice as the strings of a TXT record, numbered from 0.
fn strings(notice: &[u8]) -> Vec<TxtProperty> {
    let string = |(number, bytes): (usize, &[u8])| TxtProperty::from((number.to_string(), bytes));
    notice.chunks(STRING_BYTES).enumerate().map(string).collect()
}

/// What the strings of a TXT record say, up to a gap. Whoever reads it looks at the size first.
fn notice_of(service: &ResolvedService) -> Vec<u8> {
    let strings = (0..STRINGS).map_while(|number| service.txt_properties.get(&number.to_string())?.val());
    strings.collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::UdpSocket;

    use super::*;

    /// How long anything may take on a machine that is busy.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Not the port of multicast DNS: the machine's own does not take part.
    fn free_port() -> u16 {
        UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
    }

    async fn hear(board: &mut MdnsBoard, wanted: &[u8]) {
        let heard = async { while poll_fn(|context| board.poll_heard(context)).await.unwrap() != wanted {} };
        timeout(PATIENCE, heard).await.expect("the notice is heard");
    }

    #[tokio::test]
    async fn a_notice_of_any_size_is_heard_by_others_and_so_is_the_next_one() {
        let port = free_port();
        let (mut one, mut other) =
            (MdnsBoard::open_at(port, LAN_CACHED_RECORDS), MdnsBoard::open_at(port, LAN_CACHED_RECORDS));
        for size in [1, STRING_BYTES, 1000, LAN_NOTICE_MAX_BYTES] {
            let notice: Vec<u8> = (0..size).map(|at| (at % 256) as u8).collect();
            one.post(Some(notice.clone()));
            hear(&mut other, &notice).await;
        }
        other.post(Some(b"an answer".to_vec()));
        hear(&mut one, b"an answer").await;
    }

    #[tokio::test]
    async fn a_port_that_another_program_keeps_for_itself_is_an_error_and_not_silence() {
        // Of both families, where there are two.
        let taken = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0")).unwrap();
        let port = taken.local_addr().unwrap().port();
        let (posts, (sender, _heard)) = (watch::Sender::new(None), mpsc::channel(LAN_HEARD_QUEUE));
        let stopped = timeout(PATIENCE, serve(port, 100, &mut posts.subscribe(), &sender)).await;
        assert!(matches!(stopped, Ok(Stopped::Failed(_))), "{stopped:?}");
    }

    #[tokio::test]
    async fn a_flood_of_names_stops_the_daemon_and_a_few_do_not() {
        let port = free_port();
        let (_posts, (sender, mut heard)) = (watch::Sender::new(None), mpsc::channel(LAN_HEARD_QUEUE));
        let mut posts = _posts.subscribe();
        let serving = tokio::spawn(async move { serve(port, 100, &mut posts, &sender).await });
        let mut strangers = Vec::new();
        let mut stranger = |notice: &[u8]| {
            let mut daemon = Daemon::start(port).unwrap();
            daemon.post(Some(notice)).unwrap();
            strangers.push(daemon);
        };
        stranger(b"one");
        assert_eq!(timeout(PATIENCE, heard.recv()).await.unwrap().unwrap(), b"one");
        assert!(!serving.is_finished());
        // One stranger is enough, with many names.
        let flood = ServiceDaemon::new_with_port(port).unwrap();
        for number in 0..60 {
            let info = instance(&[number]).unwrap();
            while flood.register(info.clone()).is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let stopped = timeout(PATIENCE, serving).await.expect("it is stopped").unwrap();
        assert!(matches!(stopped, Stopped::Flooded), "{stopped:?}");
        let _ = flood.shutdown();
    }
}
