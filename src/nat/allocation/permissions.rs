//! What a server granted for a while and must be asked for again: the life of one grant, and the permissions by host.
//!
//! A permission lets one IP address send to our relayed address (RFC 8656 §9). Pure bookkeeping: the machine asks.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::nat::stun::ErrorCode;

/// RFC 8656 §9: a permission lives five minutes.
const LIFETIME: Duration = Duration::from_secs(300);
/// A minute before that.
const REFRESH: Duration = Duration::from_secs(240);
/// After no answer, or a refusal that may pass.
const REST: Duration = Duration::from_secs(10);

/// One permission or channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    /// To be asked for as soon as a transaction is free.
    Wanted,
    /// Asked for; not usable yet.
    Asking,
    /// Usable.
    Held { refresh_at: Instant, expires_at: Instant, asking: bool },
    /// To be asked for at that time.
    Resting { until: Instant },
    /// The server will not, as long as this allocation lives.
    Refused(ErrorCode),
}

impl Grant {
    pub(super) fn is_held(self) -> bool {
        matches!(self, Self::Held { .. })
    }

    /// Whether the server is to be asked.
    pub(super) fn wants(self, now: Instant) -> bool {
        match self {
            Self::Wanted => true,
            Self::Held { refresh_at, asking, .. } => !asking && refresh_at <= now,
            Self::Resting { until } => until <= now,
            Self::Asking | Self::Refused(_) => false,
        }
    }

    /// When something is to be done about it.
    pub(super) fn due(self) -> Option<Instant> {
        match self {
            Self::Held { refresh_at, asking: false, expires_at } => Some(refresh_at.min(expires_at)),
            Self::Held { expires_at, asking: true, .. } => Some(expires_at),
            Self::Resting { until } => Some(until),
            Self::Wanted | Self::Asking | Self::Refused(_) => None,
        }
    }

    pub(super) fn on_asked(&mut self) {
        match self {
            Self::Held { asking, .. } => *asking = true,
            Self::Wanted | Self::Asking | Self::Resting { .. } | Self::Refused(_) => *self = Self::Asking,
        }
    }

    pub(super) fn on_granted(&mut self, now: Instant, refresh: Duration, lifetime: Duration) {
        *self = Self::Held { refresh_at: now + refresh, expires_at: now + lifetime, asking: false };
    }

    /// True when it is for good. Otherwise what is held stays so: the server counts from its last success.
    pub(super) fn on_refused(&mut self, now: Instant, code: ErrorCode) -> bool {
        let for_good = matches!(code, ErrorCode::Forbidden | ErrorCode::PeerFamilyMismatch | ErrorCode::BadRequest);
        if for_good {
            *self = Self::Refused(code);
        } else {
            self.on_given_up(now);
        }
        for_good
    }

    pub(super) fn on_given_up(&mut self, now: Instant) {
        match self {
            // Usable until it expires; asked for again meanwhile.
            Self::Held { refresh_at, asking, .. } => (*refresh_at, *asking) = (now + REST, false),
            Self::Wanted | Self::Asking | Self::Resting { .. } => *self = Self::Resting { until: now + REST },
            Self::Refused(_) => {}
        }
    }

    pub(super) fn on_timeout(&mut self, now: Instant) {
        if let Self::Held { expires_at, asking, .. } = *self
            && expires_at <= now
        {
            *self = if asking { Self::Asking } else { Self::Wanted };
        }
    }
}

/// The permissions of one allocation. As many as there are peers at most.
#[derive(Debug, Default)]
pub(super) struct Permissions(Vec<(IpAddr, Grant)>);

impl Permissions {
    pub(super) fn want(&mut self, host: IpAddr) {
        if self.get_mut(host).is_none() {
            self.0.push((host, Grant::Wanted));
        }
    }

    /// TURN knows no way to take one back: it lapses.
    pub(super) fn forget(&mut self, host: IpAddr) {
        self.0.retain(|(known, _)| *known != host);
    }

    pub(super) fn get_mut(&mut self, host: IpAddr) -> Option<&mut Grant> {
        self.0.iter_mut().find(|(known, _)| *known == host).map(|(_, grant)| grant)
    }

    pub(super) fn is_held(&self, host: IpAddr) -> bool {
        self.0.iter().any(|(known, grant)| *known == host && grant.is_held())
    }

    /// Why the server refuses it for good.
    pub(super) fn refusal(&self, host: IpAddr) -> Option<ErrorCode> {
        self.0.iter().find_map(|(known, grant)| match grant {
            Grant::Refused(code) if *known == host => Some(*code),
            Grant::Wanted | Grant::Asking | Grant::Held { .. } | Grant::Resting { .. } | Grant::Refused(_) => None,
        })
    }

    /// True when it was not there before.
    pub(super) fn on_granted(&mut self, now: Instant, host: IpAddr) -> bool {
        let Some(grant) = self.get_mut(host) else { return false };
        let before = grant.is_held();
        grant.on_granted(now, REFRESH, LIFETIME);
        !before
    }

    pub(super) fn next_wanted(&self, now: Instant) -> Option<IpAddr> {
        self.0.iter().find(|(_, grant)| grant.wants(now)).map(|(host, _)| *host)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.0.iter().filter_map(|(_, grant)| grant.due()).min()
    }

    pub(super) fn on_timeout(&mut self, now: Instant) {
        self.0.iter_mut().for_each(|(_, grant)| grant.on_timeout(now));
    }
}
