//! The TURN machine's ports and streams: the relayed UDP sockets, and the ways out to clients that came by TCP or TLS.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use tokio::sync::mpsc::Sender;
use tokio::task::AbortHandle;

use super::shared::{Shared, lock, now};
use super::turn::{Action, AllocationId, Client, PortId, Ports, Times, TurnServer, Via};
use crate::limits::{RELAY_DATAGRAM_MAX_BYTES, SOCKET_RECEIVE_ERRORS};
use crate::nat::stun::AddressFamily;
use crate::net::DatagramSocket;

/// Numbers that are tried for one port: others may have them, or they are odd.
const PORT_TRIES: usize = 16;

/// The TURN machine and what it is connected to.
#[derive(Debug)]
pub(super) struct TurnState {
    pub(super) machine: TurnServer,
    ports: HashMap<PortId, RelayedPort>,
    /// The numbers that ports may have. `None`: those that the system hands out.
    range: Option<RangeInclusive<u16>>,
    rng: ChaCha20Rng,
    pub(super) streams: HashMap<u64, Sender<Bytes>>,
}

/// A relayed port; its task ends with it.
#[derive(Debug)]
struct RelayedPort {
    socket: Arc<dyn DatagramSocket>,
    task: AbortHandle,
}

impl Drop for RelayedPort {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TurnState {
    pub(super) fn new(machine: TurnServer, range: Option<RangeInclusive<u16>>, rng: ChaCha20Rng) -> Self {
        Self { machine, ports: HashMap::new(), range, rng, streams: HashMap::new() }
    }

    /// Closes the ports that are free again.
    pub(super) fn free(&mut self) {
        for id in self.machine.take_freed() {
            self.ports.remove(&id);
        }
    }

    /// Closes all ports.
    pub(super) fn close_all(&mut self) {
        self.ports.clear();
        self.streams.clear();
    }
}

/// Binds ports of the machine's network.
struct Binder<'a> {
    shared: &'a Arc<Shared>,
    ports: &'a mut HashMap<PortId, RelayedPort>,
    range: Option<&'a RangeInclusive<u16>>,
    rng: &'a mut ChaCha20Rng,
}

impl Binder<'_> {
    /// Numbers to try on an address.
    fn numbers(&mut self, ip: IpAddr, even: bool) -> Vec<u16> {
        let Some(range) = self.range else { return vec![0; PORT_TRIES] };
        let own = self.ports.values().map(|port| port.socket.local_address());
        let taken = own.filter(|own| own.is_ipv4() == ip.is_ipv4()).map(|own| own.port()).collect();
        free_numbers(range, self.rng.random_range(range.clone()), even, &taken)
    }
}

/// The next numbers of the range from `first` on, and round again, that are not taken.
fn free_numbers(range: &RangeInclusive<u16>, first: u16, even: bool, taken: &HashSet<u16>) -> Vec<u16> {
    let fits = |number: &u16| (!even || number.is_multiple_of(2)) && !taken.contains(number);
    (first..=*range.end()).chain(*range.start()..first).filter(fits).take(PORT_TRIES).collect()
}

impl Ports for Binder<'_> {
    fn bind(&mut self, id: AllocationId, ip: IpAddr, even: bool) -> Option<SocketAddr> {
        let mut error = None;
        let bound = self.numbers(ip, even).into_iter().find_map(|number| {
            let socket =
                self.shared.network.bind_udp(SocketAddr::new(ip, number)).map_err(|why| error = Some(why)).ok()?;
            (!even || socket.local_address().port().is_multiple_of(2)).then_some(socket)
        });
        let Some(socket) = bound else {
            tracing::warn!(?error, "no port for an allocation");
            return None;
        };
        let task = tokio::spawn(receive(self.shared.clone(), id, socket.clone())).abort_handle();
        let address = socket.local_address();
        self.ports.insert((id, AddressFamily::of(&address)), RelayedPort { socket, task });
        Some(address)
    }
}

