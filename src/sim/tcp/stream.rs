//! The handles that code under test holds: [`SimStream`] and [`SimListener`], behind the traits of `net`.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::connection::Connection;
use super::{Tcp, TcpId};
use crate::net::{ByteStream, StreamListener};
use crate::sim::hub::{Hub, State};

/// One end of a connection. After its host crashed it neither gets nor says anything.
#[derive(Debug)]
pub(in crate::sim) struct SimStream {
    hub: Arc<Hub>,
    id: TcpId,
}

impl SimStream {
    pub(in crate::sim) fn new(hub: Arc<Hub>, id: TcpId) -> Self {
        Self { hub, id }
    }

    /// Waits for the handshake.
    pub(in crate::sim) async fn connected(&self) -> io::Result<()> {
        poll_fn(|context| {
            self.poll(
                context,
                |connection| &mut connection.writer,
                |_, connection| match connection.is_open() {
                    Ok(false) => None,
                    Ok(true) => Some(Ok(())),
                    Err(kind) => Some(Err(kind)),
                },
            )
        })
        .await
    }

    /// What `attempt` gets, or a promise to wake the task.
    fn poll<T>(
        &self,
        context: &Context<'_>,
        slot: impl FnOnce(&mut Connection) -> &mut Option<Waker>,
        attempt: impl FnOnce(std::time::Duration, &mut Connection) -> Option<Result<T, io::ErrorKind>>,
    ) -> Poll<io::Result<T>> {
        let (result, _replaced) = self.hub.with(|state| {
            let (now, mut replaced) = (state.now, None);
            let result = state.act_on_tcp(|tcp, router| {
                tcp.act(now, router, self.id, |connection| {
                    let result = attempt(now, connection);
                    if result.is_none() {
                        replaced = slot(connection).replace(context.waker().clone());
                    }
                    result
                })
            });
            (result.flatten(), replaced)
        });
        result.map_or(Poll::Pending, |result| Poll::Ready(result.map_err(io::Error::from)))
    }
}

impl ByteStream for SimStream {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll(context, |connection| &mut connection.reader, |_, connection| connection.read(buffer))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(context, |connection| &mut connection.writer, |now, connection| connection.write(now, bytes))
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(
            context,
            |connection| &mut connection.writer,
            |now, connection| match connection.is_open() {
                Ok(_) => {
                    connection.finish(now);
                    Some(Ok(()))
                }
                Err(kind) => Some(Err(kind)),
            },
        )
    }

    fn local_ip(&self) -> Option<IpAddr> {
        self.hub.with(|state| state.act_on_tcp(|tcp, _| tcp.local_ip(self.id)))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let _wakers = self.hub.with(|state| {
            let now = state.now;
            state.act_on_tcp(|tcp, router| {
                tcp.act(now, router, self.id, |connection| {
                    connection.abandon(now);
                    (connection.reader.take(), connection.writer.take())
                })
            })
        });
    }
}

/// Accepts connections.
#[derive(Debug)]
pub(in crate::sim) struct SimListener {
    hub: Arc<Hub>,
    id: TcpId,
    address: SocketAddr,
}

impl SimListener {
    pub(in crate::sim) fn new(hub: Arc<Hub>, id: TcpId, address: SocketAddr) -> Self {
        Self { hub, id, address }
    }
}

impl StreamListener for SimListener {
    fn local_address(&self) -> SocketAddr {
        self.address
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Box<dyn ByteStream>, SocketAddr)>> {
        let accept = |state: &mut State| state.act_on_tcp(|tcp: &mut Tcp, _| tcp.accept(self.id, context.waker()));
        let (accepted, _replaced) = self.hub.with(accept);
        let Some((id, from)) = accepted else { return Poll::Pending };
        let stream: Box<dyn ByteStream> = Box::new(SimStream::new(self.hub.clone(), id));
        Poll::Ready(Ok((stream, from)))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.hub.with(|state| {
            let now = state.now;
            state.act_on_tcp(|tcp, router| tcp.unlisten(now, router, self.id));
        });
    }
}
