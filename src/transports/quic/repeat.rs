//! Says what one end has to say in a handshake again while it may not have been heard.
//!
//! QUIC does so as well. But it takes what it waited for a relay for a part of the round trip, doubles its patience with every
//! loss until the handshake is confirmed, and repeats a piece at a time, while the other end can read nothing. What is sent
//! here are the same datagrams: whoever got them drops them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::paths::Paths;

/// After how long it is said again, each from the last time.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(375), Duration::from_millis(560), Duration::from_millis(840)];

/// The dialler's end of the handshake, until the peer confirms it.
pub(super) async fn until_confirmed(paths: Arc<Paths>, quinn: quinn::Connection) {
    let virtual_address = quinn.remote_address();
    for wait in AGAIN {
        tokio::select! {
            biased;
            _ = quinn.closed() => break,
            () = sleep(wait) => {}
        }
        if quinn.stats().frame_rx.handshake_done > 0 {
            break;
        }
        paths.send_unheard(&virtual_address);
    }
    paths.set_finishing(&virtual_address, false);
}

/// The acceptor's answer, until the handshake is `complete`. Only where nobody can pretend to be the one who asked: elsewhere
/// the answers would go to a victim.
pub(super) async fn until_complete(paths: &Paths, virtual_address: &SocketAddr, complete: impl Future) {
    let repeat = async {
        for wait in AGAIN {
            sleep(wait).await;
            paths.send_unheard(virtual_address);
        }
        paths.set_finishing(virtual_address, false);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        _ = complete => {}
        () = repeat => {}
    }
    paths.set_finishing(virtual_address, false);
}
