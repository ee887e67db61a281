//! The operating system's network behind the port in [`crate::net`], on tokio.
//!
//! Everything here must be called within a tokio runtime with I/O. Sockets on the unspecified IPv6 address take IPv4 too;
//! addresses go in and come out as IPv4 where they are IPv4, however the system spells them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use if_addrs::IfAddr;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::mdns::MdnsBoard;
use crate::limits::RESOLVED_ADDRESSES;
use crate::net::{ByteStream, DatagramSocket, Gateway, HostNetwork, LanBoard, StreamListener};
use crate::transport::BoxFuture;

/// What the system is asked to buffer per UDP socket and direction: 10 ms at 3 Gbit/s.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Connections that the system completes before we take them. More: it refuses or drops them.
const LISTEN_BACKLOG: i32 = 1024;

/// The network of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsNetwork;

impl HostNetwork for OsNetwork {
    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        let socket = open(address, Type::DGRAM, Protocol::UDP)?;
        // Best effort: without them bursts are lost earlier.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        socket.bind(&address.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let local = socket.local_addr()?;
        Ok(Arc::new(OsDatagrams { socket, local }))
    }

    fn listen_tcp(&self, address: SocketAddr) -> io::Result<Box<dyn StreamListener>> {
        let socket = open(address, Type::STREAM, Protocol::TCP)?;
        // On Unix: connections of the process before, which are timing out, do not hold the port. On Windows it would
        // let others take the port while it is in use.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        let local = listener.local_addr()?;
        Ok(Box::new(OsListener { listener, local }))
    }

    fn connect_tcp(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(OsStream(stream)) as Box<dyn ByteStream>)
        })
    }

    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.take(RESOLVED_ADDRESSES).collect()) })
    }

    fn interface_addresses(&self) -> Vec<IpAddr> {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        interfaces.into_iter().filter(if_addrs::Interface::is_oper_up).map(|interface| interface.ip()).collect()
    }

    fn gateways(&self) -> Vec<Gateway> {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        let networks: Vec<_> = interfaces
            .into_iter()
            .filter(if_addrs::Interface::is_oper_up)
            .filter_map(|interface| match interface.addr {
                IfAddr::V4(address) => Some((address.ip, address.netmask)),
                IfAddr::V6(_) => None,
            })
            .collect();
        // Linux's table. Elsewhere, and where it may not be read, home routers have the first address of their network.
        let told = std::fs::read_to_string("/proc/net/route").ok().map(|table| default_routers(&table));
        match told {
            Some(routers) => routers.into_iter().filter_map(|router| gateway(&networks, router)).collect(),
            None => networks.iter().filter_map(|network| first_address(*network)).collect(),
        }
    }

    fn lan_board(&self) -> io::Result<Box<dyn LanBoard>> {
        Ok(Box::new(MdnsBoard::open()))
    }
}

/// The routers of the default routes in the text of `/proc/net/route`, the lowest metric first.
fn default_routers(table: &str) -> Vec<Ipv4Addr> {
    let mut routers: Vec<(u32, Ipv4Addr)> = table
        .lines()
        .filter_map(|line| {
            // Interface, destination, router, flags, two counters, metric, mask. Addresses are in the machine's byte order.
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, "00000000", router, _, _, _, metric, "00000000", ..] = fields[..] else { return None };
            let router = Ipv4Addr::from(u32::from_str_radix(router, 16).ok()?.to_ne_bytes());
            Some((metric.parse().ok()?, router))
        })
        .filter(|(_, router)| !router.is_unspecified())
        .collect();
    routers.sort();
    routers.into_iter().map(|(_, router)| router).collect()
}

/// The router with the address that we have in its network.
fn gateway(networks: &[(Ipv4Addr, Ipv4Addr)], router: Ipv4Addr) -> Option<Gateway> {
    let beside =
        |(ip, mask): &&(Ipv4Addr, Ipv4Addr)| ip.to_bits() & mask.to_bits() == router.to_bits() & mask.to_bits();
    networks.iter().find(beside).map(|(interface, _)| Gateway { router, interface: *interface })
}

