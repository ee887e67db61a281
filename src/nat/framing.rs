//! What travels between a TURN client and its server beside STUN: ChannelData (RFC 8656 §12.4), and how both are cut out of
//! a byte stream.
//!
//! Over UDP, each datagram is one frame: look at it with [`parse_channel_data`] or
//! [`Scanned::scan`](super::stun::Scanned::scan). Over TCP and TLS, feed what arrives to a [`TurnFramer`] and do the same with
//! the frames that come out. Pure.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use super::stun::{ChannelNumber, HEADER_BYTES};
use crate::limits::TURN_FRAME_MAX_BYTES;

/// Channel number and length.
pub const CHANNEL_DATA_HEADER_BYTES: usize = 4;

/// Whether a frame of this connection is ChannelData: the first byte of a channel number (RFC 8656 §12).
pub fn is_channel_data(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| (0x40..=0x4F).contains(first))
}

/// Channel and place of the payload; `None` when it is no ChannelData, or shorter than it says. What follows the
/// payload is padding (RFC 8656 §12.5).
pub fn parse_channel_data(frame: &[u8]) -> Option<(ChannelNumber, Range<usize>)> {
    let (header, rest) = frame.split_first_chunk::<CHANNEL_DATA_HEADER_BYTES>()?;
    let channel = ChannelNumber::new(u16::from_be_bytes([header[0], header[1]]))?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fits = length <= rest.len() && frame.len() <= TURN_FRAME_MAX_BYTES;
    fits.then_some((channel, CHANNEL_DATA_HEADER_BYTES..CHANNEL_DATA_HEADER_BYTES + length))
}

/// Replaces the buffer's content by a payload on a channel. Over a stream it is padded to four bytes, which the length does
/// not count (RFC 8656 §12.5). False when it would be too large.
pub fn put_channel_data(channel: ChannelNumber, payload: &[u8], over_stream: bool, out: &mut Vec<u8>) -> bool {
    out.clear();
    if CHANNEL_DATA_HEADER_BYTES + payload.len().next_multiple_of(4) > TURN_FRAME_MAX_BYTES {
        return false;
    }
    out.extend_from_slice(&channel.value().to_be_bytes());
    out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    out.extend_from_slice(payload);
    if over_stream {
        out.resize(out.len().next_multiple_of(4), 0);
    }
    true
}

/// The other side sent something that is neither STUN nor ChannelData. The stream has no way back from that: close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a TURN stream went on with byte {first:#04x}, which is neither STUN nor ChannelData")]
pub struct TurnStreamError {
    /// What a frame cannot start with.
    pub first: u8,
}

/// Cuts a TURN byte stream into frames. Holds at most one chunk and one frame of `TURN_FRAME_MAX_BYTES`.
#[derive(Debug, Default)]
pub struct TurnFramer {
    buffered: BytesMut,
    /// Bytes of an oversized frame that are still to come.
    skip: usize,
    skipped_frames: u64,
}

impl TurnFramer {
    /// A framer at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk of the stream. Take all frames out before the next chunk goes in.
    pub fn push(&mut self, chunk: &[u8]) {
        let skip = self.skip.min(chunk.len());
        self.skip -= skip;
        self.buffered.extend_from_slice(&chunk[skip..]);
    }

    /// The next whole frame, with its padding; `None` when more bytes are needed. Frames over `TURN_FRAME_MAX_BYTES` are
    /// left out and counted.
    ///
    /// # Errors
    /// [`TurnStreamError`]; the stream cannot be used any more.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, TurnStreamError> {
        loop {
            let Some(header) = self.buffered.first_chunk::<CHANNEL_DATA_HEADER_BYTES>() else {
                return self.buffered.first().map_or(Ok(None), |first| check_first(*first).map(|()| None));
            };
            check_first(header[0])?;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let length = match is_channel_data(header) {
                true => CHANNEL_DATA_HEADER_BYTES + length.next_multiple_of(4),
                false => HEADER_BYTES + length,
            };
            if length > TURN_FRAME_MAX_BYTES {
                let here = length.min(self.buffered.len());
                self.buffered.advance(here);
                self.skip = length - here;
                self.skipped_frames += 1;
                continue;
            }
            if self.buffered.len() < length {
                return Ok(None);
            }
            return Ok(Some(self.buffered.split_to(length).freeze()));
        }
    }

    /// Frames that were too large so far.
    pub fn skipped_frames(&self) -> u64 {
        self.skipped_frames
    }
}

fn check_first(first: u8) -> Result<(), TurnStreamError> {
    if first < 0x50 { Ok(()) } else { Err(TurnStreamError { first }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn channel(number: u16) -> ChannelNumber {
        ChannelNumber::new(number).unwrap()
    }

    proptest! {
        #[test]
        fn payloads_come_out_as_they_went_in_however_the_stream_is_cut(
            payloads in prop::collection::vec((0x4000u16..0x5000, prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            cuts in prop::collection::vec(1usize..64, 1..40),
        ) {
            let (mut stream, mut frame) = (Vec::new(), Vec::new());
            for (number, payload) in &payloads {
                prop_assert!(put_channel_data(channel(*number), payload, true, &mut frame));
                stream.extend_from_slice(&frame);
            }
            let (mut framer, mut got, mut rest, mut cuts) = (TurnFramer::new(), Vec::new(), &stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                framer.push(chunk);
                while let Some(frame) = framer.next_frame().unwrap() {
                    let (channel, range) = parse_channel_data(&frame).unwrap();
                    got.push((channel.value(), frame[range].to_vec()));
                }
                rest = after;
            }
            prop_assert_eq!(got, payloads);
        }
    }

    #[test]
    fn a_frame_that_is_too_large_is_skipped_and_the_next_one_arrives() {
        let mut framer = TurnFramer::new();
        framer.push(&[0x40, 0x00, 0xFF, 0xFD]);
        assert_eq!(framer.next_frame(), Ok(None));
        for _ in 0..16 {
            framer.push(&[7; 4096]);
            assert_eq!(framer.next_frame(), Ok(None));
        }
        framer.push(&[0x40, 0x01, 0x00, 0x01, 9, 0, 0, 0]);
        let frame = framer.next_frame().unwrap().unwrap();
        assert_eq!(parse_channel_data(&frame), Some((channel(0x4001), 4..5)));
        assert_eq!(framer.skipped_frames(), 1);
    }

    #[test]
    fn a_stream_of_something_else_is_refused_at_its_first_byte() {
        let mut framer = TurnFramer::new();
        framer.push(b"H");
        assert_eq!(framer.next_frame(), Ok(None), "a letter that could be a channel");
        let mut framer = TurnFramer::new();
        framer.push(&[0x80]);
        assert_eq!(framer.next_frame(), Err(TurnStreamError { first: 0x80 }));
    }

    #[test]
    fn a_datagram_needs_no_padding_and_must_hold_what_it_says() {
        let mut frame = Vec::new();
        assert!(put_channel_data(channel(0x4000), b"12345", false, &mut frame));
        assert_eq!(frame.len(), 9);
        assert_eq!(parse_channel_data(&frame), Some((channel(0x4000), 4..9)));
        assert_eq!(parse_channel_data(&frame[..8]), None);
        assert_eq!(parse_channel_data(&[0x50, 0, 0, 0]), None, "reserved since RFC 8656");
        assert!(!put_channel_data(channel(0x4000), &[0; TURN_FRAME_MAX_BYTES], false, &mut frame));
    }
}
