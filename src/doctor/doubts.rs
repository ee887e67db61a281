//! What STUN servers said that no NAT explains: somebody is mistaken, or lies. Pure.
//!
//! A NAT may show another port, or another address, to every server, and a server in our own network sees what no other
//! does. But no NAT makes an address that nobody can have, and what one server sees without a NAT no other sees with one.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::expect::is_inside;
use super::report::StunFinding;

/// Answers of STUN servers that no NAT explains. Connections may work all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Doubt {
    /// The server is broken or lies.
    #[error("the STUN server {server} says that it sees us at {mapped}, where nobody can be: do not use this server")]
    Impossible {
        /// Who says so.
        server: SocketAddr,
        /// What it says.
        mapped: SocketAddr,
    },
    /// One of both is broken or lies, or what is sent to one of them takes another way.
    #[error(
        "the STUN servers {plain} and {other} disagree as no NAT makes them: the one sees the address of this machine, \
         the other sees us at {mapped}; one of them is wrong, or a VPN or proxy takes what is sent to one of them"
    )]
    Disagree {
        /// Sees an address of this machine.
        plain: SocketAddr,
        /// Sees another one.
        other: SocketAddr,
        /// Namely this.
        mapped: SocketAddr,
    },
}

/// What is doubtful about answers, by a machine with these addresses.
pub(super) fn doubts<'a>(local: &[IpAddr], findings: impl Iterator<Item = &'a StunFinding>) -> Vec<Doubt> {
    let mut answers: Vec<_> = findings.filter_map(|stun| Some((stun.address?, stun.mapped?))).collect();
    answers.sort();
    answers.dedup();
    let (possible, impossible): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(server, mapped)| can_be(server.ip(), mapped.ip()));
    let mut doubts: Vec<_> =
        impossible.into_iter().map(|(server, mapped)| Doubt::Impossible { server, mapped }).collect();
    for v4 in [true, false] {
        // A server in our own network sees us before the NAT.
        let outside = possible.iter().filter(|(server, mapped)| {
            mapped.ip().to_canonical().is_ipv4() == v4 && !is_inside(server.ip()) && !is_inside(mapped.ip())
        });
        let (plain, others): (Vec<_>, Vec<_>) = outside.partition(|(_, mapped)| is_own(local, mapped.ip()));
        if let (Some((plain, _)), Some((other, mapped))) = (plain.first(), others.first()) {
            doubts.push(Doubt::Disagree { plain: *plain, other: *other, mapped: *mapped });
        }
    }
    doubts
}

fn is_own(local: &[IpAddr], ip: IpAddr) -> bool {
    local.iter().any(|own| own.to_canonical() == ip.to_canonical())
}

/// Whether anybody can have this address, in the eyes of a server.
fn can_be(server: IpAddr, mapped: IpAddr) -> bool {
    let (server, mapped) = (server.to_canonical(), mapped.to_canonical());
    let nobody = match mapped {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
    };
    !nobody && server.is_ipv4() == mapped.is_ipv4() && (!mapped.is_loopback() || is_inside(server))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What a machine at 203.0.113.9 and 192.168.1.2 thinks of answers: pairs of server and mapped address.
    fn found(answers: &[(&str, &str)]) -> Vec<Doubt> {
        let finding = |(server, mapped): &(&str, &str)| {
            let address: SocketAddr = server.parse().unwrap();
            let round_trip = Ok(Duration::from_millis(1));
            StunFinding { server: address.into(), address: Some(address), mapped: mapped.parse().ok(), round_trip }
        };
        let findings: Vec<_> = answers.iter().map(finding).collect();
        doubts(&["203.0.113.9".parse().unwrap(), "192.168.1.2".parse().unwrap()], findings.iter())
    }

    #[test]
    fn what_nats_do_is_not_doubted() {
        let fine: [&[(&str, &str)]; 6] = [
            &[("192.0.2.1:3478", "203.0.113.9:4000"), ("192.0.2.2:3478", "203.0.113.9:4000")],
            &[("192.0.2.1:3478", "198.51.100.7:4000"), ("192.0.2.2:3478", "198.51.100.7:4001")],
            // A carrier with several addresses.
            &[("192.0.2.1:3478", "198.51.100.7:4000"), ("192.0.2.2:3478", "198.51.100.8:4000")],
            // A server in this network, and one outside.
            &[("192.168.1.1:3478", "192.168.1.2:4000"), ("192.0.2.2:3478", "198.51.100.8:4000")],
            &[("127.0.0.1:3478", "127.0.0.1:4000")],
            // One family with a NAT, one without.
            &[("192.0.2.1:3478", "203.0.113.9:4000"), ("[2001:db8::1]:3478", "[2001:db8::9]:4000")],
        ];
        for answers in fine {
            assert_eq!(found(answers), [], "{answers:?}");
        }
    }

    #[test]
    fn a_server_that_sees_another_address_than_one_that_sees_no_nat_is_doubted() {
        let answers = [("192.0.2.1:3478", "203.0.113.9:4000"), ("192.0.2.2:3478", "198.51.100.7:4000")];
        let (plain, other) = ("192.0.2.1:3478".parse().unwrap(), "192.0.2.2:3478".parse().unwrap());
        let disagree = Doubt::Disagree { plain, other, mapped: "198.51.100.7:4000".parse().unwrap() };
        assert_eq!(found(&answers), [disagree]);
        assert!(disagree.to_string().contains("192.0.2.2:3478 disagree"), "{disagree}");
    }

    #[test]
    fn addresses_that_nobody_has_are_doubted() {
        for mapped in ["224.0.0.1:4000", "255.255.255.255:4000", "127.0.0.1:4000", "[2001:db8::9]:4000"] {
            let doubts = found(&[("192.0.2.1:3478", mapped), ("192.0.2.2:3478", "203.0.113.9:4000")]);
            let [Doubt::Impossible { mapped: found, .. }] = doubts[..] else { panic!("{doubts:?}") };
            assert_eq!(found.to_string(), mapped);
        }
    }
}
