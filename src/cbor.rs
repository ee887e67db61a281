//! Reading and writing messages of strangers in CBOR: definite lengths only, every list and string bounded before it is read.
//!
//! Pure. `encode` appends one array that starts with the number of its kind; `decode` opens such an array, hands a
//! `Reader` to whoever knows the kinds, and insists that nothing is left. What the numbers mean is for each protocol.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use minicbor::{Decoder, Encoder};
use thiserror::Error;

use crate::ids::PeerId;

/// A message does not say what it should. Whoever sent it erred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CborError {
    /// Not the CBOR that the message should be.
    #[error("peer sent a damaged message: {0}")]
    Damaged(String),
    /// A number that no version of this protocol uses here.
    #[error("peer sent a message of unknown kind {0}")]
    UnknownKind(u8),
    /// A list or a value is over its limit.
    #[error("peer sent {actual} {what} in one message, at most {limit} are allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        actual: u64,
        /// The limit.
        limit: u64,
    },
    /// Bytes after the end of the message.
    #[error("peer sent a message with bytes after its end")]
    Trailing,
}

impl From<minicbor::decode::Error> for CborError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// What messages are written with. Writing to a Vec cannot fail.
pub(crate) type Out<'a> = Encoder<&'a mut Vec<u8>>;
/// What writing returns; the error has no value.
pub(crate) type Encoded = Result<(), minicbor::encode::Error<Infallible>>;

/// Appends one message: an array of `len` items, `kind` and what `fill` writes.
pub(crate) fn encode(out: &mut Vec<u8>, len: u64, kind: u8, fill: impl FnOnce(&mut Out<'_>) -> Encoded) {
    let mut encoder = Encoder::new(out);
    let written = encoder.array(len).and_then(|e| e.u8(kind)).map(|_| ()).and_then(|()| fill(&mut encoder));
    debug_assert!(written.is_ok());
}

/// Writes a list.
pub(crate) fn put_list<T>(e: &mut Out<'_>, items: &[T], mut item: impl FnMut(&mut Out<'_>, &T) -> Encoded) -> Encoded {
    e.array(items.len() as u64)?;
    items.iter().try_for_each(|value| item(e, value))
}

/// Writes an address: 4 or 16 bytes and the port, big-endian, as one byte string. Scope and flow label stay here.
pub(crate) fn put_address(e: &mut Out<'_>, address: SocketAddr) -> Encoded {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => e.bytes(&[&v4.ip().octets()[..], &port].concat())?,
        SocketAddr::V6(v6) => e.bytes(&[&v6.ip().octets()[..], &port].concat())?,
    };
    Ok(())
}

/// Opens the array, reads its kind, lets `read` take the rest, and insists that nothing is left.
pub(crate) fn decode<T>(
    message: &Bytes,
    read: impl FnOnce(&mut Reader<'_>, u8) -> Result<T, CborError>,
) -> Result<T, CborError> {
    let mut reader = Reader { message, decoder: Decoder::new(message) };
    if reader.decoder.array()?.is_none() {
        return Err(CborError::Damaged("array of indefinite length".into()));
    }
    let kind = reader.u8()?;
    let value = read(&mut reader, kind)?;
    if reader.decoder.position() == message.len() { Ok(value) } else { Err(CborError::Trailing) }
}

/// Takes bounded values out of a message; byte strings are slices of it.
pub(crate) struct Reader<'a> {
    message: &'a Bytes,
    decoder: Decoder<'a>,
}

impl Reader<'_> {
    pub(crate) fn array(&mut self, expected: u64) -> Result<(), CborError> {
        match self.decoder.array()? {
            Some(len) if len == expected => Ok(()),
            other => Err(CborError::Damaged(format!("array of {other:?} items instead of {expected}"))),
        }
    }

    pub(crate) fn list<T>(
        &mut self,
        what: &'static str,
        limit: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, CborError>,
    ) -> Result<Vec<T>, CborError> {
        let len = self.decoder.array()?.ok_or_else(|| CborError::Damaged("list of indefinite length".into()))?;
        check(what, len, limit)?;
        (0..len).map(|_| item(self)).collect()
    }

    pub(crate) fn bytes(&mut self, what: &'static str, limit: usize) -> Result<Bytes, CborError> {
        let bytes = self.decoder.bytes()?;
        check(what, bytes.len() as u64, limit)?;
        Ok(self.message.slice_ref(bytes))
    }

    pub(crate) fn text(&mut self, what: &'static str, limit: usize) -> Result<&str, CborError> {
        let text = self.decoder.str()?;
        check(what, text.len() as u64, limit)?;
        Ok(text)
    }

    pub(crate) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], CborError> {
        let bytes = self.decoder.bytes()?;
        bytes.try_into().map_err(|_| CborError::Damaged(format!("{} bytes instead of {N}", bytes.len())))
    }

    pub(crate) fn peer(&mut self) -> Result<PeerId, CborError> {
        PeerId::from_bytes(&self.fixed()?).map_err(|error| CborError::Damaged(error.to_string()))
    }

    pub(crate) fn address(&mut self) -> Result<SocketAddr, CborError> {
        let bytes = self.decoder.bytes()?;
        let damaged = || CborError::Damaged(format!("an address of {} bytes", bytes.len()));
        let (ip, port) = bytes.split_last_chunk::<2>().ok_or_else(damaged)?;
        let port = u16::from_be_bytes(*port);
        if let Ok(v4) = <[u8; 4]>::try_from(ip) {
            return Ok((Ipv4Addr::from(v4), port).into());
        }
        let v6 = <[u8; 16]>::try_from(ip).map_err(|_| damaged())?;
        Ok((Ipv6Addr::from(v6), port).into())
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CborError> {
        Ok(self.decoder.u8()?)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, CborError> {
        Ok(self.decoder.u16()?)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CborError> {
        Ok(self.decoder.u32()?)
    }

    pub(crate) fn u32_up_to(&mut self, what: &'static str, limit: usize) -> Result<u32, CborError> {
        let value = self.decoder.u32()?;
        check(what, value.into(), limit)?;
        Ok(value)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, CborError> {
        Ok(self.decoder.bool()?)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CborError> {
        Ok(self.decoder.u64()?)
    }
}

fn check(what: &'static str, actual: u64, limit: usize) -> Result<(), CborError> {
    if actual > limit as u64 { Err(CborError::TooMany { what, actual, limit: limit as u64 }) } else { Ok(()) }
}
