//! The hello: a few bytes each way as the last step of connecting, and the only thing that may ride in 0-RTT.
//!
//! Each end opens its first stream with its hello as soon as it can: the dialler with its first flight if it has met the
//! acceptor before, the acceptor right behind its part of the handshake (0.5-RTT). So the hellos cost no round trip. A hello
//! may be delivered twice, be replayed by somebody in between, and be read by somebody who has not proved who he is yet: it
//! must say nothing that matters twice or to strangers: versions, capabilities, limits. Both ends hand out the connection only
//! after the handshake has proved who the peer is.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};

use super::errors::{connection_error, message_error, write_error};
use super::wire::{StreamType, code};
use crate::limits::HELLO_MAX_BYTES;
use crate::transport::{CloseReason, TransportError};

/// A hello that was said. Kept until the peer's was heard: quinn takes back what went out early on streams that still exist.
#[derive(Debug)]
pub(super) struct Said {
    _stream: (SendStream, RecvStream),
}

/// Says our hello on a stream of our own.
pub(super) async fn say(quinn: &Connection, hello: &[u8], idle: Duration) -> Result<Said, TransportError> {
    let (mut send, recv) = quinn.open_bi().await.map_err(|error| connection_error(&error, idle))?;
    let message = [&[StreamType::Hello.to_byte()], hello].concat();
    send.write_all(&message).await.map_err(|error| write_error(&error, idle))?;
    // Fails only when the peer stopped the stream, which it will explain by closing.
    let _ = send.finish();
    Ok(Said { _stream: (send, recv) })
}

/// Waits for the peer's hello. Whatever else comes first breaks the protocol.
pub(super) async fn hear(quinn: &Connection, idle: Duration) -> Result<Bytes, TransportError> {
    let (mut send, mut recv) = quinn.accept_bi().await.map_err(|error| connection_error(&error, idle))?;
    let _ = send.finish();
    let said = recv.read_to_end(1 + HELLO_MAX_BYTES).await.map_err(|error| message_error(&error, "hello", idle));
    let said = said.and_then(|bytes| match bytes.split_first() {
        Some((first, _)) if StreamType::from_byte(*first) == Some(StreamType::Hello) => {
            Ok(Bytes::from(bytes).slice(1..))
        }
        _ => Err(TransportError::Protocol("the first stream is not a hello".into())),
    });
    if said.is_err() {
        quinn.close(code(CloseReason::BadFrame), b"");
    }
    said
}
