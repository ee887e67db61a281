//! What quinn says, in the words of the port: who erred, without the peer's own text.

use std::time::Duration;

use quinn::{ConnectionError, ReadError, ReadToEndError, TransportErrorCode, WriteError};

use crate::transport::{CloseReason, TransportError};

/// The TLS alert with which our verifier refuses a peer that is not the dialled one (RFC 8446, section 6.2: access_denied).
const ACCESS_DENIED: u8 = 49;

/// Why a connection is gone. `idle_timeout` is how long silence was endured.
pub(super) fn connection_error(error: &ConnectionError, idle_timeout: Duration) -> TransportError {
    match error {
        ConnectionError::TransportError(error) if error.code == TransportErrorCode::crypto(ACCESS_DENIED) => {
            TransportError::WrongPeer
        }
        ConnectionError::TransportError(error) => TransportError::Protocol(error.code.to_string()),
        ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            TransportError::ClosedByPeer { code: CloseReason::TooBusy as u64 }
        }
        ConnectionError::ConnectionClosed(close) => {
            TransportError::Protocol(format!("the peer's QUIC gave up with {}", close.error_code))
        }
        ConnectionError::ApplicationClosed(close) => {
            TransportError::ClosedByPeer { code: close.error_code.into_inner() }
        }
        ConnectionError::VersionMismatch => TransportError::Protocol("no common version of QUIC".into()),
        ConnectionError::Reset => TransportError::Lost("the peer no longer knows the connection".into()),
        ConnectionError::TimedOut => TransportError::Timeout(idle_timeout),
        ConnectionError::LocallyClosed => TransportError::ClosedHere,
        ConnectionError::CidsExhausted => TransportError::Lost("no connection ids left".into()),
    }
}

/// Why nothing more can be written.
pub(super) fn write_error(error: &WriteError, idle_timeout: Duration) -> TransportError {
    match error {
        WriteError::Stopped(code) => TransportError::ClosedByPeer { code: code.into_inner() },
        WriteError::ConnectionLost(error) => connection_error(error, idle_timeout),
        WriteError::ClosedStream => TransportError::ClosedHere,
        WriteError::ZeroRttRejected => TransportError::Lost("early data was not accepted".into()),
    }
}

/// Why nothing more can be read.
pub(super) fn read_error(error: &ReadError, idle_timeout: Duration) -> TransportError {
    match error {
        ReadError::Reset(code) => TransportError::ClosedByPeer { code: code.into_inner() },
        ReadError::ConnectionLost(error) => connection_error(error, idle_timeout),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead => TransportError::ClosedHere,
        ReadError::ZeroRttRejected => TransportError::Lost("early data was not accepted".into()),
    }
}

/// Why a short message could not be read; `what` names it when it is too long.
pub(super) fn message_error(error: &ReadToEndError, what: &str, idle_timeout: Duration) -> TransportError {
    match error {
        ReadToEndError::Read(error) => read_error(error, idle_timeout),
        ReadToEndError::TooLong => TransportError::Protocol(format!("{what} is longer than allowed")),
    }
}
