//! The whole transport on tokio's paused clock over a simulated socket: one seed, one packet trace.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, Sleep};

use super::*;
use crate::transport::Priority;

/// A network with loss and delay, and what travelled on it: when, from where, how many bytes.
#[derive(Debug)]
struct Net {
    random: ChaCha8Rng,
    loss: f64,
    started: Instant,
    inboxes: HashMap<SocketAddr, Inbox>,
    /// Hosts behind a NAT: inner address and the outer one that it has now.
    translated: HashMap<SocketAddr, SocketAddr>,
    trace: Vec<(Duration, SocketAddr, usize)>,
    failures: u32,
}

#[derive(Debug, Default)]
struct Inbox {
    arriving: BTreeMap<(Instant, usize), (SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
    timer: Option<Pin<Box<Sleep>>>,
    errors: VecDeque<io::ErrorKind>,
}

#[derive(Debug)]
struct SimSocket {
    net: Arc<Mutex<Net>>,
    address: SocketAddr,
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut net = self.net.lock().unwrap();
        let now = Instant::now();
        let at = now - net.started;
        net.trace.push((at, self.address, transmit.contents.len()));
        if net.failures > 0 {
            net.failures -= 1;
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let loss = net.loss;
        if net.random.random_bool(loss) {
            return Ok(());
        }
        let arrival = now + Duration::from_micros(net.random.random_range(20_000..30_000));
        let number = net.trace.len();
        let source = *net.translated.get(&self.address).unwrap_or(&self.address);
        let outer = net.translated.iter().find(|(_, outer)| **outer == transmit.destination);
        let destination = outer.map_or(transmit.destination, |(inner, _)| *inner);
        if let Some(inbox) = net.inboxes.get_mut(&destination) {
            inbox.arriving.insert((arrival, number), (source, transmit.contents.to_vec()));
            if let Some(waker) = inbox.waker.take() {
                waker.wake();
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut net = self.net.lock().unwrap();
        let inbox = net.inboxes.get_mut(&self.address).unwrap();
        if let Some(error) = inbox.errors.pop_front() {
            return Poll::Ready(Err(error.into()));
        }
        loop {
            inbox.waker = Some(context.waker().clone());
            let Some(first) = inbox.arriving.first_entry() else { return Poll::Pending };
            let at = first.key().0;
            if at <= Instant::now() {
                let (source, bytes) = first.remove();
                buffers[0][..bytes.len()].copy_from_slice(&bytes);
                metas[0] = RecvMeta { addr: source, len: bytes.len(), stride: bytes.len(), ecn: None, dst_ip: None };
                return Poll::Ready(Ok(1));
            }
            let mut timer = Box::pin(tokio::time::sleep_until(at));
            if timer.as_mut().poll(context).is_pending() {
                inbox.timer = Some(timer);
                return Poll::Pending;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

fn net(seed: u64, loss: f64) -> Arc<Mutex<Net>> {
    Arc::new(Mutex::new(Net {
        random: ChaCha8Rng::seed_from_u64(seed),
        loss,
        started: Instant::now(),
        inboxes: HashMap::new(),
        translated: HashMap::new(),
        trace: Vec::new(),
        failures: 0,
    }))
}

fn host(net: &Arc<Mutex<Net>>, seed: u8) -> QuicTransport {
    let address = SocketAddr::from(([10, 0, 0, seed], 7000));
    net.lock().unwrap().inboxes.insert(address, Inbox::default());
    let socket = Arc::new(SimSocket { net: net.clone(), address });
    start_with(seed, QuicTransportOptions::new().with_socket(socket).with_rng_seed([seed; 32]))
}

/// Connects, sends 200 kB, asks ten questions, stays idle for a minute, reconnects with 0-RTT.
fn run(seed: u64, loss: f64) -> Vec<(Duration, SocketAddr, usize)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let net = net(seed, loss);
        let (alice, bob) = (host(&net, 1), host(&net, 2));
        for _ in 0..2 {
            let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
            let server = tokio::spawn(async move {
                let (_send, mut recv) = at_bob.accept_bi().await.unwrap();
                assert_eq!(read_all(&mut recv).await.unwrap().len(), 200_000);
                for _ in 0..10 {
                    at_bob.accept_request().await.unwrap().answer.finish();
                }
                at_bob
            });
            let (mut send, _recv) = at_alice.open_bi(Priority::High).await.unwrap();
            send.write(vec![1; 200_000].into()).await.unwrap();
            send.finish();
            for _ in 0..10 {
                assert_eq!(at_alice.request(Bytes::from_static(b"?"), PATIENCE).await.unwrap(), "");
            }
            let _at_bob = server.await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(alice.quic_stats().early_hellos, 1);
        alice.shutdown(PATIENCE).await;
        let net = net.lock().unwrap();
        net.trace.clone()
    })
}

#[test]
fn the_same_seed_gives_the_same_packets_at_the_same_times() {
    for (seed, loss) in [(1, 0.0), (2, 0.05), (3, 0.15)] {
        let (first, second) = (run(seed, loss), run(seed, loss));
        assert!(first.len() > 300, "seed {seed}: {} packets", first.len());
        let differing = first.iter().zip(&second).position(|(one, other)| one != other);
        assert_eq!((differing, first.len()), (None, second.len()), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dialler_whose_nat_gives_it_another_address_stays_connected() {
    let net = net(1, 0.0);
    let (alice, bob) = (host(&net, 1), host(&net, 2));
    let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
    let outer = SocketAddr::from(([203, 0, 113, 1], 4242));
    net.lock().unwrap().translated.insert(address_of(&alice), outer);
    for _ in 0..3 {
        let (answer, _) = tokio::join!(at_alice.request(Bytes::new(), PATIENCE), async {
            at_bob.accept_request().await.unwrap().answer.finish();
        });
        answer.unwrap();
    }
    assert_eq!(at_bob.info().remote_address, Some(outer));
    assert_eq!(bob.stats().accepted, 1);
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed_after_the_idle_timeout() {
    let net = net(1, 0.0);
    let (alice, bob) = (host(&net, 1), host(&net, 2));
    let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
    net.lock().unwrap().loss = 1.0;
    let idle = TransportError::Timeout(Duration::from_secs(30));
    assert_eq!((at_alice.closed().await, at_bob.closed().await), (idle.clone(), idle));
    assert_eq!(alice.stats().connections + bob.stats().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_socket_neither_end_the_endpoint_nor_go_uncounted() {
    let net = net(1, 0.0);
    let (alice, bob) = (host(&net, 1), host(&net, 2));
    net.lock().unwrap().failures = 2;
    net.lock().unwrap().inboxes.values_mut().for_each(|inbox| {
        inbox.errors.extend([io::ErrorKind::ConnectionReset, io::ErrorKind::HostUnreachable]);
    });
    connect(&alice, &bob, 2).await.unwrap();
    let (alice, bob) = (alice.quic_stats().socket, bob.quic_stats().socket);
    assert_eq!((alice.send_errors + bob.send_errors, alice.receive_errors + bob.receive_errors), (2, 4));
}
