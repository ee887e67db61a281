//! How messages are cut out of a byte stream: four bytes of length, big-endian, then that many bytes.
//!
//! Pure. Feed chunks to a [`FrameDecoder`] as they arrive and take whole frames out. A length over the limit is an
//! error before a byte is reserved for it. What is inside a frame is for the protocol of the stream to say.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use crate::limits::FRAME_MAX_BYTES;

const PREFIX_BYTES: usize = 4;

/// The other side sent something that is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The announced length is over the limit.
    #[error("peer announced a frame of {actual} bytes, at most {FRAME_MAX_BYTES} are allowed")]
    TooLarge {
        /// The announced length.
        actual: u32,
    },
    /// A frame without content has no meaning in any of our protocols.
    #[error("peer sent an empty frame")]
    Empty,
    /// The stream ended in the middle of a frame.
    #[error("stream ended in the middle of a frame")]
    Truncated,
}

/// Appends one frame to `out`, whose content `write` appends. It must be 1 to `FRAME_MAX_BYTES` long, which our own
/// messages are by construction.
pub(crate) fn put_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    write(out);
    let length = out.len() - start - PREFIX_BYTES;
    debug_assert!((1..=FRAME_MAX_BYTES).contains(&length), "{length} bytes");
    out[start..start + PREFIX_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
}

/// Cuts frames out of chunks. Holds at most one frame and the rest of the last chunk.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffered: BytesMut,
    chunk: Bytes,
}

impl FrameDecoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk of the stream. Take all frames out before the next chunk goes in.
    pub fn push(&mut self, chunk: Bytes) {
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(self.chunk.len() + chunk.len());
            joined.extend_from_slice(&self.chunk);
            joined.extend_from_slice(&chunk);
            self.chunk = joined.freeze();
        }
    }

    /// The next whole frame, `None` when more bytes are needed. A frame inside one chunk is a slice of it, not a copy.
    ///
    /// # Errors
    /// [`FrameError`]; the stream cannot be used any more.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        if self.buffered.is_empty()
            && let Some(frame) = self.frame_in_chunk()?
        {
            return Ok(Some(frame));
        }
        if self.chunk.is_empty() {
            return Ok(None);
        }
        if !self.fill_to(PREFIX_BYTES) {
            return Ok(None);
        }
        let length = frame_length(&self.buffered)?;
        if !self.fill_to(PREFIX_BYTES + length) {
            return Ok(None);
        }
        let frame = std::mem::take(&mut self.buffered).freeze();
        Ok(Some(frame.slice(PREFIX_BYTES..)))
    }

    /// Bytes to read so that not one byte after the next frame is taken: first for its length, then for its content.
    pub fn missing(&self) -> usize {
        let buffered = self.buffered.len() + self.chunk.len();
        let length = || frame_length(&self.buffered).unwrap_or(0);
        let wanted = if self.buffered.len() < PREFIX_BYTES { PREFIX_BYTES } else { PREFIX_BYTES + length() };
        wanted.saturating_sub(buffered).max(1)
    }

    /// To be called at the end of the stream.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when it ended in the middle of a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.buffered.is_empty() && self.chunk.is_empty() { Ok(()) } else { Err(FrameError::Truncated) }
    }

    fn frame_in_chunk(&mut self) -> Result<Option<Bytes>, FrameError> {
        if self.chunk.len() < PREFIX_BYTES {
            return Ok(None);
        }
        let length = frame_length(&self.chunk)?;
        if self.chunk.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        let mut frame = self.chunk.split_to(PREFIX_BYTES + length);
        Ok(Some(frame.split_off(PREFIX_BYTES)))
    }

    /// Moves bytes from the chunk until `length` are buffered; false when there are too few.
    fn fill_to(&mut self, length: usize) -> bool {
        let missing = length.saturating_sub(self.buffered.len()).min(self.chunk.len());
        self.buffered.extend_from_slice(&self.chunk.split_to(missing));
        self.buffered.len() >= length
    }
}

fn frame_length(bytes: &[u8]) -> Result<usize, FrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    prefix.copy_from_slice(&bytes[..PREFIX_BYTES]);
    match u32::from_be_bytes(prefix) {
        0 => Err(FrameError::Empty),
        length if length as usize <= FRAME_MAX_BYTES => Ok(length as usize),
        actual => Err(FrameError::TooLarge { actual }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..20),
            cuts in prop::collection::vec(1usize..64, 1..40),
        ) {
            let mut stream = Vec::new();
            frames.iter().for_each(|frame| put_frame(&mut stream, |out| out.extend_from_slice(frame)));
            let (mut stream, mut decoder, mut got) = (Bytes::from(stream), FrameDecoder::new(), Vec::new());
            let mut cuts = cuts.iter().cycle();
            while !stream.is_empty() {
                let cut = stream.len().min(*cuts.next().unwrap());
                decoder.push(stream.split_to(cut));
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame.to_vec());
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_bytes_arrive() {
        let mut decoder = FrameDecoder::new();
        decoder.push(Bytes::from_static(&[0xFF, 0xFF]));
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.push(Bytes::from_static(&[0xFF, 0xFF]));
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLarge { actual: u32::MAX }));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_noticed() {
        let mut decoder = FrameDecoder::new();
        decoder.push(Bytes::from_static(&[0, 0, 0, 2, 1]));
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.finish(), Err(FrameError::Truncated));
    }
}
