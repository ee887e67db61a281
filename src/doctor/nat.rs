//! The driver of the NAT tests: two fresh sockets for one [`NatTypeMachine`].

use std::net::SocketAddr;

use super::tools::{Family, Tools, due, now};
use crate::nat::nat_type::{NatReport, NatTypeMachine, NatTypeOptions, Probe};
use crate::nat::stun::Scanned;

/// What kind of NAT there is between us and these servers, which are of one family. Takes 3 s at most.
pub(super) async fn examine(tools: &Tools, family: Family, servers: &[SocketAddr]) -> std::io::Result<NatReport> {
    let (mut mapping, mut filtering) = (tools.bind(family)?, tools.bind(family)?);
    let options = NatTypeOptions::new(tools.network.interface_addresses());
    let ports = (mapping.port(), filtering.port());
    let mut machine = NatTypeMachine::start(now(), options, ports, servers, tools.random());
    loop {
        while let Some((probe, transmit)) = machine.poll_transmit() {
            let socket = match probe {
                Probe::Mapping => &mapping,
                Probe::Filtering => &filtering,
            };
            socket.send(transmit.to, &transmit.bytes);
        }
        if let Some(report) = machine.report() {
            return Ok(*report);
        }
        let ((from, datagram), probe) = tokio::select! {
            biased;
            received = mapping.receive() => (received, Probe::Mapping),
            received = filtering.receive() => (received, Probe::Filtering),
            () = due(machine.poll_timeout()) => {
                machine.handle_timeout(now());
                continue;
            }
        };
        if let Ok(message) = Scanned::scan(datagram) {
            machine.handle_input(now(), probe, from, &message);
        }
    }
}
