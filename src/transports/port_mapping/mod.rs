//! Ports that the router lets in: asks for one and keeps it, over any [`HostNetwork`], and finds out what a router speaks.
//!
//! [`Mapper::run`] asks by PCP and NAT-PMP together, which takes one round trip where they are spoken, and by UPnP where they
//! are not. It tells the external address whenever that changes. [`probe`] changes nothing at the router. Whether a port is
//! wanted at all is decided elsewhere ([`router_to_ask`](crate::nat::port_mapping::router_to_ask)).

mod upnp;

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::nat::port_mapping::{
    LIFETIME, PORT, PortMappingMachine, ProbeAnswer, Status, is_global, probes, read_probe,
};
use crate::net::{DatagramSocket, Gateway, HostNetwork};
use upnp::Lease;

/// When a router that gave nothing is asked again: somebody may have allowed it meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// A lease that cannot be renewed is given up when it has less than this left.
const RENEW_MIN: Duration = Duration::from_secs(60);
/// Largest message of PCP (RFC 6887, section 7), in bytes; NAT-PMP's are smaller.
const MESSAGE_MAX_BYTES: usize = 1100;
/// How long a probe waits for answers by PCP and NAT-PMP, and how often it asks meanwhile.
const PROBE_ROUND: (Duration, u32) = (Duration::from_millis(300), 3);

/// One UDP port of this node at one router.
#[derive(Debug)]
pub struct Mapper {
    network: Arc<dyn HostNetwork>,
    gateway: Gateway,
    port: u16,
    nonce: [u8; 12],
    granted: Granted,
}

/// By what the port was asked for last, so that it can be given back.
#[derive(Debug)]
enum Granted {
    Nothing,
    Asked { machine: PortMappingMachine, socket: Arc<dyn DatagramSocket> },
    Leased(Lease),
}

impl Mapper {
    /// For a port that is bound at the gateway's interface. The nonce is random and the same for as long as the port is.
    pub fn new(network: Arc<dyn HostNetwork>, gateway: Gateway, port: u16, nonce: [u8; 12]) -> Self {
        Self { network, gateway, port, nonce, granted: Granted::Nothing }
    }

    /// Gets and keeps the mapping for as long as it is polled; `tell` hears of every change. Dropping it leaves the mapping.
    pub async fn run(&mut self, mut tell: impl FnMut(Option<SocketAddrV4>)) -> ! {
        loop {
            // Without a socket there is still TCP.
            let status = self.by_datagrams(&mut tell).await.unwrap_or(Status::Refused);
            tracing::debug!(?status, "no port of the router by PCP or NAT-PMP");
            if status != Status::DoubleNat {
                self.by_upnp(&mut tell).await;
            }
            self.granted = Granted::Nothing;
            sleep(ASK_AGAIN).await;
        }
    }

    /// Gives the mapping back, best effort.
    pub async fn release(&mut self) {
        match std::mem::replace(&mut self.granted, Granted::Nothing) {
            Granted::Nothing => {}
            Granted::Asked { mut machine, socket } => {
                machine.release();
                flush(&mut machine, &*socket);
            }
            Granted::Leased(lease) => lease.release(&*self.network).await,
        }
    }

    async fn by_datagrams(&mut self, tell: &mut impl FnMut(Option<SocketAddrV4>)) -> io::Result<Status> {
        let socket = self.network.bind_udp((self.gateway.interface, 0).into())?;
        let machine = PortMappingMachine::new(Instant::now().into_std(), self.gateway, self.port, self.nonce);
        self.granted = Granted::Asked { machine, socket: socket.clone() };
        // Kept in `granted`, so that it can be released when this is dropped.
        let Granted::Asked { machine, .. } = &mut self.granted else { return Ok(Status::Refused) };
        let mut told = None;
        let mut buffer = [0; MESSAGE_MAX_BYTES];
        loop {
            flush(machine, &*socket);
            let status = machine.status();
            let external = if let Status::Mapped(external) = status { Some(external) } else { None };
            if told != external {
                told = external;
                tell(external);
            }
            let Some((at, _)) = machine.poll_timeout() else { return Ok(status) };
            tokio::select! {
                biased;
                received = receive(&*socket, &mut buffer) => {
                    let (length, from) = received?;
                    machine.handle_input(Instant::now().into_std(), from, &buffer[..length]);
                }
                () = sleep_until(at.into()) => machine.handle_timeout(Instant::now().into_std()),
            }
        }
    }