fn first_address((interface, mask): (Ipv4Addr, Ipv4Addr)) -> Option<Gateway> {
    let router = Ipv4Addr::from_bits((interface.to_bits() & mask.to_bits()) + 1);
    (interface.is_private() && router != interface).then_some(Gateway { router, interface })
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[derive(Debug)]
struct OsDatagrams {
    socket: UdpSocket,
    local: SocketAddr,
}

impl DatagramSocket for OsDatagrams {
    fn local_address(&self) -> SocketAddr {
        self.local
    }

    fn try_send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let to = match (self.local, to) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            (_, to) => to,
        };
        // Past tokio, which believes a socket to be full until it has heard otherwise from the system.
        SockRef::from(&self.socket).send_to(datagram, &to.into()).map(|_| ())
    }

    fn poll_receive(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        loop {
            let mut buffer = ReadBuf::new(buffer);
            match ready!(self.socket.poll_recv_from(context, &mut buffer)) {
                Ok(from) => return Poll::Ready(Ok((buffer.filled().len(), canonical(from)))),
                // An earlier datagram reached nobody, which some systems tell here.
                Err(error) if is_about_another(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn is_about_another(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionReset | ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

#[derive(Debug)]
struct OsListener {
    listener: TcpListener,
    local: SocketAddr,
}

impl StreamListener for OsListener {
    fn local_address(&self) -> SocketAddr {
        self.local
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Box<dyn ByteStream>, SocketAddr)>> {
        let (stream, from) = ready!(self.listener.poll_accept(context))?;
        stream.set_nodelay(true)?;
        Poll::Ready(Ok((Box::new(OsStream(stream)), canonical(from))))
    }
}

#[derive(Debug)]
struct OsStream(TcpStream);

impl ByteStream for OsStream {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(std::pin::Pin::new(&mut self.0).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn local_ip(&self) -> Option<IpAddr> {
        self.0.local_addr().ok().map(|address| address.ip().to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::transports::stream::TokioStream;

    const ANY: [&str; 2] = ["127.0.0.1:0", "[::]:0"];

    #[tokio::test]
    async fn datagrams_pass_between_sockets_of_one_and_of_both_families() {
        for (left, right) in ANY.into_iter().flat_map(|left| ANY.map(|right| (left, right))) {
            let Ok(left) = OsNetwork.bind_udp(left.parse().unwrap()) else { continue };
            let Ok(right) = OsNetwork.bind_udp(right.parse().unwrap()) else { continue };
            // At once: nothing waits until the runtime has heard of the socket.
            left.try_send(([127, 0, 0, 1], right.local_address().port()).into(), b"hello").unwrap();
            let mut buffer = [0; 3];
            let (length, from) = poll_fn(|context| right.poll_receive(context, &mut buffer)).await.unwrap();
            assert_eq!((&buffer[..length], from), (&b"hel"[..], ([127, 0, 0, 1], left.local_address().port()).into()));
        }
    }

    #[tokio::test]
    async fn a_datagram_to_nobody_does_not_end_the_socket() {
        let socket = OsNetwork.bind_udp(ANY[0].parse().unwrap()).unwrap();
        let gone = OsNetwork.bind_udp(ANY[0].parse().unwrap()).unwrap().local_address();
        let _ = socket.try_send(gone, b"anybody?");
        socket.try_send(socket.local_address(), b"me").unwrap();
        let mut buffer = [0; 9];
        let received = poll_fn(|context| socket.poll_receive(context, &mut buffer)).await.unwrap();
        assert_eq!(received, (2, socket.local_address()));
    }

    #[tokio::test]
    async fn a_stream_carries_bytes_both_ways_and_says_its_end() {
        let mut listener = OsNetwork.listen_tcp(ANY[0].parse().unwrap()).unwrap();
        let connecting = OsNetwork.connect_tcp(listener.local_address());
        let (client, server) = tokio::join!(connecting, poll_fn(|context| listener.poll_accept(context)));
        let (mut client, mut server) = (TokioStream(client.unwrap()), TokioStream(server.unwrap().0));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    }

    #[tokio::test]
    async fn addresses_resolve_to_themselves_and_loopback_is_an_interface() {
        let resolved = OsNetwork.resolve("192.0.2.1", 443).await.unwrap();
        assert_eq!(resolved, ["192.0.2.1:443".parse().unwrap()]);
        assert!(OsNetwork.interface_addresses().iter().any(IpAddr::is_loopback));
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_leads_to_the_router() {
        let word = |octets: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(octets));
        let line = |name: &str, to: [u8; 4], router: [u8; 4], metric: u32, mask: [u8; 4]| {
            let [to, router, mask] = [to, router, mask].map(word);
            format!("{name}\t{to}\t{router}\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let table = [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n".to_owned(),
            line("wlan0", [0; 4], [10, 0, 0, 1], 600, [0; 4]),
            line("eth0", [0; 4], [192, 168, 7, 1], 100, [0; 4]),
            line("tun0", [0; 4], [0; 4], 50, [0; 4]),
            line("eth0", [192, 168, 7, 0], [0; 4], 100, [255, 255, 255, 0]),
        ]
        .concat();
        let routers = default_routers(&table);
        assert_eq!(routers, [Ipv4Addr::new(192, 168, 7, 1), Ipv4Addr::new(10, 0, 0, 1)]);
        let networks = [([10, 9, 0, 5], [255, 255, 0, 0]), ([192, 168, 7, 9], [255, 255, 255, 0])];
        let networks = networks.map(|(ip, mask)| (Ipv4Addr::from(ip), Ipv4Addr::from(mask)));
        let found: Vec<_> = routers.iter().filter_map(|router| gateway(&networks, *router)).collect();
        assert_eq!(found, [Gateway { router: [192, 168, 7, 1].into(), interface: [192, 168, 7, 9].into() }]);
        assert_eq!(first_address(networks[1]), Some(found[0]));
        assert_eq!(first_address(([198, 51, 100, 7].into(), [255, 255, 255, 0].into())), None);
    }
}
