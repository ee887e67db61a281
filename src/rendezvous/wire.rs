//! What a node and a relay say to each other: frames on one TLS 1.3 stream on which both showed their keys.
//!
//! The relay speaks first, with [`RelayFrame::Welcome`]. After it both send what they like; nothing waits for an answer.
//! The stream's ALPN is [`super::ALPN`], its frames are those of `frame.rs`, their content is CBOR. Numbers are never
//! reused, and an unknown one ends the session. A relay sees who signals to whom and when, and nothing of what they say.

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;

use super::address::HostPort;
use super::pin::SpkiPin;
use crate::cbor::{self, CborError, Encoded, Out, Reader};
use crate::frame::put_frame;
use crate::ids::PeerId;
use crate::limits::{
    HOST_NAME_MAX_BYTES, RELAY_DATAGRAM_ADDRESSES, RELAY_SERVERS, RENDEZVOUS_RECORD_MAX_BYTES, SIGNAL_SEALED_MAX_BYTES,
    TURN_CREDENTIAL_MAX_BYTES,
};

/// What a node says to a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeFrame {
    /// Pass this on to a peer, which alone can open it.
    Signal {
        /// To whom.
        to: PeerId,
        /// See [`super::seal`]; at most `SIGNAL_SEALED_MAX_BYTES`.
        sealed: Bytes,
    },
    /// Make a flow with a peer, or tell the one there is again. Both ends are told with [`RelayFrame::Flow`].
    Forward {
        /// With whom.
        to: PeerId,
    },
    /// Tell both of us to start checks at the same moment.
    Punch {
        /// With whom.
        to: PeerId,
        /// The session of the offer, so that the other end knows which.
        session: u64,
    },
    /// Send fresh TURN credentials.
    Credentials,
    /// Are you there?
    Ping {
        /// Comes back.
        nonce: u64,
    },
    /// I am.
    Pong {
        /// That of the ping.
        nonce: u64,
    },
    /// Keep this for whoever asks for me.
    Publish {
        /// See [`super::record`]; at most `RENDEZVOUS_RECORD_MAX_BYTES`.
        record: Bytes,
    },
    /// Where else can this peer be met? Answered with [`RelayFrame::Record`].
    Lookup {
        /// The peer.
        peer: PeerId,
    },
}

/// What a relay says to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayFrame {
    /// The first frame.
    Welcome(Box<Welcome>),
    /// A peer sent this.
    Signal {
        /// Who; the relay vouches for it, the seal proves it.
        from: PeerId,
        /// See [`super::seal`].
        sealed: Bytes,
    },
    /// The peer has no session with this relay.
    NotHere {
        /// The peer.
        to: PeerId,
    },
    /// There is a flow with a peer: send datagrams as `super::forward` says.
    Flow {
        /// The other end.
        peer: PeerId,
        /// The id of this end.
        flow: u64,
    },
    /// A flow has ended.
    FlowClosed {
        /// The id of this end.
        flow: u64,
    },
    /// Start checks with a peer so many milliseconds after this arrives.
    Punch {
        /// The other end, which starts at the same moment.
        peer: PeerId,
        /// The session of the offer.
        session: u64,
        /// When.
        after_ms: u32,
    },
    /// Fresh TURN servers, as in the welcome.
    Credentials {
        /// The servers.
        turn: Vec<TurnServer>,
    },
    /// Are you there?
    Ping {
        /// Comes back.
        nonce: u64,
    },
    /// I am.
    Pong {
        /// That of the ping.
        nonce: u64,
    },
    /// The relay shuts down: use another one, or come back later.
    GoingAway,
    /// The relay has no room for what was asked about this peer: a quota is used up. Try another relay, or later.
    Busy {
        /// The peer.
        to: PeerId,
    },
    /// What a peer published here last.
    Record {
        /// The peer.
        peer: PeerId,
        /// See [`super::record`]; `None`: nothing, or it expired.
        record: Option<Bytes>,
    },
}

/// What a node needs to know to use a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Where the node's TCP connection comes from.
    pub observed: SocketAddr,
    /// UDP addresses of this relay for STUN, TURN and forwarding. An unspecified ip means the host that was dialled.
    pub datagrams: Vec<SocketAddr>,
    /// TURN servers with credentials for this session.
    pub turn: Vec<TurnServer>,
    /// STUN servers besides.
    pub stun: Vec<HostPort>,
}

/// What a TURN server is reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TurnTransport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
}

