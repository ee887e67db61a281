//! From options to a relay that only has to be run: sockets, addresses to tell, keys.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use rustls::ServerConfig;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use super::counters::Counters;
use super::options::{ExternalServer, RelayOptions, TurnMode};
use super::peers::PeerPolicy;
use super::ports::TurnState;
use super::quota::AddressBuckets;
use super::sessions::Rendezvous;
use super::shared::{Sessions, Shared, Streams, now};
use super::streams::TURN_ALPN;
use super::stun::Origins;
use super::turn::auth::Credentials;
use super::turn::{TurnConfig, TurnServer};
use super::{Bound, RelayError};
use crate::limits::{RELAY_DATAGRAM_ADDRESSES, RELAY_SERVERS};
use crate::net::{DatagramSocket, HostNetwork, StreamListener};
use crate::rendezvous::ALPN;
use crate::rendezvous::address::{HostPort, RelayAddress};
use crate::rendezvous::wire::TurnTransport;
use crate::transports::tls::TlsIdentity;

/// A relay that is not running yet.
pub(super) struct Prepared {
    pub(super) shared: Arc<Shared>,
    pub(super) tls: Arc<ServerConfig>,
    pub(super) tls_listener: Box<dyn StreamListener>,
    pub(super) turn_listener: Option<Box<dyn StreamListener>>,
    pub(super) admin_listener: Option<Box<dyn StreamListener>>,
    pub(super) address: RelayAddress,
    pub(super) bound: Bound,
}

pub(super) fn prepare(network: Arc<dyn HostNetwork>, options: RelayOptions) -> Result<Prepared, RelayError> {
    check_turn(&options)?;
    let tls = tls_config(&options)?;
    let tls_listener = listen(&*network, options.listen, "TLS")?;
    let sockets = bind_datagrams(&*network, &options)?;
    let turn_listener = options.turn_tcp.map(|address| listen(&*network, address, "TURN over TCP")).transpose()?;
    let admin_listener = options.admin.map(|address| listen(&*network, address, "HTTP")).transpose()?;
    let bound = Bound {
        tls: tls_listener.local_address(),
        datagrams: sockets[0].local_address(),
        turn_tcp: turn_listener.as_ref().map(|listener| listener.local_address()),
        admin: admin_listener.as_ref().map(|listener| listener.local_address()),
    };
    let server = options.public.clone().unwrap_or_else(|| bound.tls.into());
    let address = RelayAddress { server, key: Some(options.identity.peer_id()) };
    let shared = share(network, options, sockets, &bound);
    Ok(Prepared { shared, tls, tls_listener, turn_listener, admin_listener, address, bound })
}

fn share(
    network: Arc<dyn HostNetwork>,
    options: RelayOptions,
    sockets: Vec<Arc<dyn DatagramSocket>>,
    bound: &Bound,
) -> Arc<Shared> {
    let mut rng = match options.seed {
        Some(seed) => ChaCha20Rng::from_seed(seed),
        None => ChaCha20Rng::from_os_rng(),
    };
    let mut child = || ChaCha20Rng::from_seed(rng.random());
    let (machine_rng, sessions_rng, turn_rng) = (child(), child(), child());
    let mut secret = Zeroizing::new(vec![0; 32]);
    rng.fill_bytes(&mut secret);

    let relay_ips = relay_ips(&*network, &options, bound.datagrams);
    let datagrams = told_addresses(bound.datagrams, &options.public_ips, &relay_ips);
    let own = sockets.iter().map(|socket| socket.local_address().ip());
    let own = own.chain(relay_ips.iter().copied()).chain(options.public_ips.iter().copied());
    let policy = options.policy.clone().with_own(own);
    let (mut turn, mut credentials, mut turn_servers) = (None, None, Vec::new());
    match &options.turn {
        TurnMode::Embedded => {
            turn_servers = embedded_servers(&options, &datagrams, bound, &relay_ips);
            let (limits, policy, public_ips) = (options.limits.clone(), policy.clone(), options.public_ips.clone());
            let config = TurnConfig { limits, policy, relay_ips, public_ips };
            let machine = TurnServer::new(config, &secret, turn_rng, now());
            turn = Some(Mutex::new(TurnState::new(machine, options.turn_ports.clone(), rng)));
            credentials = Some(Credentials::new(&secret));
        }
        TurnMode::External(external) => {
            credentials = Some(Credentials::new(external.secret.as_bytes()));
            turn_servers = external.servers.iter().take(RELAY_SERVERS).cloned().collect();
        }
        TurnMode::Off => {}
    }
    let origins = sockets.iter().map(|socket| socket.local_address());
    let origins = origins.map(|address| told_addresses(address, &options.public_ips, &[])[0]).collect();
    let machine = Rendezvous::new(options.limits.clone(), policy, machine_rng, now());
    Arc::new(Shared {
        network,
        sockets,
        origins: Origins::new(origins),
        sessions: Mutex::new(Sessions::new(machine, sessions_rng)),
        turn,
        streams: Mutex::new(Streams::default()),
        stun_buckets: Mutex::new(AddressBuckets::new(options.limits.stun_per_address)),
        credentials,
        turn_servers,
        stun_servers: options.stun,
        datagrams,
        limits: options.limits,
        counters: Counters::new(),
        clock: options.clock,
        wake: Notify::new(),
        stopping: watch::Sender::new(false),
    })
}

