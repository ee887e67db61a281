//! The port's byte streams as tokio's, so that TLS and other adapters run over them, and how they are connected.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::{ByteStream, HostNetwork};
use crate::transport::BoxFuture;

/// After how long without an answer another connection is tried beside those under way. Systems repeat a lost SYN after a
/// second, and RFC 8305 starts the next attempt after 250 ms as well, if at another address.
const CONNECT_AGAIN: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(500)];

type Connected = io::Result<Box<dyn ByteStream>>;

/// Connects, at once or as soon as one of up to three attempts gets through; the others are dropped.
///
/// # Errors
/// What the system says of the last attempt. There is no deadline here.
pub(crate) async fn connect(network: &dyn HostNetwork, address: SocketAddr) -> Connected {
    let mut attempts = vec![network.connect_tcp(address)];
    for wait in CONNECT_AGAIN {
        tokio::select! {
            biased;
            connected = first(&mut attempts) => return connected,
            () = tokio::time::sleep(wait) => attempts.push(network.connect_tcp(address)),
        }
    }
    first(&mut attempts).await
}

/// The first that succeeds, or the error of the last one that fails.
async fn first(attempts: &mut Vec<BoxFuture<'static, Connected>>) -> Connected {
    std::future::poll_fn(|context| {
        let mut place = 0;
        while let Some(attempt) = attempts.get_mut(place) {
            match attempt.as_mut().poll(context) {
                Poll::Ready(Err(_)) if attempts.len() > 1 => _ = attempts.remove(place),
                Poll::Ready(connected) => return Poll::Ready(connected),
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
                connect(&client, address).await.unwrap();
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
            let refused = connect(&client, SocketAddr::from(([192, 0, 2, 2], 443))).await;
            (refused.map(|_| ()).unwrap_err().kind(), started.elapsed())
        });
        assert_eq!(error, io::ErrorKind::ConnectionRefused);
        assert!(took < Duration::from_millis(300), "{took:?}");
    }
}
