//! How a followed file's node is reached from elsewhere: relays, given once and remembered with the file.

use std::time::Duration;

use clap::Args;
use panda_network::rendezvous::address::RelayAddress;
use panda_network::transports::relay_client::RelayState;
use panda_network::{PandaNetwork, PandaNetworkOptions};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// How long a ticket waits for a relay: one that is up makes it complete.
const RELAY_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether one is.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Options about relays.
#[derive(Debug, Clone, Default, Args)]
pub struct ReachArgs {
    /// Relay that helps through NATs and firewalls, as its operator prints it; give several for several
    /// [default: those of the last run with this file]
    #[arg(long = "relay", env = "PANDA_RELAY", value_name = "HOST[:PORT][#KEY]", value_delimiter = ',')]
    pub relays: Vec<RelayAddress>,
    /// Speak to peers through relays only, and tell them no address of this machine; remembered, `=false` ends it
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub relay_only: Option<bool>,
    /// For a peer that only relays reach: open up to 256 sockets for some seconds, or try up to 1,024 ports of its NAT, when it
    /// does so as well; shallow tables of cheap routers overflow; remembered, `=false` ends it
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub birthday_punching: Option<bool>,
}

impl ReachArgs {
    /// What was given, and for the rest what was remembered.
    pub fn or(&self, remembered: Option<&Reach>) -> Reach {
        let remembered = remembered.cloned().unwrap_or_default();
        let given: Vec<String> = self.relays.iter().map(ToString::to_string).collect();
        Reach {
            relays: if given.is_empty() { remembered.relays } else { given },
            relay_only: self.relay_only.unwrap_or(remembered.relay_only),
            birthday_punching: self.birthday_punching.unwrap_or(remembered.birthday_punching),
        }
    }
}

/// What is remembered of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Addresses of relays.
    pub relays: Vec<String>,
    /// Relayed paths only.
    pub relay_only: bool,
    /// Birthday punching.
    pub birthday_punching: bool,
}

impl Reach {
    /// Puts it into a node's options.
    pub fn apply(&self, options: PandaNetworkOptions) -> PandaNetworkOptions {
        let options = options.with_relays(self.relays.iter().cloned()).with_relay_only(self.relay_only);
        options.with_birthday_punching(self.birthday_punching)
    }
}

/// Waits a moment until a relay is up. Otherwise why the first one is not, in words for the user.
pub async fn wait_for_relay(network: &PandaNetwork) -> Option<String> {
    let deadline = Instant::now() + RELAY_PATIENCE;
    let mut reason = None;
    loop {
        let relays = network.relays();
        if relays.is_empty() || relays.iter().any(|(_, state)| matches!(state, RelayState::Up(_))) {
            return None;
        }
        for (address, state) in relays {
            if let RelayState::Down(error) = state {
                reason = Some(format!("{}: {error}", address.server));
            }
        }
        if Instant::now() >= deadline {
            return Some(reason.unwrap_or_else(|| "no answer yet".into()));
        }
        sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_replaces_what_is_remembered() {
        let relays = vec!["old.example.org:443".into()];
        let remembered = Reach { relays, relay_only: true, birthday_punching: true };
        assert_eq!(ReachArgs::default().or(Some(&remembered)), remembered);
        assert_eq!(ReachArgs::default().or(None), Reach::default());
        let relays = vec!["new.example.org".parse().unwrap()];
        let given = ReachArgs { relays, relay_only: Some(false), birthday_punching: None };
        let relays = vec!["new.example.org:443".into()];
        let expected = Reach { relays, relay_only: false, birthday_punching: true };
        assert_eq!(given.or(Some(&remembered)), expected);
    }
}