/// A TURN server and credentials for it.
#[derive(Clone, PartialEq, Eq)]
pub struct TurnServer {
    /// By what.
    pub transport: TurnTransport,
    /// Where. An unspecified ip means the host that was dialled.
    pub server: HostPort,
    /// User name, as `<expiry>:<name>`.
    pub username: String,
    /// Its password. Not in `Debug`.
    pub password: String,
    /// How long the credentials are good for from now on, in seconds.
    pub lifetime_s: u32,
    /// The key that it must have, over TLS. `None`: the relay's own server, or one of which the relay does not know it.
    pub pin: Option<SpkiPin>,
}

impl fmt::Debug for TurnServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TurnServer({:?}, {}, {} s)", self.transport, self.server, self.lifetime_s)
    }
}

fn put(out: &mut Vec<u8>, len: u64, kind: u8, fill: impl FnOnce(&mut Out<'_>) -> Encoded) {
    put_frame(out, |out| cbor::encode(out, len, kind, fill));
}

fn put_peer<'a, 'b>(e: &'a mut Out<'b>, peer: &PeerId) -> Result<&'a mut Out<'b>, EncodeError> {
    e.bytes(peer.as_bytes())
}

type EncodeError = minicbor::encode::Error<std::convert::Infallible>;

impl NodeFrame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Signal { to, sealed } => put(out, 3, 0, |e| put_peer(e, to)?.bytes(sealed).map(|_| ())),
            Self::Forward { to } => put(out, 2, 1, |e| put_peer(e, to).map(|_| ())),
            Self::Punch { to, session } => put(out, 3, 2, |e| put_peer(e, to)?.u64(*session).map(|_| ())),
            Self::Credentials => put(out, 1, 3, |_| Ok(())),
            Self::Ping { nonce } => put(out, 2, 4, |e| e.u64(*nonce).map(|_| ())),
            Self::Pong { nonce } => put(out, 2, 5, |e| e.u64(*nonce).map(|_| ())),
            Self::Publish { record } => put(out, 2, 6, |e| e.bytes(record).map(|_| ())),
            Self::Lookup { peer } => put(out, 2, 7, |e| put_peer(e, peer).map(|_| ())),
        }
    }

    /// Reads the content of a frame.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn decode(frame: &Bytes) -> Result<Self, CborError> {
        cbor::decode(frame, |reader, kind| match kind {
            0 => Ok(Self::Signal { to: reader.peer()?, sealed: read_sealed(reader)? }),
            1 => Ok(Self::Forward { to: reader.peer()? }),
            2 => Ok(Self::Punch { to: reader.peer()?, session: reader.u64()? }),
            3 => Ok(Self::Credentials),
            4 => Ok(Self::Ping { nonce: reader.u64()? }),
            5 => Ok(Self::Pong { nonce: reader.u64()? }),
            6 => Ok(Self::Publish { record: read_record(reader)? }),
            7 => Ok(Self::Lookup { peer: reader.peer()? }),
            kind => Err(CborError::UnknownKind(kind)),
        })
    }
}

