//! The hello: a few bytes each way as the last step of connecting, and the only thing that may ride in 0-RTT.
//!
//! The dialler opens the first stream of the connection with its hello and the acceptor answers on it with its own. A
//! hello may be delivered twice or be replayed by somebody in between, so it must say nothing that matters twice:
//! versions, capabilities, limits. The acceptor answers a hello that came early at once (0.5-RTT); both sides hand out
//! the connection only after the handshake has proved who the peer is.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};

use super::errors::{connection_error, message_error, write_error};
use super::wire::{StreamType, code};
use crate::limits::HELLO_MAX_BYTES;
use crate::transport::{CloseReason, TransportError};

/// A hello that was sent and awaits its answer.
#[derive(Debug)]
pub(super) struct Asked {
    /// Kept open: quinn takes back what went out early on streams that still exist.
    _send: SendStream,
    recv: RecvStream,
}

/// Opens the hello stream and sends ours.
pub(super) async fn ask(quinn: &Connection, hello: &[u8], idle: Duration) -> Result<Asked, TransportError> {
    let (mut send, recv) = quinn.open_bi().await.map_err(|error| connection_error(&error, idle))?;
    write(&mut send, &[&[StreamType::Hello.to_byte()], hello].concat(), idle).await?;
    Ok(Asked { _send: send, recv })
}

/// Waits for the acceptor's hello.
pub(super) async fn answered(mut asked: Asked, idle: Duration) -> Result<Bytes, TransportError> {
    let hello = asked.recv.read_to_end(HELLO_MAX_BYTES).await.map_err(|error| message_error(&error, "hello", idle))?;
    Ok(hello.into())
}

/// Waits for the dialler's hello and answers with ours. Whatever else comes first breaks the protocol.
pub(super) async fn answer(quinn: &Connection, hello: &[u8], idle: Duration) -> Result<Bytes, TransportError> {
    let (mut send, mut recv) = quinn.accept_bi().await.map_err(|error| connection_error(&error, idle))?;
    let asked = recv.read_to_end(1 + HELLO_MAX_BYTES).await.map_err(|error| message_error(&error, "hello", idle));
    let asked = asked.and_then(|bytes| match bytes.split_first() {
        Some((first, _)) if StreamType::from_byte(*first) == Some(StreamType::Hello) => {
            Ok(Bytes::from(bytes).slice(1..))
        }
        _ => Err(TransportError::Protocol("the first stream is not a hello".into())),
    });
    match asked {
        Ok(asked) => {
            write(&mut send, hello, idle).await?;
            Ok(asked)
        }
        Err(error) => {
            quinn.close(code(CloseReason::BadFrame), b"");
            Err(error)
        }
    }
}

async fn write(send: &mut SendStream, bytes: &[u8], idle: Duration) -> Result<(), TransportError> {
    send.write_all(bytes).await.map_err(|error| write_error(&error, idle))?;
    // Fails only when the peer stopped the stream, which it will explain by closing.
    let _ = send.finish();
    Ok(())
}
