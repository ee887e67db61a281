//! Asking STUN servers: which of them answer and how fast, how they see us, and what kind of NAT makes them see that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::nat;
use super::options::Step;
use super::relays::{Opened, in_order};
use super::report::{NatFinding, ProbeError, StunFinding};
use super::tools::{Family, Tools, due, now};
use crate::limits::STUN_MAX_SERVERS;
use crate::nat::RetransmitOptions;
use crate::nat::binding::{BindingEvent, BindingMachine, BindingOptions};
use crate::nat::nat_type::NatReport;
use crate::nat::stun::Scanned;
use crate::rendezvous::address::HostPort;

/// How often a server is asked: given up after 3 s.
const TRIES: u32 = 4;

/// What a server said, and how fast.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    round_trip: Duration,
    mapped: SocketAddr,
}

/// What all servers together told.
#[derive(Debug)]
pub(super) struct Behaviour {
    pub(super) nat: Vec<NatFinding>,
    /// The servers that were named or that relays know, in this order.
    pub(super) named: Vec<StunFinding>,
    answers: BTreeMap<SocketAddr, Answer>,
}

impl Behaviour {
    /// What the server at an address said.
    pub(super) fn finding(&self, server: HostPort, address: SocketAddr) -> StunFinding {
        let answer = self.answers.get(&address);
        StunFinding {
            server,
            address: Some(address),
            mapped: answer.map(|answer| answer.mapped),
            round_trip: answer.map(|answer| answer.round_trip).ok_or(ProbeError::NoAnswer),
        }
    }
}

/// Asks the relays' UDP ports and all other servers at once, on each family.
pub(super) async fn examine(tools: &Arc<Tools>, relays: &[Opened], named: &[HostPort]) -> Behaviour {
    let mut servers = named.to_vec();
    let sessions = || relays.iter().filter_map(Opened::info);
    for server in sessions().flat_map(|info| &info.welcome.stun) {
        if !servers.contains(server) && servers.len() < STUN_MAX_SERVERS {
            servers.push(server.clone());
        }
    }
    let resolved = resolve(tools, servers).await;
    let of_names = resolved.iter().filter_map(|(_, addresses)| addresses.as_ref().ok()).flat_map(|all| one_each(all));
    let addresses: BTreeSet<SocketAddr> = sessions().flat_map(|info| info.datagrams()).chain(of_names).collect();
    if !addresses.is_empty() {
        tools.tell(Step::Nat);
    }
    let of = |family| addresses.iter().filter(|address| Family::of(address) == family).copied().collect::<Vec<_>>();
    let (v4, v6) = (of(Family::V4), of(Family::V6));
    let (v4, v6) = tokio::join!(examine_family(tools, Family::V4, &v4), examine_family(tools, Family::V6, &v6));
    let nat = [v4.0, v6.0].into_iter().flatten().collect();
    let answers = v4.1.into_iter().chain(v6.1).collect();
    let mut behaviour = Behaviour { nat, named: Vec::new(), answers };
    for (server, addresses) in resolved {
        match addresses.map(|all| one_each(&all)) {
            Ok(addresses) => {
                let findings = addresses.into_iter().map(|address| behaviour.finding(server.clone(), address));
                let findings: Vec<_> = findings.collect();
                behaviour.named.extend(findings);
            }
            Err(error) => {
                let round_trip = Err(error);
                behaviour.named.push(StunFinding { server, address: None, mapped: None, round_trip });
            }
        }
    }
    behaviour
}

/// Looks all names up at once.
async fn resolve(tools: &Arc<Tools>, servers: Vec<HostPort>) -> Vec<(HostPort, Result<Vec<SocketAddr>, ProbeError>)> {
    let mut tasks = JoinSet::new();
    for (at, server) in servers.into_iter().enumerate() {
        let tools = tools.clone();
        tasks.spawn(async move {
            let addresses = tools.resolve(&server).await;
            (at, (server, addresses))
        });
    }
    in_order(tasks).await
}

/// The first address of each family.
fn one_each(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = |family| addresses.iter().find(|address| Family::of(address) == family).copied();
    [first(Family::V4), first(Family::V6)].into_iter().flatten().collect()
}

async fn examine_family(
    tools: &Tools,
    family: Family,
    servers: &[SocketAddr],
) -> (Option<NatFinding>, BTreeMap<SocketAddr, Answer>) {
    let own = tools.network.interface_addresses();
    let spoken = own.iter().any(|ip| Family::of(&(*ip, 0).into()) == family);
    if servers.is_empty() || !spoken {
        return (None, BTreeMap::new());
    }
    let (report, answers) = tokio::join!(nat::examine(tools, family, servers), ask(tools, family, servers));
    // A socket that cannot be had says nothing about the network.
    let (answers, report) = (answers.unwrap_or_default(), report.ok());
    let finding = |report: NatReport| NatFinding { ipv6: family == Family::V6, report };
    // Most machines have a link-local IPv6 address and no IPv6.
    let real = |finding: &NatFinding| !finding.ipv6 || !finding.report.udp_blocked();
    (report.map(finding).filter(real), answers)
}

/// Asks all of them from one socket, and waits until each has answered or was given up.
async fn ask(tools: &Tools, family: Family, servers: &[SocketAddr]) -> std::io::Result<BTreeMap<SocketAddr, Answer>> {
    let mut socket = tools.bind(family)?;
    let options = BindingOptions::new().with_retransmit(RetransmitOptions::new().with_tries(TRIES));
    let mut machine = BindingMachine::new(options, tools.random());
    let (started, mut answers) = (Instant::now(), BTreeMap::new());
    let mut awaited: BTreeSet<SocketAddr> = BTreeSet::new();
    for server in servers {
        if machine.add_server(now(), *server) {
            awaited.insert(*server);
        }
    }
    while !awaited.is_empty() {
        while let Some(transmit) = machine.poll_transmit() {
            socket.send(transmit.to, &transmit.bytes);
        }
        tokio::select! {
            biased;
            (from, datagram) = socket.receive() => if let Ok(message) = Scanned::scan(datagram) {
                machine.handle_input(now(), from, &message);
            },
            () = due(machine.poll_timeout()) => machine.handle_timeout(now()),
        }
        while let Some(event) = machine.poll_event() {
            match event {
                BindingEvent::Mapped { server, address } | BindingEvent::Changed { server, address, .. } => {
                    awaited.remove(&server);
                    answers.entry(server).or_insert(Answer { round_trip: started.elapsed(), mapped: address });
                }
                BindingEvent::Silent { server } => _ = awaited.remove(&server),
            }
        }
    }
    Ok(answers)
}
