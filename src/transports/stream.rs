//! The port's byte streams as tokio's, so that TLS and other adapters run over them, and how they are connected.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::{ByteStream, HostNetwork};
use crate::transport::BoxFuture;

/// After how long without an answer the next address is tried beside those before (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// When there is none left: after how long all are tried once more. Systems repeat a lost SYN after a second.
const CONNECT_AGAIN: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(500)];

type Connected = io::Result<Box<dyn ByteStream>>;

/// Connections under way, and where to.
type Attempts = Vec<(SocketAddr, BoxFuture<'static, Connected>)>;

/// Connects to one of these addresses and shakes hands there, which gets a share of the deadline; an address where that
/// fails is left for the others.
///
/// # Errors
/// That of the last handshake; without any, what the system says of the last address. The deadline is the caller's to keep.
pub(crate) async fn connect_with<T, E, Shaken>(
    network: &dyn HostNetwork,
    mut addresses: Vec<SocketAddr>,
    deadline: Duration,
    mut shake_hands: impl FnMut(Box<dyn ByteStream>, Duration) -> Shaken,
) -> Result<(T, SocketAddr), E>
where
    E: From<io::Error>,
    Shaken: Future<Output = Result<T, E>>,
{
    let mut failed = None;
    loop {
        let (stream, address) = match connect(network, &addresses).await {
            Ok(connected) => connected,
            Err(error) => return Err(failed.unwrap_or_else(|| error.into())),
        };
        let share = deadline / u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        match shake_hands(stream, share).await {
            Ok(shaken) => return Ok((shaken, address)),
            Err(error) => failed = Some(error),
        }
        addresses.retain(|other| *other != address);
    }
}

/// Connects to whichever address answers first; the others are dropped. They are tried one after the other, the families in
/// turn, the next one when there is no answer for a moment or as soon as all before have failed.
///
/// # Errors
/// What the system says of the last address that fails; `NotFound` when there is none. There is no deadline here.
async fn connect(network: &dyn HostNetwork, addresses: &[SocketAddr]) -> io::Result<(Box<dyn ByteStream>, SocketAddr)> {
    let (mut left, mut again) = (in_turn(addresses).into_iter(), CONNECT_AGAIN.into_iter());
    let mut attempts = Attempts::new();
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    loop {
        let wait = match left.next() {
            Some(address) => {
                attempts.push((address, network.connect_tcp(address)));
                if left.len() > 0 { Some(NEXT_ADDRESS) } else { again.next() }
            }
            None => {
                let silent: BTreeSet<_> = attempts.iter().map(|(address, _)| *address).collect();
                attempts.extend(silent.into_iter().map(|address| (address, network.connect_tcp(address))));
                again.next()
            }
        };
        if attempts.is_empty() {
            return Err(failed);
        }
        tokio::select! {
            biased;
            answered = first(&mut attempts) => match answered {
                Ok(connected) => return Ok(connected),
                Err(error) => failed = error,
            },
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

/// The families in turn (RFC 8305, section 4), each in its order, and each address once.
fn in_turn(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let of = |family: bool| addresses.iter().filter(move |address| address.is_ipv4() == family);
    let mut ranked: Vec<_> = of(first).enumerate().chain(of(!first).enumerate()).collect();
    ranked.sort_by_key(|(place, _)| *place);
    let mut seen = BTreeSet::new();
    ranked.into_iter().map(|(_, address)| *address).filter(|address| seen.insert(*address)).collect()
}

/// The first that succeeds, or the error of the last one when all have failed.
async fn first(attempts: &mut Attempts) -> io::Result<(Box<dyn ByteStream>, SocketAddr)> {
    std::future::poll_fn(|context| {
        let mut place = 0;
        while let Some((address, attempt)) = attempts.get_mut(place) {
            let address = *address;
            match attempt.as_mut().poll(context) {
                Poll::Ready(Ok(stream)) => return Poll::Ready(Ok((stream, address))),
                Poll::Ready(Err(error)) => {
                    drop(attempts.remove(place));
                    if attempts.is_empty() {
                        return Poll::Ready(Err(error));
                    }
                }
                Poll::Pending => place += 1,
            }
        }
        Poll::Pending
    })
    .await
}

/// A [`ByteStream`] that tokio's tools take.
#[derive(Debug)]
pub struct TokioStream(pub Box<dyn ByteStream>);

impl AsyncRead for TokioStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.0.poll_read(context, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TokioStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(context, bytes)
    }

    /// Streams of the port hold nothing back.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_finish(context)
    }
}

#[cfg(test)]
#[cfg(feature = "sim")]
mod tests {
    use super::*;
    use crate::sim::{self, LinkOptions, SimNetwork};

    /// How long connecting takes when this share of segments is lost, by seed.
    fn times(loss: f64) -> Vec<Duration> {
        let connects = |seed| {
            sim::run(seed, move |sim| async move {
                let link = LinkOptions::new().with_latency(Duration::from_millis(50)).with_loss(loss);
                let network = SimNetwork::new(sim.options().with_default_link(link));
                let (client, server) = (network.host([192, 0, 2, 1].into()), network.host([192, 0, 2, 2].into()));
                let address = SocketAddr::from(([192, 0, 2, 2], 443));
                let _listener = server.listen_tcp(address).unwrap();
                let started = tokio::time::Instant::now();
                connect(&client, &[address]).await.unwrap();
                started.elapsed()
            })
        };
        (0..100).map(connects).collect()
    }

    #[test]
    fn a_lost_greeting_costs_less_than_the_second_that_systems_wait() {
        assert!(times(0.0).iter().all(|time| *time <= Duration::from_millis(101)));
        let lossy = times(0.2);
        let late = lossy.iter().filter(|time| **time > Duration::from_millis(401)).count();
        let lost = lossy.iter().filter(|time| **time > Duration::from_millis(101)).count();
        // One greeting in three gets no answer: 36 % of the first ones, 13 % of the first two.
        assert!((20..50).contains(&lost), "{lost} of 100 lost the first greeting");
        assert!(late < 25, "{late} of 100 took longer than one more greeting");
    }

    #[test]
    fn who_refuses_is_believed_at_once() {
        let (error, took) = sim::run(1, |sim| async move {
            let network = SimNetwork::new(sim.options());
            let (client, _server) = (network.host([192, 0, 2, 1].into()), network.host([192, 0, 2, 2].into()));
            let started = tokio::time::Instant::now();
            let refused = connect(&client, &[SocketAddr::from(([192, 0, 2, 2], 443))]).await;
            (refused.map(|_| ()).unwrap_err().kind(), started.elapsed())
        });
        assert_eq!(error, io::ErrorKind::ConnectionRefused);
        assert!(took < Duration::from_millis(300), "{took:?}");
    }

    fn at(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), 443)
    }

    #[test]
    fn the_families_are_tried_in_turn_and_each_address_once() {
        let [four, five, six, seven] = ["192.0.2.4", "192.0.2.5", "2001:db8::6", "2001:db8::7"].map(at);
        assert_eq!(in_turn(&[six, seven, six, four, five]), [six, four, seven, five]);
        assert_eq!(in_turn(&[four, five, four]), [four, five]);
        assert!(in_turn(&[]).is_empty());
    }

    /// Where a client with both families ends that is told of these addresses, when nothing gets through by IPv6 and
    /// somebody listens at 192.0.2.2 only; and after which time.
    fn connected(addresses: &[&str]) -> (io::Result<SocketAddr>, Duration) {
        let addresses: Vec<_> = addresses.iter().map(|ip| at(ip)).collect();
        sim::run(1, |sim| async move {
            let link = LinkOptions::new().with_latency(Duration::from_millis(50));
            let network = SimNetwork::new(sim.options().with_default_link(link));
            let (client, server) = (network.host(at("192.0.2.1").ip()), network.host(at("192.0.2.2").ip()));
            let (six_here, six_there) = (at("2001:db8::1").ip(), at("2001:db8::2").ip());
            client.add_address(&network.internet(), six_here).unwrap();
            server.add_address(&network.internet(), six_there).unwrap();
            network.partition(&[six_here], &[six_there]);
            let _idle = network.host(at("192.0.2.3").ip());
            let _listener = server.listen_tcp(at("192.0.2.2")).unwrap();
            let started = tokio::time::Instant::now();
            let connected = tokio::time::timeout(Duration::from_secs(5), connect(&client, &addresses)).await;
            let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            (connected.map(|(_, address)| address), started.elapsed())
        })
    }

    #[test]
    fn an_address_that_swallows_everything_costs_a_quarter_of_a_second() {
        let (connected, took) = connected(&["2001:db8::2", "192.0.2.2"]);
        assert_eq!(connected.unwrap(), at("192.0.2.2"));
        assert!(took <= Duration::from_millis(351), "{took:?}");
    }

    #[test]
    fn a_refused_address_costs_its_round_trip_and_the_last_one_that_fails_is_told() {
        let (both, took) = connected(&["192.0.2.3", "192.0.2.2"]);
        assert_eq!(both.unwrap(), at("192.0.2.2"));
        assert!(took <= Duration::from_millis(201), "{took:?}");
        let (refused, took) = connected(&["192.0.2.3", "192.0.2.3"]);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(took <= Duration::from_millis(101), "{took:?}");
        let (silent, _) = connected(&["2001:db8::2", "192.0.2.3"]);
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut, "the silent one may still answer");
        assert_eq!(connected(&[]).0.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn where_the_handshake_fails_the_next_address_is_tried_and_its_error_outlives_them_all() {
        sim::run(1, |sim| async move {
            let network = SimNetwork::new(sim.options());
            let client = network.host(at("192.0.2.1").ip());
            let servers = ["192.0.2.2", "192.0.2.3"].map(|ip| network.host(at(ip).ip()));
            let _listeners = servers.each_ref().map(|host| host.listen_tcp(SocketAddr::new(host.ip(), 443)).unwrap());
            let addresses = vec![at("192.0.2.2"), at("192.0.2.3"), at("192.0.2.4")];
            let shake = async |fails: usize| {
                let mut shaken = 0;
                let deadline = Duration::from_secs(9);
                let done = connect_with(&client, addresses.clone(), deadline, |_stream, share| {
                    shaken += 1;
                    assert_eq!(share, deadline / (4 - shaken));
                    std::future::ready(if shaken as usize > fails {
                        Ok(())
                    } else {
                        Err(io::ErrorKind::InvalidData.into())
                    })
                });
                done.await.map(|((), address)| address).map_err(|error: io::Error| error.kind())
            };
            assert_eq!(shake(0).await, Ok(at("192.0.2.2")));
            assert_eq!(shake(1).await, Ok(at("192.0.2.3")));
            assert_eq!(shake(2).await, Err(io::ErrorKind::InvalidData));
        });
    }
}
