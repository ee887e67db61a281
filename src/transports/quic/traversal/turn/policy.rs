//! At which TURN servers a node needs an allocation: a pure decision.
//!
//! - UDP is blocked: at once, over TLS (on port 443 if there is one, since that passes the strictest firewalls), else over
//!   TCP; and at a second machine, so that connections survive the end of one.
//! - Addresses are to stay hidden: one over UDP, since the relayed addresses of peers may be sent to from there only.
//! - A standby is wanted (behind a symmetric NAT, or when a relay forwards nothing): one over UDP, at a machine that does not
//!   forward for us already, since forwarding there is cheaper and would end together with it.
//! - Otherwise none.
//!
//! What runs is preferred to what would be better: an allocation that works is not left for a server that came back.

use std::collections::BTreeSet;

use crate::limits::TURN_ALLOCATIONS;
use crate::rendezvous::wire::TurnTransport;

/// The port that firewalls let TLS through on.
const HTTPS_PORT: u16 = 443;

/// What a node knows of its network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Situation {
    /// No UDP gets through, although relays are reached.
    pub(super) udp_blocked: bool,
    /// This node's addresses are told to relays only.
    pub(super) hidden: bool,
    /// Connections need a further relayed path.
    pub(super) standby: bool,
    /// Machines that forward for us.
    pub(super) forwarding: BTreeSet<String>,
}

/// A server that could be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) transport: TurnTransport,
    /// What its addresses have in common, so that two of one machine are known as such.
    pub(super) machine: String,
    pub(super) port: u16,
    /// It did not fail lately, and its credentials are good.
    pub(super) usable: bool,
    /// There is an allocation, or it is being made.
    pub(super) running: bool,
}

/// The places of the choices that are wanted, best first; at most `TURN_ALLOCATIONS`.
pub(super) fn wanted(situation: &Situation, choices: &[Choice]) -> Vec<usize> {
    let apart = |choice: &Choice| !situation.forwarding.contains(&choice.machine);
    let usable = choices.iter().enumerate().filter(|(_, choice)| choice.usable || choice.running);
    let (mut fitting, count): (Vec<_>, _) = if situation.udp_blocked {
        (usable.filter(|(_, choice)| choice.transport != TurnTransport::Udp).collect(), TURN_ALLOCATIONS)
    } else if situation.standby || situation.hidden {
        let fits = |choice: &Choice| choice.transport == TurnTransport::Udp && (situation.hidden || apart(choice));
        (usable.filter(|(_, choice)| fits(choice)).collect(), 1)
    } else {
        return Vec::new();
    };
    let rank = |choice: &Choice| {
        (!choice.running, !apart(choice), choice.transport != TurnTransport::Tls, choice.port != HTTPS_PORT)
    };
    fitting.sort_by_key(|(place, choice)| (rank(choice), *place));
    let mut machines = BTreeSet::new();
    fitting.retain(|(_, choice)| machines.insert(&choice.machine));
    fitting.into_iter().take(count).map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use TurnTransport::{Tcp, Tls, Udp};

    fn choice(transport: TurnTransport, machine: &str, port: u16) -> Choice {
        Choice { transport, machine: machine.into(), port, usable: true, running: false }
    }

    fn two_relays() -> Vec<Choice> {
        let at = |machine| [choice(Udp, machine, 3478), choice(Tcp, machine, 3478), choice(Tls, machine, 443)];
        [at("one"), at("two")].concat()
    }

    fn blocked() -> Situation {
        Situation { udp_blocked: true, ..Situation::default() }
    }

    fn standby(forwarding: &[&str]) -> Situation {
        let forwarding = forwarding.iter().map(|machine| machine.to_string()).collect();
        Situation { standby: true, forwarding, ..Situation::default() }
    }

    #[test]
    fn a_node_that_reaches_its_peers_needs_none() {
        assert_eq!(wanted(&Situation::default(), &two_relays()), [0; 0]);
    }

    #[test]
    fn without_udp_tls_is_used_at_two_machines() {
        assert_eq!(wanted(&blocked(), &two_relays()), [2, 5]);
        assert_eq!(wanted(&blocked(), &two_relays()[..3]), [2], "two at one machine would end together");
        assert_eq!(wanted(&blocked(), &two_relays()[..1]), [0; 0]);
    }

    #[test]
    fn port_443_comes_first_and_tcp_last() {
        let servers = [choice(Tcp, "one", 443), choice(Tls, "two", 5349), choice(Tls, "three", 443)];
        assert_eq!(wanted(&blocked(), &servers), [2, 1]);
        assert_eq!(wanted(&blocked(), &servers[..1]), [0]);
    }

    #[test]
    fn when_a_server_fails_another_way_to_it_or_another_server_takes_over() {
        let mut servers = two_relays();
        servers[2].usable = false;
        assert_eq!(wanted(&blocked(), &servers), [5, 1]);
        servers[1].usable = false;
        assert_eq!(wanted(&blocked(), &servers), [5]);
    }

    #[test]
    fn what_runs_is_kept_when_a_better_one_comes_back() {
        let mut servers = two_relays();
        (servers[1].running, servers[4].running) = (true, true);
        assert_eq!(wanted(&blocked(), &servers), [1, 4]);
        servers[1].usable = false;
        assert_eq!(wanted(&blocked(), &servers), [1, 4], "expired credentials do not end an allocation");
    }

    #[test]
    fn a_standby_is_at_a_machine_that_does_not_forward() {
        assert_eq!(wanted(&standby(&["one"]), &two_relays()), [3]);
        assert_eq!(wanted(&standby(&["one", "two"]), &two_relays()), [0; 0]);
        assert_eq!(wanted(&standby(&[]), &two_relays()), [0]);
    }

    #[test]
    fn who_hides_has_one_also_at_a_machine_that_forwards() {
        let hidden = |forwarding| Situation { hidden: true, ..standby(forwarding) };
        assert_eq!(wanted(&hidden(&["one"]), &two_relays()), [3]);
        assert_eq!(wanted(&hidden(&["one", "two"]), &two_relays()), [0]);
        assert_eq!(wanted(&hidden(&["one"]), &two_relays()[..3]), [0]);
    }
}
