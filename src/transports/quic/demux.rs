//! Telling apart what shares one UDP socket, and taking single datagrams out of a received batch.

use crate::rendezvous::forward::{FORWARD_TAG, parse_forward};

/// What a datagram from somebody other than a TURN server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// QUIC, or nothing that we know: QUIC copes with anything.
    Quic,
    /// STUN: the first two bits are zero and the magic cookie is there (RFC 8489, section 5).
    Stun,
    /// Forwarded by a relay: flow and length of what is in front of the payload.
    Forward { flow: u64 },
}

/// Magic cookie of STUN messages (RFC 8489, section 5).
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Size of a STUN header.
const STUN_HEADER_BYTES: usize = 20;

/// What a datagram is. QUIC packets of ours always have the second bit set, since the QUIC bit is not greased.
pub(super) fn protocol(datagram: &[u8]) -> Protocol {
    match datagram {
        [first, _, _, _, cookie @ ..]
            if first & 0xc0 == 0 && datagram.len() >= STUN_HEADER_BYTES && cookie.starts_with(&MAGIC_COOKIE) =>
        {
            Protocol::Stun
        }
        [FORWARD_TAG, ..] => parse_forward(datagram).map_or(Protocol::Quic, |(flow, _)| Protocol::Forward { flow }),
        _ => Protocol::Quic,
    }
}

/// Goes through the datagrams of a batch, `stride` bytes each but for the last, and moves those together that `keep` wants.
/// Returns the new length of the batch.
pub(super) fn retain_segments(batch: &mut [u8], stride: usize, mut keep: impl FnMut(&[u8]) -> bool) -> usize {
    let (mut kept, mut start, stride) = (0, 0, stride.max(1));
    while start < batch.len() {
        let end = (start + stride).min(batch.len());
        if keep(&batch[start..end]) {
            batch.copy_within(start..end, kept);
            kept += end - start;
        }
        start = end;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_told_apart_by_their_first_bytes() {
        let mut stun = [0; STUN_HEADER_BYTES];
        stun[4..8].copy_from_slice(&MAGIC_COOKIE);
        assert_eq!(protocol(&stun), Protocol::Stun);
        assert_eq!(protocol(&stun[..19]), Protocol::Quic);
        assert_eq!(protocol(&[0x40; 30]), Protocol::Quic);
        assert_eq!(protocol(&[0xc0; 30]), Protocol::Quic);
        assert_eq!(protocol(&[]), Protocol::Quic);
        assert_eq!(protocol(&[0x20, 0, 0, 0, 0, 0, 0, 0, 9, 1]), Protocol::Forward { flow: 9 });
        assert_eq!(protocol(&[0x20, 0, 0]), Protocol::Quic);
    }

    #[test]
    fn what_is_taken_out_of_a_batch_leaves_the_rest_in_order() {
        let mut batch = *b"aabbccddeef";
        let kept = retain_segments(&mut batch, 2, |segment| segment != b"bb" && segment != b"ee");
        assert_eq!(&batch[..kept], b"aaccddf");
        assert_eq!(retain_segments(&mut batch[..0], 2, |_| true), 0);
        assert_eq!(retain_segments(&mut b"abc".to_vec(), 0, |_| true), 3);
    }
}