/// What is said of a TURN server that is not here would be without effect.
fn check_turn(options: &RelayOptions) -> Result<(), RelayError> {
    let embedded = matches!(options.turn, TurnMode::Embedded);
    if !embedded && (options.turn_tcp.is_some() || options.turn_ports.is_some()) {
        return Err(RelayError::Options(
            "an address for TURN over TCP and ports for TURN need the embedded TURN server",
        ));
    }
    match &options.turn_ports {
        Some(ports) if ports.is_empty() || *ports.start() == 0 => {
            Err(RelayError::Options("the ports for TURN go from a lower number, at least 1, to a higher one"))
        }
        Some(_) | None => Ok(()),
    }
}

fn tls_config(options: &RelayOptions) -> Result<Arc<ServerConfig>, RelayError> {
    let mut config = TlsIdentity::new(&options.identity)?.server_for_anyone()?;
    config.alpn_protocols = vec![ALPN.to_vec(), TURN_ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn listen(
    network: &dyn HostNetwork,
    address: SocketAddr,
    what: &'static str,
) -> Result<Box<dyn StreamListener>, RelayError> {
    network.listen_tcp(address).map_err(|source| RelayError::Bind { what, address, source })
}

/// One socket, or four: the other port, the other address, both (in the order of `stun::Origins`).
fn bind_datagrams(
    network: &dyn HostNetwork,
    options: &RelayOptions,
) -> Result<Vec<Arc<dyn DatagramSocket>>, RelayError> {
    let first = options.datagrams;
    let mut addresses = vec![first];
    if let Some(other) = options.alternate {
        if first.ip().is_unspecified() || first.port() == 0 || other.ip == first.ip() || other.port == first.port() {
            return Err(RelayError::Options(
                "a second STUN address needs a first with an address and a port, both other than its own",
            ));
        }
        if first.is_ipv4() != other.ip.is_ipv4() || !options.public_ips.is_empty() {
            return Err(RelayError::Options(
                "a second STUN address must be of the family of the first, and both must be public themselves",
            ));
        }
        addresses.push((first.ip(), other.port).into());
        addresses.push((other.ip, first.port()).into());
        addresses.push((other.ip, other.port).into());
    }
    let bind =
        |address| network.bind_udp(address).map_err(|source| RelayError::Bind { what: "datagrams", address, source });
    addresses.into_iter().map(bind).collect()
}

/// How a socket's address is told: the public addresses of its families, else its own. Who reaches a socket of both families
/// by one of them is told of the other as well, as far as this machine has a public address of it.
fn told_addresses(bound: SocketAddr, public: &[IpAddr], relay_ips: &[IpAddr]) -> Vec<SocketAddr> {
    let both_families = bound.is_ipv6() && bound.ip().is_unspecified();
    let policy = PeerPolicy::new();
    let missing = |ip: &&IpAddr| both_families && policy.allows(**ip) && !has_family_of(public, **ip);
    let bound_itself = public.is_empty().then_some(bound.ip());
    let told = bound_itself.iter().chain(public).chain(relay_ips.iter().filter(missing));
    told.map(|ip| SocketAddr::new(*ip, bound.port())).take(RELAY_DATAGRAM_ADDRESSES).collect()
}

fn has_family_of(ips: &[IpAddr], ip: IpAddr) -> bool {
    ips.iter().any(|known| known.is_ipv4() == ip.is_ipv4())
}

fn embedded_servers(
    options: &RelayOptions,
    datagrams: &[SocketAddr],
    bound: &Bound,
    relay_ips: &[IpAddr],
) -> Vec<ExternalServer> {
    let tls = options.public.clone().unwrap_or_else(|| bound.tls.into());
    let udp = datagrams.iter().map(|address| (TurnTransport::Udp, HostPort::from(*address)));
    let tcp = bound.turn_tcp.into_iter().flat_map(|tcp| told_addresses(tcp, &options.public_ips, relay_ips));
    let tcp = tcp.map(|address| (TurnTransport::Tcp, HostPort::from(address)));
    let own = udp.chain(tcp).chain([(TurnTransport::Tls, tls)]);
    own.map(|(transport, server)| ExternalServer::new(transport, server)).take(RELAY_SERVERS).collect()
}

/// Where relayed ports are bound: per family what was asked for, the socket's own address, or the best of an interface.
fn relay_ips(network: &dyn HostNetwork, options: &RelayOptions, datagrams: SocketAddr) -> Vec<IpAddr> {
    if !options.relay_ips.is_empty() {
        return options.relay_ips.clone();
    }
    if !datagrams.ip().is_unspecified() {
        return vec![datagrams.ip()];
    }
    let public = PeerPolicy::new();
    let mut ips = network.interface_addresses();
    // Public before private before loopback; link-local addresses need a scope that nobody can be told.
    ips.retain(|ip| !is_link_local(*ip));
    ips.sort_by_key(|ip| (!public.allows(*ip), ip.is_loopback()));
    let of_family = |v4: bool| ips.iter().copied().find(|ip| ip.is_ipv4() == v4);
    let wanted = if datagrams.is_ipv4() { vec![of_family(true)] } else { vec![of_family(true), of_family(false)] };
    wanted.into_iter().flatten().collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
