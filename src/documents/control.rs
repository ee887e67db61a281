//! The control stream and the heartbeat of a link.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::error::SessionError;
use super::link::Link;
use crate::address::PeerAddress;
use crate::frame::FrameDecoder;
use crate::limits::{FRAME_MAX_BYTES, HEARTBEAT_INTERVAL, HEARTBEATS_MISSED};
use crate::sync::wire::ControlFrame;
use crate::transport::{RecvHalf, SendHalf, TransportError};

/// The one request there is: are you there? The answer is the same byte.
const HEARTBEAT: &[u8] = &[0];

/// Heartbeats in a row without a shared document before the connection is closed: nobody needs it.
const USELESS_HEARTBEATS: u32 = 4;

/// Sends our address record, again whenever it changes, and what the link queues.
pub(super) async fn run_writer(
    link: Arc<Link>,
    mut send: Box<dyn SendHalf>,
    mut frames: mpsc::Receiver<ControlFrame>,
) -> Result<(), SessionError> {
    let mut address = link.registry.watch_address();
    address.mark_changed();
    let mut goodbye = link.registry.watch_goodbye();
    loop {
        let frame = tokio::select! {
            biased;
            frame = frames.recv() => frame.unwrap_or(ControlFrame::Goodbye),
            Ok(()) = address.changed() => match &*address.borrow_and_update() {
                Some(address) => ControlFrame::Address(address.encode().into()),
                None => continue,
            },
            Ok(_) = goodbye.wait_for(|goodbye| *goodbye) => ControlFrame::Goodbye,
        };
        let last = frame == ControlFrame::Goodbye;
        let mut out = Vec::new();
        frame.encode(&mut out);
        send.write(out.into()).await?;
        if last {
            send.finish();
            return std::future::pending().await;
        }
    }
}

/// Reads the peer's control frames.
pub(super) async fn run_reader(link: Arc<Link>, mut receive: Box<dyn RecvHalf>) -> Result<(), SessionError> {
    let mut decoder = FrameDecoder::new();
    while let Some(chunk) = receive.read(FRAME_MAX_BYTES).await? {
        decoder.push(chunk);
        while let Some(frame) = decoder.next_frame()? {
            match ControlFrame::decode(&frame)? {
                ControlFrame::Share(tokens) => link.on_share(tokens).await?,
                ControlFrame::Unshare(tokens) => link.on_unshare(tokens),
                ControlFrame::Address(record) => {
                    let address = PeerAddress::decode(&record)
                        .map_err(|_| SessionError::Misbehaved("an address record that it did not sign"))?;
                    link.on_address(address).await?;
                }
                ControlFrame::Goodbye => return Ok(()),
            }
        }
    }
    decoder.finish()?;
    Ok(())
}

/// Answers the peer's requests.
pub(super) async fn serve_requests(link: Arc<Link>) -> Result<(), SessionError> {
    loop {
        let mut incoming = link.connection.accept_request().await?;
        // A peer that no longer waits for its answer is no reason to end the link.
        if incoming.request == HEARTBEAT && incoming.answer.write(Bytes::from_static(HEARTBEAT)).await.is_ok() {
            incoming.answer.finish();
        }
    }
}

/// Asks the peer from time to time whether it is there, and gives the connection up when it is not or nobody needs it.
pub(super) async fn run_heartbeat(link: Arc<Link>) -> Result<(), SessionError> {
    let (mut missed, mut useless) = (0, 0);
    loop {
        tokio::time::sleep(HEARTBEAT_INTERVAL).await;
        match link.connection.request(Bytes::from_static(HEARTBEAT), HEARTBEAT_INTERVAL).await {
            Ok(_) => missed = 0,
            // Heartbeats have the lowest priority: on a link full of catch-up they wait, and what comes tells as much.
            Err(TransportError::Timeout(_)) if link.heard.swap(false, Ordering::Relaxed) => missed = 0,
            Err(TransportError::Timeout(_)) => missed += 1,
            Err(error) => return Err(error.into()),
        }
        if missed == HEARTBEATS_MISSED {
            return Err(SessionError::Unresponsive);
        }
        useless = if link.shared_documents().is_empty() { useless + 1 } else { 0 };
        if useless == USELESS_HEARTBEATS {
            return Ok(());
        }
    }
}