impl RelayFrame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(welcome) => put(out, 5, 0, |e| {
                cbor::put_address(e, welcome.observed)?;
                cbor::put_list(e, &welcome.datagrams, |e, address| cbor::put_address(e, *address))?;
                cbor::put_list(e, &welcome.turn, put_turn)?;
                cbor::put_list(e, &welcome.stun, |e, server| {
                    e.array(2)?;
                    put_host(e, server)
                })
            }),
            Self::Signal { from, sealed } => put(out, 3, 1, |e| put_peer(e, from)?.bytes(sealed).map(|_| ())),
            Self::NotHere { to } => put(out, 2, 2, |e| put_peer(e, to).map(|_| ())),
            Self::Flow { peer, flow } => put(out, 3, 3, |e| put_peer(e, peer)?.u64(*flow).map(|_| ())),
            Self::FlowClosed { flow } => put(out, 2, 4, |e| e.u64(*flow).map(|_| ())),
            Self::Punch { peer, session, after_ms } => {
                put(out, 4, 5, |e| put_peer(e, peer)?.u64(*session)?.u32(*after_ms).map(|_| ()));
            }
            Self::Credentials { turn } => put(out, 2, 6, |e| cbor::put_list(e, turn, put_turn)),
            Self::Ping { nonce } => put(out, 2, 7, |e| e.u64(*nonce).map(|_| ())),
            Self::Pong { nonce } => put(out, 2, 8, |e| e.u64(*nonce).map(|_| ())),
            Self::GoingAway => put(out, 1, 9, |_| Ok(())),
            Self::Busy { to } => put(out, 2, 10, |e| put_peer(e, to).map(|_| ())),
            Self::Record { peer, record } => put(out, 3, 11, |e| {
                put_peer(e, peer)?;
                cbor::put_list(e, record.as_slice(), |e, record| e.bytes(record).map(|_| ()))
            }),
        }
    }

    /// Reads the content of a frame.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn decode(frame: &Bytes) -> Result<Self, CborError> {
        cbor::decode(frame, |reader, kind| match kind {
            0 => Ok(Self::Welcome(Box::new(Welcome {
                observed: reader.address()?,
                datagrams: reader.list("datagram addresses", RELAY_DATAGRAM_ADDRESSES, Reader::address)?,
                turn: read_turn_servers(reader)?,
                stun: reader.list("STUN servers", RELAY_SERVERS, |reader| {
                    reader.array(2)?;
                    read_host(reader)
                })?,
            }))),
            1 => Ok(Self::Signal { from: reader.peer()?, sealed: read_sealed(reader)? }),
            2 => Ok(Self::NotHere { to: reader.peer()? }),
            3 => Ok(Self::Flow { peer: reader.peer()?, flow: reader.u64()? }),
            4 => Ok(Self::FlowClosed { flow: reader.u64()? }),
            5 => Ok(Self::Punch { peer: reader.peer()?, session: reader.u64()?, after_ms: reader.u32()? }),
            6 => Ok(Self::Credentials { turn: read_turn_servers(reader)? }),
            7 => Ok(Self::Ping { nonce: reader.u64()? }),
            8 => Ok(Self::Pong { nonce: reader.u64()? }),
            9 => Ok(Self::GoingAway),
            10 => Ok(Self::Busy { to: reader.peer()? }),
            11 => Ok(Self::Record { peer: reader.peer()?, record: reader.list("records", 1, read_record)?.pop() }),
            kind => Err(CborError::UnknownKind(kind)),
        })
    }
}

fn read_sealed(reader: &mut Reader<'_>) -> Result<Bytes, CborError> {
    reader.bytes("sealed bytes", SIGNAL_SEALED_MAX_BYTES)
}

fn read_record(reader: &mut Reader<'_>) -> Result<Bytes, CborError> {
    reader.bytes("bytes of a record", RENDEZVOUS_RECORD_MAX_BYTES)
}

fn put_host(e: &mut Out<'_>, server: &HostPort) -> Encoded {
    e.str(server.host())?.u16(server.port()).map(|_| ())
}

fn read_host(reader: &mut Reader<'_>) -> Result<HostPort, CborError> {
    let host = reader.text("characters of a host", HOST_NAME_MAX_BYTES)?.to_owned();
    HostPort::new(&host, reader.u16()?).map_err(|error| CborError::Damaged(error.to_string()))
}

fn put_turn(e: &mut Out<'_>, turn: &TurnServer) -> Encoded {
    let transport = match turn.transport {
        TurnTransport::Udp => 0,
        TurnTransport::Tcp => 1,
        TurnTransport::Tls => 2,
    };
    e.array(7)?.u8(transport)?;
    put_host(e, &turn.server)?;
    let pin = turn.pin.as_ref().map_or(&[][..], |pin| pin.as_bytes());
    e.str(&turn.username)?.str(&turn.password)?.u32(turn.lifetime_s)?.bytes(pin).map(|_| ())
}

fn read_turn_servers(reader: &mut Reader<'_>) -> Result<Vec<TurnServer>, CborError> {
    reader.list("TURN servers", RELAY_SERVERS, |reader| {
        reader.array(7)?;
        Ok(TurnServer {
            transport: match reader.u8()? {
                0 => TurnTransport::Udp,
                1 => TurnTransport::Tcp,
                2 => TurnTransport::Tls,
                other => return Err(CborError::Damaged(format!("unknown transport {other}"))),
            },
            server: read_host(reader)?,
            username: reader.text("characters of a user name", TURN_CREDENTIAL_MAX_BYTES)?.to_owned(),
            password: reader.text("characters of a password", TURN_CREDENTIAL_MAX_BYTES)?.to_owned(),
            lifetime_s: reader.u32()?,
            pin: read_pin(reader)?,
        })
    })
}

