//! The requests of a TURN client, each authenticated before it is looked into (RFC 8489, section 9.2.4).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::allocation::{Allocation, Refused};
use super::auth::REALM;
use super::{Action, AllocationId, Client, Ports, Times, TurnServer};
use crate::limits::{TURN_LIFETIME, TURN_LIFETIME_MAX};
use crate::nat::stun::{
    AddressFamily, Attribute, ErrorCode, HEADER_BYTES, IntegrityKey, Message, Method, Response, Scanned,
};
use crate::relay::quota::Bucket;

/// RFC 8656, section 18.8: the one transport that is relayed.
const UDP: u8 = 17;

/// RFC 8656, section 18.7. The codec does not know it.
const EVEN_PORT: u16 = 0x0018;

/// What EVEN-PORT asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EvenPort {
    Alone,
    AndReserveTheNext,
}

/// An authenticated request.
#[derive(Clone, Copy)]
struct Asked<'a> {
    client: Client,
    request: &'a Scanned<'a>,
    message: &'a Message,
    user: &'a User,
    even_port: Option<EvenPort>,
}

/// Who signed a request.
struct User {
    name: String,
    username: String,
    key: IntegrityKey,
}

impl TurnServer {
    pub(super) fn on_request<'a>(
        &mut self,
        client: Client,
        frame: &[u8],
        request: &Scanned<'_>,
        times: Times,
        ports: &mut dyn Ports,
        out: &mut Vec<u8>,
    ) -> Action<'a> {
        let Ok(message) = request.decode() else {
            return answer(Err(Response::error(request, ErrorCode::BadRequest)), None, out);
        };
        let user = match self.authenticate(client, request, &message, times) {
            Ok(user) => user,
            Err(refusal) => return answer(Err(refusal), None, out),
        };
        let unknown = message.unknown_attributes().iter().copied().filter(|kind| *kind != EVEN_PORT);
        let unknown = unknown.collect::<Vec<_>>();
        let result = if unknown.is_empty() {
            let error = |code| Response::error(request, code);
            let asked = Asked { client, request, message: &message, user: &user, even_port: even_port(frame) };
            self.perform(&asked, times.now, ports).map_err(error)
        } else {
            Err(Response::unknown_attributes(request, &unknown))
        };
        answer(result, Some(&user.key), out)
    }

    fn authenticate(
        &self,
        client: Client,
        request: &Scanned<'_>,
        message: &Message,
        times: Times,
    ) -> Result<User, Response> {
        let challenge = |code| {
            let nonce = Attribute::Nonce(self.nonces.issue(client, times.now));
            Response::error(request, code).with(Attribute::Realm(REALM.into())).with(nonce)
        };
        if !request.is_signed() {
            return Err(challenge(ErrorCode::Unauthorized));
        }
        let (Some(username), Some(_), Some(nonce)) = (message.username(), message.realm(), message.nonce()) else {
            return Err(Response::error(request, ErrorCode::BadRequest));
        };
        if !self.nonces.check(client, nonce, times.now) {
            return Err(challenge(ErrorCode::StaleNonce));
        }
        // An allocation outlives the credentials that made it, and takes no others.
        let own = self.clients.get(&client).and_then(|id| self.allocations.get(id));
        let (name, key) = match own {
            Some(own) if own.username == username => (own.name.clone(), own.key.clone()),
            _ => match self.credentials.key_of(username, times.wall_us) {
                Some((key, name)) => (name.to_owned(), key),
                None => return Err(challenge(ErrorCode::Unauthorized)),
            },
        };
        if request.check_integrity(&key).is_err() {
            return Err(challenge(ErrorCode::Unauthorized));
        }
        Ok(User { name, username: username.to_owned(), key })
    }

    fn perform(&mut self, asked: &Asked<'_>, now: Instant, ports: &mut dyn Ports) -> Result<Response, ErrorCode> {
        let own = self.clients.get(&asked.client).copied();
        if let Some(own) = own.and_then(|id| self.allocations.get(&id))
            && own.name != asked.user.name
        {
            return Err(ErrorCode::WrongCredentials);
        }
        let (request, message) = (asked.request, asked.message);
        let mismatch = || own.ok_or(ErrorCode::AllocationMismatch);
        match request.method() {
            Method::Allocate => self.allocate(asked, now, ports),
            Method::Refresh => self.refresh(mismatch()?, request, message, now),
            Method::CreatePermission => self.permit(mismatch()?, request, message, now),
            Method::ChannelBind => self.bind_channel(mismatch()?, request, message, now),
            Method::Binding | Method::Send | Method::Data => Err(ErrorCode::BadRequest),
        }
    }

    fn allocate(&mut self, asked: &Asked<'_>, now: Instant, ports: &mut dyn Ports) -> Result<Response, ErrorCode> {
        let Asked { client, request, message, user, even_port } = *asked;
        let lifetime = lifetime(message);
        if let Some(own) = self.clients.get(&client).and_then(|id| self.allocations.get(id)) {
            let repeated = own.transaction == request.transaction_id();
            return if repeated { Ok(allocated(request, own, now)) } else { Err(ErrorCode::AllocationMismatch) };
        }
        match message.requested_transport() {
            Some(UDP) => {}
            Some(_) => return Err(ErrorCode::UnsupportedTransport),
            None => return Err(ErrorCode::BadRequest),
        }
        let families = families(message)?;
        let supported = |family: &AddressFamily| of_family(&self.config.relay_ips, *family).is_some();
        if !families.iter().any(supported) {
            return Err(ErrorCode::AddressFamilyNotSupported);
        }
        let limits = &self.config.limits;
        let ip = client.address.ip();
        // A name is made up per session: who has many sessions has many names, but not many addresses.
        if self.by_name.of(&user.name) >= limits.allocations_per_user
            || !self.by_network.has_room(ip, limits.allocations_per_address)
        {
            return Err(ErrorCode::AllocationQuotaReached);
        }
        let reserve = even_port == Some(EvenPort::AndReserveTheNext);
        if reserve || self.allocations.len() >= limits.allocations {
            return Err(ErrorCode::InsufficientCapacity);
        }
        let id = AllocationId(self.next_allocation);
        self.next_allocation += 1;
        let (mut relayed, mut refused) = (Vec::new(), None);
        for family in families {
            match self.bind(id, family, even_port.is_some(), ports) {
                Ok(address) => relayed.push(address),
                Err(code) => refused = Some((family, code)),
            }
        }
        if relayed.is_empty() {
            return Err(ErrorCode::InsufficientCapacity);
        }

        let until = now + lifetime;
        let owner = (user.name.clone(), user.username.clone(), user.key.clone());
        let bytes = Bucket::new(self.config.limits.bytes_per_client, now);
        let granted = (relayed, refused);
        let allocation = Allocation::new(client, owner, request.transaction_id(), granted, until, bytes);
        let response = allocated(request, &allocation, now);
        self.clients.insert(client, id);
        self.by_relayed.extend(allocation.relayed.iter().map(|relayed| (*relayed, id)));
        self.by_name.add(user.name.clone());
        self.by_network.add(ip);
        self.allocations.insert(id, allocation);
        self.next_check = Some(self.next_check.map_or(until, |check| check.min(until)));
        Ok(response)
    }

    /// A port of this family, and how it is called outside.
    fn bind(
        &self,
        id: AllocationId,
        family: AddressFamily,
        even: bool,
        ports: &mut dyn Ports,
    ) -> Result<SocketAddr, ErrorCode> {
        let ip = of_family(&self.config.relay_ips, family).ok_or(ErrorCode::AddressFamilyNotSupported)?;
        let bound = ports.bind(id, ip, even).ok_or(ErrorCode::InsufficientCapacity)?;
        let public = of_family(&self.config.public_ips, family).unwrap_or(bound.ip());
        Ok(SocketAddr::new(public, bound.port()))
    }

    fn refresh(
        &mut self,
        id: AllocationId,
        request: &Scanned<'_>,
        message: &Message,
        now: Instant,
    ) -> Result<Response, ErrorCode> {
        let allocation = self.allocations.get_mut(&id).ok_or(ErrorCode::AllocationMismatch)?;
        let one = message.requested_address_family();
        if one.is_some_and(|family| allocation.relayed(family).is_none()) {
            return Err(ErrorCode::PeerFamilyMismatch);
        }
        let lifetime = match message.lifetime() {
            Some(Duration::ZERO) => Duration::ZERO,
            _ => lifetime(message),
        };
        match one {
            Some(family) if lifetime.is_zero() && allocation.relayed.len() > 1 => self.free_one(id, family),
            _ if lifetime.is_zero() => self.free(id),
            Some(_) | None => allocation.until = now + lifetime,
        }
        Ok(Response::success(request).with(Attribute::Lifetime(lifetime)))
    }

    fn permit(
        &mut self,
        id: AllocationId,
        request: &Scanned<'_>,
        message: &Message,
        now: Instant,
    ) -> Result<Response, ErrorCode> {
        let peers = message.peer_addresses().collect::<Vec<_>>();
        if peers.is_empty() {
            return Err(ErrorCode::BadRequest);
        }
        peers.iter().try_for_each(|peer| self.check_peer(id, *peer))?;
        let ips = peers.iter().map(SocketAddr::ip).collect::<Vec<_>>();
        let allocation = self.allocations.get_mut(&id).ok_or(ErrorCode::AllocationMismatch)?;
        allocation.permit(&ips, now).map_err(code_of)?;
        Ok(Response::success(request))
    }

    fn bind_channel(
        &mut self,
        id: AllocationId,
        request: &Scanned<'_>,
        message: &Message,
        now: Instant,
    ) -> Result<Response, ErrorCode> {
        let peer = message.peer_addresses().next().ok_or(ErrorCode::BadRequest)?;
        let channel = message.channel().ok_or(ErrorCode::BadRequest)?;
        self.check_peer(id, peer)?;
        let allocation = self.allocations.get_mut(&id).ok_or(ErrorCode::AllocationMismatch)?;
        allocation.bind(channel, peer, now).map_err(code_of)?;
        Ok(Response::success(request))
    }

    /// Whether an allocation may speak to a peer at all.
    fn check_peer(&self, id: AllocationId, peer: SocketAddr) -> Result<(), ErrorCode> {
        let allocation = self.allocations.get(&id).ok_or(ErrorCode::AllocationMismatch)?;
        if allocation.relayed(AddressFamily::of(&peer)).is_none() {
            return Err(ErrorCode::PeerFamilyMismatch);
        }
        let ip = peer.ip();
        let neighbour = self.config.relay_ips.contains(&ip) || self.config.public_ips.contains(&ip);
        if neighbour || self.config.policy.allows(ip) { Ok(()) } else { Err(ErrorCode::Forbidden) }
    }
}