    async fn by_upnp(&mut self, tell: &mut impl FnMut(Option<SocketAddrV4>)) {
        let Some(lease) = Lease::get(&*self.network, self.gateway, self.port, self.nonce).await else { return };
        tell(Some(lease.external()));
        self.granted = Granted::Leased(lease.clone());
        let mut left = LIFETIME;
        while left > RENEW_MIN {
            left /= 2;
            sleep(left).await;
            if lease.renew(&*self.network).await {
                left = LIFETIME;
            }
        }
        tell(None);
    }
}

fn flush(machine: &mut PortMappingMachine, socket: &dyn DatagramSocket) {
    while let Some(transmit) = machine.poll_transmit() {
        // What is not sent is asked again.
        let _ = socket.try_send(transmit.to, &transmit.bytes);
    }
}

async fn receive(socket: &dyn DatagramSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    poll_fn(|context| socket.poll_receive(context, buffer)).await
}

/// What the router of this machine's network offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortMappingReport {
    /// The router, if one is known.
    pub gateway: Option<Gateway>,
    /// It maps ports by UPnP.
    pub upnp: bool,
    /// It maps ports by PCP.
    pub pcp: bool,
    /// It maps ports by NAT-PMP.
    pub nat_pmp: bool,
    /// Its address outside, if it told one. A private one means that there is another NAT, and that mappings do not help.
    pub external: Option<Ipv4Addr>,
}

impl PortMappingReport {
    /// True when a port of this router can be reached from the internet.
    pub fn is_useful(&self) -> bool {
        (self.upnp || self.pcp || self.nat_pmp) && self.external.is_none_or(is_global)
    }
}

/// Asks the router what it speaks, in three seconds at most where nobody answers, and maps nothing.
pub async fn probe(network: &dyn HostNetwork) -> PortMappingReport {
    let Some(gateway) = network.gateways().into_iter().next() else { return PortMappingReport::default() };
    let mut report = PortMappingReport { gateway: Some(gateway), ..PortMappingReport::default() };
    // One after the other: both report into the same.
    let _ = probe_datagrams(network, gateway, &mut report).await;
    if let Some(external) = upnp::probe(network, gateway).await {
        report.upnp = true;
        report.external = report.external.or(external);
    }
    report
}

async fn probe_datagrams(
    network: &dyn HostNetwork,
    gateway: Gateway,
    report: &mut PortMappingReport,
) -> io::Result<()> {
    let socket = network.bind_udp((gateway.interface, 0).into())?;
    let router = SocketAddr::from((gateway.router, PORT));
    let mut buffer = [0; MESSAGE_MAX_BYTES];
    for _ in 0..PROBE_ROUND.1 {
        for message in probes(gateway) {
            let _ = socket.try_send(router, &message);
        }
        let end = Instant::now() + PROBE_ROUND.0;
        while let Ok(received) = timeout(end - Instant::now(), receive(&*socket, &mut buffer)).await {
            let (length, from) = received?;
            match read_probe(&buffer[..length]).filter(|_| from == router) {
                Some(ProbeAnswer::Pcp) => report.pcp = true,
                Some(ProbeAnswer::NatPmp(external)) => {
                    report.nat_pmp = true;
                    report.external = external.or(report.external);
                }
                None => {}
            }
            if report.pcp && report.external.is_some() {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[cfg(feature = "sim")]
mod tests;
