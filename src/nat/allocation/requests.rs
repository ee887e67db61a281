//! Requests to a TURN server: what each is for, and how it is signed with what the server last said.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::options::{Families, TurnOptions};
use crate::nat::credentials::TurnCredentials;
use crate::nat::stun::{Attribute, ChannelNumber, ErrorCode, IntegrityKey, Message, Method, Request, StunError};
use crate::nat::transaction::{Transaction, TransactionIds};

/// How often one request is signed anew because of a new nonce. A server whose nonces are always stale is broken.
const MAX_CHALLENGES: u32 = 3;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Allocate,
    Refresh,
    Release,
    Permission(IpAddr),
    Channel(SocketAddr, ChannelNumber),
}

impl Purpose {
    pub(super) fn method(self) -> Method {
        match self {
            Self::Allocate => Method::Allocate,
            Self::Refresh | Self::Release => Method::Refresh,
            Self::Permission(_) => Method::CreatePermission,
            Self::Channel(..) => Method::ChannelBind,
        }
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Underway {
    pub(super) purpose: Purpose,
    pub(super) transaction: Transaction,
    /// `None`: it went out unsigned, to be challenged.
    pub(super) key: Option<IntegrityKey>,
    /// An error that came without a valid signature.
    pub(super) unsigned: Option<ErrorCode>,
    challenges: u32,
}

/// What a server said about itself: needed to sign.
#[derive(Debug)]
struct Challenge {
    realm: String,
    nonce: String,
    key: IntegrityKey,
}

/// Makes requests.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) options: TurnOptions,
    pub(super) ids: TransactionIds,
    credentials: TurnCredentials,
    challenge: Option<Challenge>,
}

/// What a 401 or 438 leads to.
#[derive(Debug)]
pub(super) enum Challenged {
    /// The request again, signed with what came.
    Again(Box<Underway>),
    /// 401 although it was signed: these credentials are not taken, or no longer.
    Refused,
    /// It makes no sense: not heard.
    Ignored,
}

impl Signer {
    pub(super) fn new(options: TurnOptions, credentials: TurnCredentials, seed: [u8; 32]) -> Self {
        Self { options, ids: TransactionIds::from_seed(seed), credentials, challenge: None }
    }

    pub(super) fn start(&mut self, now: Instant, purpose: Purpose) -> Result<Underway, StunError> {
        self.seal(now, purpose, 0)
    }

    /// Takes realm and nonce from a 401 or 438, which are never signed (RFC 8489 §9.2.4). So whoever reads our requests can
    /// send one: all they reach is a request signed anew, a few times.
    pub(super) fn on_challenge(&mut self, now: Instant, asked: &Underway, message: &Message) -> Challenged {
        let Some(nonce) = message.nonce() else { return Challenged::Ignored };
        let known = self.challenge.as_ref().map(|challenge| challenge.realm.clone());
        let stale = message.error() == Some(ErrorCode::StaleNonce);
        let realm = match (stale, message.realm(), known) {
            // The realm that the key is made of changes only where we ask to be let in.
            (true, _, Some(known)) => known,
            (false, Some(realm), None) => realm.to_owned(),
            (false, Some(realm), Some(known)) if asked.purpose == Purpose::Allocate => {
                if asked.key.is_some() && realm == known {
                    return Challenged::Refused;
                }
                realm.to_owned()
            }
            (false, Some(realm), Some(known)) if realm == known && self.is_expired(now, asked.purpose) => {
                return Challenged::Refused;
            }
            _ => return Challenged::Ignored,
        };
        if asked.challenges >= MAX_CHALLENGES {
            return Challenged::Ignored;
        }
        let key = self.credentials.key(&realm);
        self.challenge = Some(Challenge { realm, nonce: nonce.to_owned(), key });
        // Texts that fit a message of the server's may, with ours, not fit one of ours.
        self.seal(now, asked.purpose, asked.challenges + 1)
            .map_or(Challenged::Ignored, |again| Challenged::Again(Box::new(again)))
    }

    /// Whether it is no wonder that a request for an allocation's sake is refused: its credentials have expired.
    pub(super) fn is_expired(&self, now: Instant, purpose: Purpose) -> bool {
        let expired = self.options.credentials_until.is_some_and(|until| until <= now);
        match purpose {
            Purpose::Refresh | Purpose::Permission(_) | Purpose::Channel(..) => {
                expired && self.options.transport.is_stream()
            }
            Purpose::Allocate | Purpose::Release => false,
        }
    }

    fn seal(&mut self, now: Instant, purpose: Purpose, challenges: u32) -> Result<Underway, StunError> {
        let request = match purpose {
            Purpose::Allocate => match self.options.families {
                Families::One(family) => Request::allocate(family, self.options.lifetime),
                Families::Both => Request::allocate_both(self.options.lifetime),
            },
            Purpose::Refresh => Request::refresh(self.options.lifetime),
            Purpose::Release => Request::refresh(Duration::ZERO),
            Purpose::Permission(host) => Request::create_permission(host),
            Purpose::Channel(peer, number) => Request::channel_bind(number, peer),
        };
        let request = match &self.challenge {
            None => request,
            Some(challenge) => request
                .with(Attribute::Username(self.credentials.username().to_owned()))
                .with(Attribute::Realm(challenge.realm.clone()))
                .with(Attribute::Nonce(challenge.nonce.clone())),
        };
        let key = self.challenge.as_ref().map(|challenge| challenge.key.clone());
        let sealed = request.seal(self.ids.draw(), key.as_ref())?;
        let transaction = match self.options.transport.is_stream() {
            true => Transaction::start_reliable(sealed, self.options.retransmit, now),
            false => Transaction::start(sealed, self.options.retransmit, now),
        };
        Ok(Underway { purpose, transaction, key, unsigned: None, challenges })
    }
}
