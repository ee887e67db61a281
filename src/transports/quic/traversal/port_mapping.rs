//! The port that the router maps for this node's socket: when it is asked for, and when it is given back.
//!
//! `hub` says which router to ask, and takes the external address for a candidate. The asking itself is
//! [`crate::transports::port_mapping`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Traversal;
use crate::nat::port_mapping::router_to_ask;
use crate::net::Gateway;
use crate::transports::port_mapping::Mapper;
use crate::watch;

/// How long a shutdown waits for a router to take a port back.
const RELEASE_DEADLINE: Duration = Duration::from_millis(500);

/// Between hub, task and shutdown.
#[derive(Debug)]
pub(super) struct PortMapping {
    router: watch::Sender<Option<Gateway>>,
    stop: watch::Sender<bool>,
    /// Closed once nothing is mapped any more.
    external: watch::Sender<Option<SocketAddr>>,
}

impl PortMapping {
    pub(super) fn new(enabled: bool) -> Self {
        let external = watch::Sender::new(None);
        if !enabled {
            external.close();
        }
        Self { router: watch::Sender::new(None), stop: watch::Sender::new(false), external }
    }

    /// Our address outside, now and later.
    pub(super) fn external(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.external.subscribe()
    }

    /// What was known of the network is void. The same router may be asked again.
    pub(super) fn on_network_change(&self) {
        self.router.send_replace(None);
    }

    /// Asks the router if `hosts`, our own addresses, are others than those that STUN servers see. A server that falls silent
    /// later takes nothing back.
    pub(super) fn consider(&self, traversal: &Traversal, hosts: &[SocketAddr], mapped: &BTreeSet<SocketAddr>) {
        if !traversal.options.port_mapping || self.router.borrow().is_some() {
            return;
        }
        let router = router_to_ask(&traversal.options.network.gateways(), hosts, mapped);
        if router.is_some() {
            self.router.send_replace(router);
        }
    }

    /// Gives the port back, best effort.
    pub(super) async fn end(&self) {
        let mut external = self.external.subscribe();
        self.stop.send_replace(true);
        let _ = timeout(RELEASE_DEADLINE, async { while external.changed().await.is_ok() {} }).await;
    }
}

/// Keeps the mapping until the traversal ends.
pub(super) async fn run(traversal: Arc<Traversal>) {
    let shared = &traversal.port_mapping;
    let (mut router, mut stop) = (shared.router.subscribe(), shared.stop.subscribe());
    let (port, nonce) = (traversal.paths.local_address().port(), traversal.random());
    let tell = |external: Option<SocketAddr>| {
        let changed = |known: &mut Option<SocketAddr>| std::mem::replace(known, external) != external;
        if shared.external.send_if_modified(changed) {
            tracing::info!(mapped = external.is_some(), "the router's port for this node changed");
        }
    };
    loop {
        let gateway = *router.borrow_and_update();
        let network = traversal.options.network.clone();
        let mut mapper = gateway.map(|gateway| Mapper::new(network, gateway, port, nonce));
        let mapping = async {
            match &mut mapper {
                Some(mapper) => mapper.run(|external| tell(external.map(SocketAddr::from))).await,
                None => std::future::pending().await,
            }
        };
        let stopped = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => true,
            _ = router.changed() => false,
            () = mapping => false,
        };
        // In another network the mapping cannot be given back; in the same one it is asked for again.
        tell(None);
        if stopped {
            if let Some(mapper) = &mut mapper {
                mapper.release().await;
            }
            shared.external.close();
            return;
        }
    }
}