/// Takes what arrives at a relayed port to its client.
async fn receive(shared: Arc<Shared>, id: AllocationId, socket: Arc<dyn DatagramSocket>) {
    // One byte more than allowed, so that what was cut off is told from what fits.
    let mut buffer = vec![0; RELAY_DATAGRAM_MAX_BYTES + 1];
    let (mut out, mut errors) = (Vec::new(), 0);
    loop {
        match poll_fn(|context| socket.poll_receive(context, &mut buffer)).await {
            Ok((length, from)) if length <= RELAY_DATAGRAM_MAX_BYTES => {
                errors = 0;
                shared.on_peer_datagram(id, from, &buffer[..length], &mut out);
            }
            Ok(_) => shared.counters.turn_dropped.add(1),
            Err(_) if errors < SOCKET_RECEIVE_ERRORS => errors += 1,
            Err(error) => return tracing::warn!(%error, "a relayed port is broken"),
        }
    }
}

impl Shared {
    /// What a TURN client sent.
    pub(super) fn turn_frame(self: &Arc<Self>, client: Client, frame: &[u8], out: &mut Vec<u8>) {
        let Some(turn) = &self.turn else { return self.counters.malformed.add(1) };
        let times = Times { now: now(), wall_us: self.clock.now_us() };
        let mut turn = lock(turn);
        let TurnState { machine, ports, range, rng, streams } = &mut *turn;
        let mut binder = Binder { shared: self, ports, range: range.as_ref(), rng };
        let action = machine.on_frame(client, frame, times, &mut binder, out);
        match action {
            Action::Answer { error } => {
                self.counters.turn_errors.add(error.into());
                self.send_frame(client, out, streams);
                turn.free();
                self.wake.notify_one();
            }
            Action::ToPeer { from, peer, payload } => {
                if let Some(port) = ports.get(&from) {
                    // A full socket loses it, as a network would.
                    let _ = port.socket.try_send(peer, payload);
                    self.count_relayed(payload.len());
                }
            }
            Action::ToClient { client, bytes } => {
                self.send_frame(client, out, streams);
                self.count_relayed(bytes);
            }
            Action::Drop(why) => {
                tracing::trace!(why, "TURN frame dropped");
                self.counters.turn_dropped.add(1);
            }
        }
    }

    fn on_peer_datagram(&self, id: AllocationId, from: SocketAddr, payload: &[u8], out: &mut Vec<u8>) {
        let Some(turn) = &self.turn else { return };
        let mut turn = lock(turn);
        let TurnState { machine, streams, .. } = &mut *turn;
        match machine.on_peer_datagram(id, from, payload, now(), out) {
            Some(client) => {
                self.send_frame(client, out, streams);
                self.count_relayed(payload.len());
            }
            None => self.counters.turn_dropped.add(1),
        }
    }

    /// Sends to a client from outside of the machine's lock.
    pub(super) fn send_to_client(&self, client: Client, frame: &[u8]) {
        if let Some(turn) = &self.turn {
            self.send_frame(client, frame, &lock(turn).streams);
        }
    }

    fn send_frame(&self, client: Client, frame: &[u8], streams: &HashMap<u64, Sender<Bytes>>) {
        match client.via {
            Via::Datagrams(socket) => self.send(socket, client.address, frame),
            Via::Stream(stream) => {
                let full = streams.get(&stream).is_some_and(|to| to.try_send(Bytes::copy_from_slice(frame)).is_err());
                if full {
                    self.counters.turn_dropped.add(1);
                }
            }
        }
    }

    fn count_relayed(&self, bytes: usize) {
        self.counters.turn_relayed.add(1);
        self.counters.turn_relayed_bytes.add(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_free_number_of_a_range_is_found_and_no_other() {
        let taken = HashSet::from([11, 12, 14]);
        assert_eq!(free_numbers(&(10..=15), 13, false, &taken), [13, 15, 10]);
        assert_eq!(free_numbers(&(10..=15), 13, true, &taken), [10]);
        assert_eq!(free_numbers(&(14..=14), 14, false, &taken), [0; 0]);
        let all = 1..=u16::MAX;
        assert_eq!(free_numbers(&all, u16::MAX, false, &taken).len(), PORT_TRIES, "no more are tried");
    }
}