/// Looks for EVEN-PORT in a message that was scanned, so that its lengths are right.
fn even_port(frame: &[u8]) -> Option<EvenPort> {
    let mut attributes = frame.get(HEADER_BYTES..)?;
    while let Some((head, rest)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if u16::from_be_bytes([head[0], head[1]]) == EVEN_PORT {
            let reserve = rest.first().is_some_and(|first| first & 0x80 != 0);
            return Some(if reserve { EvenPort::AndReserveTheNext } else { EvenPort::Alone });
        }
        attributes = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn allocated(request: &Scanned<'_>, allocation: &Allocation, now: Instant) -> Response {
    let relayed = allocation.relayed.iter().map(|relayed| Attribute::XorRelayedAddress(*relayed));
    let refused = allocation.refused.map(|(family, code)| Attribute::AddressError(family, code));
    let response = relayed.chain(refused).fold(Response::success(request), Response::with);
    response
        .with(Attribute::Lifetime(allocation.until.saturating_duration_since(now)))
        .with(Attribute::XorMappedAddress(allocation.client.address))
}

/// Which relayed addresses are asked for (RFC 8656, section 7.2).
fn families(message: &Message) -> Result<Vec<AddressFamily>, ErrorCode> {
    match (message.requested_address_family(), message.additional_address_family()) {
        (None, None) => Ok(vec![AddressFamily::V4]),
        (Some(family), None) => Ok(vec![family]),
        (None, Some(AddressFamily::V6)) => Ok(vec![AddressFamily::V4, AddressFamily::V6]),
        (Some(_), Some(_)) | (None, Some(AddressFamily::V4)) => Err(ErrorCode::BadRequest),
    }
}

/// What a client gets of the lifetime that it asks for (RFC 8656, section 7.2).
fn lifetime(message: &Message) -> Duration {
    message.lifetime().unwrap_or(TURN_LIFETIME).clamp(TURN_LIFETIME, TURN_LIFETIME_MAX)
}

fn of_family(ips: &[IpAddr], family: AddressFamily) -> Option<IpAddr> {
    ips.iter().copied().find(|ip| AddressFamily::of(&SocketAddr::new(*ip, 0)) == family)
}

fn code_of(refused: Refused) -> ErrorCode {
    match refused {
        Refused::Taken => ErrorCode::BadRequest,
        Refused::Full => ErrorCode::InsufficientCapacity,
    }
}

/// Encodes the answer: signed for whoever proved who it is, an error or not.
fn answer<'a>(result: Result<Response, Response>, key: Option<&IntegrityKey>, out: &mut Vec<u8>) -> Action<'a> {
    let error = result.is_err();
    let response = result.unwrap_or_else(|refusal| refusal);
    match response.encode(key) {
        Ok(bytes) => {
            *out = bytes;
            Action::Answer { error }
        }
        Err(_) => Action::Drop("unencodable"),
    }
}
