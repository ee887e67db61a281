//! Drives UPnP: searches the router, asks it by HTTP. Every step has a deadline and a bound; whatever goes wrong is "no".

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::receive;
use crate::limits::ROUTER_ANSWER_MAX_BYTES;
use crate::nat::port_mapping::upnp::{
    self as messages, Action, CONFLICT, ONLY_PERMANENT_LEASES, Resource, SEARCH_ADDRESS, Service,
};
use crate::nat::port_mapping::{LIFETIME, is_global};
use crate::net::{Gateway, HostNetwork};
use crate::transports::stream::TokioStream;

/// How long one search waits for answers, and how often it is repeated: it goes by datagrams.
const SEARCH_ROUND: (Duration, u32) = (Duration::from_millis(700), 3);
/// How long one request may take: routers are slow computers.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Other ports that are tried when another host has the one that we want.
const OTHER_PORTS: usize = 4;
/// Ports that nobody has assigned (RFC 6335, section 6).
const DYNAMIC_PORTS: u16 = 49152;

/// A port that a router maps for us.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    service: Service,
    inside: SocketAddrV4,
    external: SocketAddrV4,
    seconds: u32,
}

impl Lease {
    /// Asks for `port`, or for another one if that is taken. `None` when there is no mapping that helps.
    pub(super) async fn get(network: &dyn HostNetwork, gateway: Gateway, port: u16, random: [u8; 12]) -> Option<Self> {
        let service = find(network, gateway).await?;
        let ip = external_address(network, &service).await.filter(|ip| is_global(*ip))?;
        let inside = SocketAddrV4::new(gateway.interface, port);
        let seconds = u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX);
        let others = random.chunks_exact(2).map(|bytes| DYNAMIC_PORTS | u16::from_be_bytes([bytes[0], bytes[1]]));
        let mut lease = Self { service, inside, external: SocketAddrV4::new(ip, port), seconds };
        for external_port in std::iter::once(port).chain(others.take(OTHER_PORTS)) {
            lease.external.set_port(external_port);
            let mut added = lease.add(network).await?;
            if added == Err(Some(ONLY_PERMANENT_LEASES)) {
                lease.seconds = 0;
                added = lease.add(network).await?;
            }
            match added {
                Ok(()) => return Some(lease),
                Err(Some(CONFLICT)) => {}
                Err(error) => {
                    tracing::debug!(?error, "the router maps no port by UPnP");
                    return None;
                }
            }
        }
        None
    }

    pub(super) fn external(&self) -> SocketAddrV4 {
        self.external
    }

    /// False when the router did not say that it still maps the port.
    pub(super) async fn renew(&self, network: &dyn HostNetwork) -> bool {
        self.add(network).await == Some(Ok(()))
    }

    pub(super) async fn release(&self, network: &dyn HostNetwork) {
        ask(network, &self.service, Action::Delete { external_port: self.external.port() }).await;
    }

    /// `None` when there was no answer; the router's error code, if it told one.
    async fn add(&self, network: &dyn HostNetwork) -> Option<Result<(), Option<u16>>> {
        let action = Action::Add { external_port: self.external.port(), inside: self.inside, lease: self.seconds };
        let (status, body) = ask(network, &self.service, action).await?;
        Some(if status == 200 { Ok(()) } else { Err(messages::error_code(&body)) })
    }
}

/// The router's address outside, if it maps ports by UPnP; `Some(None)` when it does not tell the address.
pub(super) async fn probe(network: &dyn HostNetwork, gateway: Gateway) -> Option<Option<Ipv4Addr>> {
    let service = find(network, gateway).await?;
    Some(external_address(network, &service).await)
}

async fn external_address(network: &dyn HostNetwork, service: &Service) -> Option<Ipv4Addr> {
    let (_, body) = ask(network, service, Action::ExternalAddress).await?;
    messages::external_address(&body)
}

async fn find(network: &dyn HostNetwork, gateway: Gateway) -> Option<Service> {
    let place = search(network, gateway).await?;
    let (status, description) = http(network, place.address, &place.get()).await?;
    (status == 200).then(|| Service::find(&description, &place))?
}

async fn search(network: &dyn HostNetwork, gateway: Gateway) -> Option<Resource> {
    let socket = network.bind_udp((gateway.interface, 0).into()).ok()?;
    let message = messages::search();
    let mut buffer = [0; 1500];
    for _ in 0..SEARCH_ROUND.1 {
        // Routers that do not listen to one of them listen to the other.
        for to in [SEARCH_ADDRESS, SocketAddrV4::new(gateway.router, SEARCH_ADDRESS.port())] {
            let _ = socket.try_send(to.into(), message.as_bytes());
        }
        let end = Instant::now() + SEARCH_ROUND.0;
        while let Ok(received) = timeout(end - Instant::now(), receive(&*socket, &mut buffer)).await {
            let (length, from) = received.ok()?;
            // The router alone: whoever else answers would only make us talk to it.
            let place = messages::location(&buffer[..length], from).filter(|_| from.ip() == gateway.router);
            if place.is_some() {
                return place;
            }
        }
    }
    None
}

async fn ask(network: &dyn HostNetwork, service: &Service, action: Action) -> Option<(u16, String)> {
    http(network, service.control.address, &action.request(service)).await
}

async fn http(network: &dyn HostNetwork, to: SocketAddrV4, request: &str) -> Option<(u16, String)> {
    let exchange = async {
        let mut stream = TokioStream(network.connect_tcp(SocketAddr::from(to)).await.ok()?);
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        loop {
            let room = ROUTER_ANSWER_MAX_BYTES.saturating_sub(answer.len());
            let read = (&mut stream).take(room as u64).read_buf(&mut answer).await.ok()?;
            if let Some((status, body)) = messages::response(&answer, read == 0) {
                return Some((status, String::from_utf8(body).ok()?));
            }
            if read == 0 {
                return None;
            }
        }
    };
    timeout(REQUEST_DEADLINE, exchange).await.ok()?
}
