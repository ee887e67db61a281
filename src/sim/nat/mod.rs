//! A NAT box, pure: rewrites what passes it. Where it stands and which links lead to it is the topology's matter.

mod mapping;
mod options;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::mapping::MappingTable;
pub use self::options::{Behaviour, NatOptions, PortAllocation};
use super::packet::Packet;
use super::trace::Fate;

/// One NAT with its public address and its mappings.
#[derive(Debug)]
pub(super) struct NatBox {
    pub(super) ip: IpAddr,
    pub(super) options: NatOptions,
    table: MappingTable,
    rng: ChaCha8Rng,
}

impl NatBox {
    /// The NAT with this number in a network with this seed. Each draws its ports from a stream of its own, so that one
    /// more NAT changes nothing for the others.
    pub(super) fn new(ip: IpAddr, options: NatOptions, seed: u64, number: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number + 1);
        Self { ip, options, table: MappingTable::new(), rng }
    }

    /// Forgets all mappings, as after a power cut.
    pub(super) fn reboot(&mut self) {
        self.table = MappingTable::new();
    }

    /// Mappings that live.
    pub(super) fn mappings(&self, now: Duration) -> usize {
        self.table.len(now)
    }

    /// Puts the public address on a packet from inside. Makes a mapping if there is none.
    pub(super) fn outbound(&mut self, now: Duration, packet: &mut Packet) -> Result<(), Fate> {
        if packet.to.is_ipv4() != self.ip.is_ipv4() {
            return Err(Fate::Unroutable);
        }
        let inside = (packet.protocol(), packet.from, packet.to);
        let port = self.table.outbound(&self.options, &mut self.rng, now, inside).ok_or(Fate::NatFull)?;
        packet.from = SocketAddr::new(self.ip, port);
        Ok(())
    }

    /// Puts the inside address on a packet to the public one, if a mapping is there and lets the sender pass.
    pub(super) fn inbound(&mut self, now: Duration, packet: &mut Packet) -> Result<(), Fate> {
        let remote = (packet.protocol(), packet.from);
        packet.to = self.table.inbound(&self.options, now, remote, packet.to.port()).ok_or(Fate::Filtered)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