/// Empty: there is none.
fn read_pin(reader: &mut Reader<'_>) -> Result<Option<SpkiPin>, CborError> {
    let bytes = reader.bytes("bytes of a pin", SpkiPin::BYTES)?;
    match SpkiPin::from_bytes(&bytes) {
        None if !bytes.is_empty() => Err(CborError::Damaged(format!("a pin of {} bytes", bytes.len()))),
        pin => Ok(pin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameDecoder;
    use crate::identity::Identity;

    fn cut(out: Vec<u8>) -> Bytes {
        let mut decoder = FrameDecoder::new();
        decoder.push(out.into());
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(decoder.finish(), Ok(()));
        frame
    }

    fn peer(n: u8) -> PeerId {
        Identity::from_seed(&[n; 32]).peer_id()
    }

    fn turn_server() -> TurnServer {
        TurnServer {
            transport: TurnTransport::Tls,
            server: HostPort::new("turn.example.org", 443).unwrap(),
            username: "1700000000:abc".into(),
            password: "secret".into(),
            lifetime_s: 3600,
            pin: Some(SpkiPin::of(b"its key")),
        }
    }

    fn relay_frames() -> Vec<RelayFrame> {
        let peer = peer(1);
        vec![
            RelayFrame::Welcome(Box::new(Welcome {
                observed: "192.0.2.1:4000".parse().unwrap(),
                datagrams: ["0.0.0.0:3478", "[2001:db8::1]:3478"].map(|text| text.parse().unwrap()).to_vec(),
                turn: vec![turn_server(), TurnServer { pin: None, ..turn_server() }],
                stun: vec![HostPort::new("2001:db8::2", 3478).unwrap()],
            })),
            RelayFrame::Signal { from: peer, sealed: Bytes::from(vec![7; SIGNAL_SEALED_MAX_BYTES]) },
            RelayFrame::NotHere { to: peer },
            RelayFrame::Flow { peer, flow: u64::MAX },
            RelayFrame::FlowClosed { flow: 0 },
            RelayFrame::Punch { peer, session: 5, after_ms: 20 },
            RelayFrame::Credentials { turn: vec![turn_server(); RELAY_SERVERS] },
            RelayFrame::Ping { nonce: 1 },
            RelayFrame::Pong { nonce: 2 },
            RelayFrame::GoingAway,
            RelayFrame::Busy { to: peer },
            RelayFrame::Record { peer, record: None },
            RelayFrame::Record { peer, record: Some(Bytes::from(vec![7; RENDEZVOUS_RECORD_MAX_BYTES])) },
        ]
    }

    #[test]
    fn every_frame_comes_back_as_it_was() {
        for frame in relay_frames() {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(RelayFrame::decode(&cut(out)), Ok(frame));
        }
        let to = peer(2);
        let frames = [
            NodeFrame::Signal { to, sealed: Bytes::from_static(b"sealed") },
            NodeFrame::Forward { to },
            NodeFrame::Punch { to, session: 9 },
            NodeFrame::Credentials,
            NodeFrame::Ping { nonce: 3 },
            NodeFrame::Pong { nonce: 4 },
            NodeFrame::Publish { record: Bytes::from_static(b"record") },
            NodeFrame::Lookup { peer: to },
        ];
        for frame in frames {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(NodeFrame::decode(&cut(out)), Ok(frame));
        }
    }

    #[test]
    fn what_is_over_a_limit_is_refused() {
        let mut out = Vec::new();
        let sealed = Bytes::from(vec![7; SIGNAL_SEALED_MAX_BYTES + 1]);
        NodeFrame::Signal { to: peer(1), sealed }.encode(&mut out);
        assert!(matches!(NodeFrame::decode(&cut(out)), Err(CborError::TooMany { what: "sealed bytes", .. })));
        let mut out = Vec::new();
        RelayFrame::Credentials { turn: vec![turn_server(); RELAY_SERVERS + 1] }.encode(&mut out);
        assert!(matches!(RelayFrame::decode(&cut(out)), Err(CborError::TooMany { what: "TURN servers", .. })));
    }

    #[test]
    fn a_pin_of_another_length_is_refused() {
        let mut out = Vec::new();
        RelayFrame::Credentials { turn: vec![turn_server()] }.encode(&mut out);
        let frame = cut(out).to_vec();
        let pin = SpkiPin::of(b"its key");
        let at = frame.len() - SpkiPin::BYTES;
        assert_eq!(&frame[at..], pin.as_bytes(), "it is the last of the last server");
        let short = [&frame[..at - 1], &[SpkiPin::BYTES as u8 - 1], &frame[at + 1..]].concat();
        assert!(RelayFrame::decode(&short.into()).is_err());
        let long = [&frame[..at - 1], &[SpkiPin::BYTES as u8 + 1], &frame[at..], &[0]].concat();
        assert!(matches!(RelayFrame::decode(&long.into()), Err(CborError::TooMany { what: "bytes of a pin", .. })));
    }

    #[test]
    fn a_password_is_not_in_the_debug_output() {
        assert!(!format!("{:?}", RelayFrame::Credentials { turn: vec![turn_server()] }).contains("secret"));
    }
}
