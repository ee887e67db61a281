//! Datagrams through a relay: `0x20`, eight bytes of flow, payload.
//!
//! Each end of a flow has an id of its own, drawn at random by the relay and told to that end only, so that who can see or
//! guess nothing cannot send into it. An end sends with its own id and receives with its own id. An empty payload only
//! shows the relay the end's address, or keeps it fresh. The first byte tells these datagrams from STUN (0x00-0x03) and
//! from TURN's ChannelData (0x40-0x7F) on the same port.

/// The first byte of a forwarded datagram.
pub const FORWARD_TAG: u8 = 0x20;
/// Bytes before the payload.
pub const FORWARD_HEADER_BYTES: usize = 9;

/// Appends a forwarded datagram.
pub fn put_forward(out: &mut Vec<u8>, flow: u64, payload: &[u8]) {
    out.reserve(FORWARD_HEADER_BYTES + payload.len());
    out.push(FORWARD_TAG);
    out.extend_from_slice(&flow.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The flow and the payload of a forwarded datagram; `None` when it is something else.
pub fn parse_forward(datagram: &[u8]) -> Option<(u64, &[u8])> {
    let (&tag, rest) = datagram.split_first()?;
    let (flow, payload) = rest.split_first_chunk::<8>()?;
    (tag == FORWARD_TAG).then(|| (u64::from_be_bytes(*flow), payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_datagram_comes_out_as_it_went_in_and_nothing_shorter_does() {
        let mut out = Vec::new();
        put_forward(&mut out, 0x0102_0304_0506_0708, b"payload");
        assert_eq!(out.len(), FORWARD_HEADER_BYTES + 7);
        assert_eq!(parse_forward(&out), Some((0x0102_0304_0506_0708, &b"payload"[..])));
        assert_eq!(parse_forward(&out[..FORWARD_HEADER_BYTES]), Some((0x0102_0304_0506_0708, &b""[..])));
        for length in 0..FORWARD_HEADER_BYTES {
            assert_eq!(parse_forward(&out[..length]), None);
        }
        out[0] = 0x40;
        assert_eq!(parse_forward(&out), None);
    }
}
