//! The simulation's NATs and firewalls behave as they say: measured from inside as RFC 5780 does it, and by punching.
#![cfg(feature = "sim")]

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use panda_network::net::HostNetwork;
use panda_network::sim::{
    self, Behaviour, FirewallOptions, LinkOptions, NatOptions, PortAllocation, Sim, SimError, SimHost, SimNat,
    SimNetwork, SimSite, SimSocket,
};
use panda_network::{DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, StartFrom};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use Behaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent};

type Failure = Box<dyn Error + Send + Sync>;

const SECOND: Duration = Duration::from_secs(1);
/// Where a home's laptop lives; in every home.
const LAPTOP: [u8; 4] = [192, 168, 1, 2];
const PHONE: [u8; 4] = [192, 168, 1, 3];

fn ip(octets: [u8; 4]) -> IpAddr {
    octets.into()
}

fn home(number: u8) -> IpAddr {
    ip([198, 51, 100, number])
}

/// Servers with two addresses and two ports each. What they get they answer with the sender's address; a request that
/// names another of them is answered from there.
struct Servers {
    sockets: Vec<Arc<SimSocket>>,
}

impl Servers {
    const ADDRESSES: [[u8; 4]; 2] = [[203, 0, 113, 1], [203, 0, 113, 2]];
    const PORTS: [u16; 2] = [3478, 3479];

    fn start(network: &SimNetwork) -> Result<Self, SimError> {
        let mut sockets = Vec::new();
        for (address, port) in Self::ADDRESSES.iter().flat_map(|address| Self::PORTS.map(|port| (address, port))) {
            sockets.push(network.bind((*address, port).into())?);
        }
        for socket in sockets.clone() {
            let all = sockets.clone();
            tokio::spawn(async move {
                loop {
                    let (request, from) = socket.recv_from().await;
                    let answerer = request.first().and_then(|index| all.get(usize::from(*index)));
                    answerer.unwrap_or(&socket).send_to(from.to_string(), from);
                }
            });
        }
        Ok(Self { sockets })
    }

    fn address(&self, index: usize) -> SocketAddr {
        self.sockets[index].address()
    }

    /// Asks server `asked` for an answer from server `answering`: our address as it sees it, if the answer gets through.
    async fn ask(&self, socket: &SimSocket, asked: usize, answering: usize) -> Option<SocketAddr> {
        socket.send_to(vec![answering as u8], self.address(asked));
        let (answer, from) = timeout(SECOND, socket.recv_from()).await.ok()?;
        assert_eq!(from, self.address(answering), "the answer of another request");
        String::from_utf8_lossy(&answer).parse().ok()
    }

    /// RFC 5780, section 4.3, with a new socket.
    async fn mapping(&self, host: &SimHost) -> Result<Behaviour, Failure> {
        let socket = host.bind(0)?;
        let first = self.ask(&socket, 0, 0).await.ok_or("no answer")?;
        let other_port = self.ask(&socket, 1, 1).await.ok_or("no answer")?;
        let other_address = self.ask(&socket, 2, 2).await.ok_or("no answer")?;
        Ok(match (first == other_port, first == other_address) {
            (true, true) => EndpointIndependent,
            (true, false) => AddressDependent,
            (false, _) => AddressAndPortDependent,
        })
    }

    /// RFC 5780, section 4.4, with a new socket.
    async fn filtering(&self, host: &SimHost) -> Result<Behaviour, Failure> {
        let socket = host.bind(0)?;
        self.ask(&socket, 0, 0).await.ok_or("no answer")?;
        if self.ask(&socket, 0, 3).await.is_some() {
            return Ok(EndpointIndependent);
        }
        let from_other_port = self.ask(&socket, 0, 1).await.is_some();
        Ok(if from_other_port { AddressDependent } else { AddressAndPortDependent })
    }

    /// How a socket looks from outside.
    async fn reflect(&self, socket: &SimSocket) -> Option<SocketAddr> {
        self.ask(socket, 0, 0).await
    }
}

/// A network with servers.
fn world(sim: &Sim) -> Result<(SimNetwork, Servers), SimError> {
    let network = SimNetwork::new(sim.options());
    let servers = Servers::start(&network)?;
    Ok((network, servers))
}

fn presets() -> [(&'static str, NatOptions, Behaviour, Behaviour); 6] {
    let strict = AddressAndPortDependent;
    [
        ("full cone", NatOptions::full_cone(), EndpointIndependent, EndpointIndependent),
        ("address-restricted", NatOptions::address_restricted(), EndpointIndependent, AddressDependent),
        ("port-restricted", NatOptions::port_restricted(), EndpointIndependent, strict),
        ("symmetric", NatOptions::symmetric(), strict, strict),
        ("symmetric, preserving ports", NatOptions::symmetric_preserving_ports(), strict, strict),
        ("carrier-grade", NatOptions::carrier_grade(), EndpointIndependent, strict),
    ]
}

#[test]
fn each_preset_measures_as_what_it_is_called() -> Result<(), Failure> {
    for (name, options, mapping, filtering) in presets() {
        sim::run(1, |sim| async move {
            let (network, servers) = world(&sim)?;
            let laptop = network.nat(home(1), options)?.host(ip(LAPTOP));
            assert_eq!(servers.mapping(&laptop).await?, mapping, "mapping of {name}");
            assert_eq!(servers.filtering(&laptop).await?, filtering, "filtering of {name}");
            Ok::<_, Failure>(())
        })?;
    }
    Ok(())
}

#[test]
fn all_nine_combinations_of_mapping_and_filtering_measure_as_set() -> Result<(), Failure> {
    let all = [EndpointIndependent, AddressDependent, AddressAndPortDependent];
    for (mapping, filtering) in all.into_iter().flat_map(|mapping| all.map(|filtering| (mapping, filtering))) {
        sim::run(2, |sim| async move {
            let (network, servers) = world(&sim)?;
            let options = NatOptions::new().with_mapping(mapping).with_filtering(filtering);
            let laptop = network.nat(home(1), options)?.host(ip(LAPTOP));
            assert_eq!(servers.mapping(&laptop).await?, mapping);
            assert_eq!(servers.filtering(&laptop).await?, filtering, "with mapping {mapping:?}");
            Ok::<_, Failure>(())
        })?;
    }
    Ok(())
}

#[test]
fn ports_are_preserved_if_free_random_or_in_order() -> Result<(), Failure> {
    sim::run(3, |sim| async move {
        let (network, servers) = world(&sim)?;
        let port = async |nat: &SimNat, address, port| -> Result<u16, Failure> {
            let socket = nat.host(ip(address)).bind(port)?;
            let seen = servers.reflect(&socket).await.ok_or("no answer")?;
            Ok(seen.port())
        };
        let preserving = network.nat(home(1), NatOptions::new())?;
        assert_eq!(port(&preserving, LAPTOP, 4000).await?, 4000);
        let second = port(&preserving, PHONE, 4000).await?;
        assert!(second != 4000 && second >= 1024, "{second}");
        // The well-known ports are not preserved.
        assert!(port(&preserving, LAPTOP, 80).await? >= 1024);

        let random = network.nat(home(2), NatOptions::new().with_ports(PortAllocation::Random))?;
        let (first, second) = (port(&random, LAPTOP, 4000).await?, port(&random, LAPTOP, 4001).await?);
        assert!(first != 4000 && second != first + 1, "{first}, {second}");

        let in_order = network.nat(home(3), NatOptions::new().with_ports(PortAllocation::Sequential))?;
        let first = port(&in_order, LAPTOP, 4000).await?;
        assert_eq!([port(&in_order, LAPTOP, 4001).await?, port(&in_order, PHONE, 9).await?], [first + 1, first + 2]);
        Ok(())
    })
}

#[test]
fn the_first_remote_of_a_symmetric_nat_that_preserves_ports_sees_the_inside_port() -> Result<(), Failure> {
    sim::run(4, |sim| async move {
        let (network, servers) = world(&sim)?;
        let nat = network.nat(home(1), NatOptions::symmetric_preserving_ports())?;
        let socket = nat.host(ip(LAPTOP)).bind(4000)?;
        assert_eq!(servers.ask(&socket, 0, 0).await, Some(SocketAddr::new(home(1), 4000)));
        assert_ne!(servers.ask(&socket, 1, 1).await, Some(SocketAddr::new(home(1), 4000)));
        Ok(())
    })
}

/// Makes a mapping, is silent for `silence` while the server speaks each `inbound`, and tells whether it still gets through.
async fn survives(options: NatOptions, silence: Duration, inbound: Option<Duration>) -> Result<bool, Failure> {
    let network = SimNetwork::new(panda_network::sim::SimOptions::new(1));
    let server = network.bind((Servers::ADDRESSES[0], 1).into())?;
    let socket = network.nat(home(1), options)?.host(ip(LAPTOP)).bind(0)?;
    socket.send_to("open", server.address());
    let (_, mapped) = server.recv_from().await;
    let mut silent_for = Duration::ZERO;
    while let Some(pause) = inbound.filter(|pause| silent_for + *pause < silence) {
        sleep(pause).await;
        silent_for += pause;
        server.send_to("keep", mapped);
    }
    sleep(silence - silent_for).await;
    while timeout(Duration::ZERO, socket.recv_from()).await.is_ok() {}
    server.send_to("still there?", mapped);
    Ok(timeout(SECOND, socket.recv_from()).await.is_ok())
}

#[test]
fn a_mapping_ends_120_seconds_after_the_last_packet_from_inside() -> Result<(), Failure> {
    sim::run(5, |_| async move {
        let (just_before, just_after) = (Duration::from_millis(119_990), Duration::from_millis(120_010));
        let half = Some(60 * SECOND);
        assert!(survives(NatOptions::new(), just_before, None).await?);
        assert!(!survives(NatOptions::new(), just_after, None).await?);
        assert!(!survives(NatOptions::new(), just_after, half).await?, "refreshed by inbound");
        let refreshing = NatOptions::new().with_refresh_by_inbound(true);
        assert!(survives(refreshing.clone(), 150 * SECOND, half).await?);
        assert!(!survives(refreshing, just_after, None).await?);
        assert!(!survives(NatOptions::new().with_udp_timeout(30 * SECOND), 31 * SECOND, None).await?);
        Ok(())
    })
}

#[test]
fn packets_from_inside_keep_a_mapping_and_its_port() -> Result<(), Failure> {
    sim::run(6, |sim| async move {
        let (network, servers) = world(&sim)?;
        let nat = network.nat(home(1), NatOptions::new().with_ports(PortAllocation::Random))?;
        let socket = nat.host(ip(LAPTOP)).bind(0)?;
        let first = servers.reflect(&socket).await;
        for _ in 0..5 {
            sleep(100 * SECOND).await;
            assert_eq!(servers.reflect(&socket).await, first);
        }
        sleep(130 * SECOND).await;
        assert_eq!(nat.mappings(), 0);
        assert_ne!(servers.reflect(&socket).await, first);
        Ok(())
    })
}

#[test]
fn a_full_table_takes_no_new_mapping_until_one_expires() -> Result<(), Failure> {
    sim::run(7, |sim| async move {
        let (network, servers) = world(&sim)?;
        let nat = network.nat(home(1), NatOptions::new().with_max_mappings(2))?;
        let laptop = nat.host(ip(LAPTOP));
        let sockets = [laptop.bind(1)?, laptop.bind(2)?, laptop.bind(3)?];
        assert!(servers.reflect(&sockets[0]).await.is_some() && servers.reflect(&sockets[1]).await.is_some());
        assert_eq!(servers.reflect(&sockets[2]).await, None);
        assert_eq!((network.stats().nat_full, nat.mappings()), (1, 2));
        sleep(120 * SECOND).await;
        assert!(servers.reflect(&sockets[2]).await.is_some());
        Ok(())
    })
}

#[test]
fn hairpinning_lets_two_hosts_meet_at_the_public_address_and_only_if_it_is_on() -> Result<(), Failure> {
    for hairpinning in [true, false] {
        sim::run(8, |sim| async move {
            let (network, servers) = world(&sim)?;
            let nat = network.nat(home(1), NatOptions::full_cone().with_hairpinning(hairpinning))?;
            let (laptop, phone) = (nat.host(ip(LAPTOP)).bind(1111)?, nat.host(ip(PHONE)).bind(2222)?);
            let target = servers.reflect(&phone).await.ok_or("no answer")?;
            laptop.send_to("hello", target);
            let got = timeout(SECOND, phone.recv_from()).await.ok();
            // RFC 4787, section 6: the sender appears with its public address.
            let expected = hairpinning.then(|| (Bytes::from("hello"), SocketAddr::new(home(1), 1111)));
            assert_eq!(got, expected);
            Ok::<_, Failure>(())
        })?;
    }
    Ok(())
}

#[test]
fn two_homes_use_the_same_private_addresses_and_do_not_see_each_other() -> Result<(), Failure> {
    sim::run(9, |sim| async move {
        let (network, _) = world(&sim)?;
        let (first, second) = (network.nat(home(1), NatOptions::new())?, network.nat(home(2), NatOptions::new())?);
        let (here, there) = (first.host(ip(LAPTOP)).bind(1)?, second.host(ip(LAPTOP)).bind(1)?);
        let neighbour = second.host(ip(PHONE)).bind(1)?;
        assert_eq!(here.address(), there.address());
        here.send_to("to the other home", neighbour.address());
        assert!(timeout(SECOND, neighbour.recv_from()).await.is_err());
        assert_eq!((network.stats().unroutable, first.mappings()), (1, 0));
        there.send_to("to my own", neighbour.address());
        assert_eq!(neighbour.recv_from().await, ("to my own".into(), there.address()));
        assert_eq!(second.mappings(), 0);
        Ok(())
    })
}

/// Learns both public addresses from a server and sends to each other until both hear: true if both did.
async fn punch(servers: &Servers, left: &SimHost, right: &SimHost) -> Result<bool, Failure> {
    let (left, right) = (left.bind(0)?, right.bind(0)?);
    let at_left = servers.reflect(&left).await.ok_or("no answer")?;
    let at_right = servers.reflect(&right).await.ok_or("no answer")?;
    let (left_hears, right_hears) = tokio::join!(punch_side(&left, at_right), punch_side(&right, at_left));
    Ok(left_hears && right_hears)
}

/// Sends to where the peer should be, and to where it turns out to be. A packet that says "heard" proves both ways.
async fn punch_side(socket: &SimSocket, expected: SocketAddr) -> bool {
    let (mut peer, mut say, mut is_through) = (expected, "anybody?", false);
    for _ in 0..20 {
        socket.send_to(say, peer);
        let next_round = Instant::now() + SECOND / 10;
        while let Ok((said, from)) = timeout_at(next_round, socket.recv_from()).await {
            (peer, say) = (from, "heard");
            is_through |= said == "heard";
        }
    }
    is_through
}

#[test]
fn every_pair_punches_but_symmetric_with_port_restricted_or_symmetric() -> Result<(), Failure> {
    let kinds = presets();
    for (left, right) in kinds.iter().flat_map(|left| kinds.iter().map(move |right| (left, right))) {
        let is_symmetric = |kind: &(_, _, Behaviour, _)| kind.2 == AddressAndPortDependent;
        let is_strict = |kind: &(_, _, _, Behaviour)| kind.3 == AddressAndPortDependent;
        let hopeless = (is_symmetric(left) && is_strict(right)) || (is_strict(left) && is_symmetric(right));
        let punched = sim::run(10, |sim| async move {
            let (network, servers) = world(&sim)?;
            let at_left = network.nat(home(1), left.1.clone())?.host(ip(LAPTOP));
            let at_right = network.nat(home(2), right.1.clone())?.host(ip(LAPTOP));
            punch(&servers, &at_left, &at_right).await
        })?;
        assert_eq!(punched, !hopeless, "{} with {}", left.0, right.0);
    }
    Ok(())
}

#[test]
fn behind_a_carrier_a_home_is_translated_twice_and_punches() -> Result<(), Failure> {
    sim::run(11, |sim| async move {
        let (network, servers) = world(&sim)?;
        let carrier = network.nat(home(1), NatOptions::carrier_grade())?;
        let first = carrier.nat(ip([100, 64, 0, 2]), NatOptions::full_cone())?;
        let second = carrier.nat(ip([100, 64, 0, 3]), NatOptions::port_restricted())?;
        let elsewhere = network.nat(home(2), NatOptions::port_restricted())?;
        let (one, two, three) = (first.host(ip(LAPTOP)), second.host(ip(LAPTOP)), elsewhere.host(ip(LAPTOP)));

        let seen = servers.reflect(&*one.bind(4000)?).await.ok_or("no answer")?;
        assert_eq!(seen.ip(), home(1));
        assert_eq!((first.mappings(), carrier.mappings()), (1, 1));
        // The strictest box on the way decides.
        assert_eq!(servers.mapping(&one).await?, EndpointIndependent);
        assert_eq!(servers.filtering(&one).await?, AddressAndPortDependent);

        assert!(punch(&servers, &one, &three).await?);
        assert!(punch(&servers, &one, &two).await?, "by the carrier's hairpinning");
        Ok(())
    })
}

#[test]
fn behind_a_carrier_without_hairpinning_neighbours_do_not_punch() -> Result<(), Failure> {
    sim::run(12, |sim| async move {
        let (network, servers) = world(&sim)?;
        let carrier = network.nat(home(1), NatOptions::carrier_grade().with_hairpinning(false))?;
        let homes = [
            carrier.nat(ip([100, 64, 0, 2]), NatOptions::new())?,
            carrier.nat(ip([100, 64, 0, 3]), NatOptions::new())?,
        ];
        let [one, two] = homes.map(|nat| nat.host(ip(LAPTOP)));
        assert!(!punch(&servers, &one, &two).await?);
        Ok(())
    })
}

/// Whether a datagram gets from one socket to another's address.
async fn reaches(from: &SimSocket, to: &SimSocket, address: SocketAddr) -> bool {
    from.send_to("hello", address);
    timeout(SECOND, to.recv_from()).await.is_ok()
}

#[test]
fn an_inbound_blocking_firewall_lets_only_answers_in() -> Result<(), Failure> {
    sim::run(13, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let guarded = network.firewall(FirewallOptions::inbound_blocked());
        let (inside, neighbour) =
            (guarded.host("2001:db8::1".parse()?).bind(1)?, guarded.host("2001:db8::2".parse()?).bind(1)?);
        let (outside, stranger) =
            (network.bind("[2001:db8:1::1]:1".parse()?)?, network.bind("[2001:db8:1::1]:2".parse()?)?);
        assert!(!reaches(&outside, &inside, inside.address()).await);
        assert!(reaches(&inside, &outside, outside.address()).await);
        assert!(reaches(&outside, &inside, inside.address()).await, "an answer");
        assert!(!reaches(&stranger, &inside, inside.address()).await, "another port is another flow");
        assert!(reaches(&neighbour, &inside, inside.address()).await, "neighbours are on the same side");
        sleep(121 * SECOND).await;
        assert!(!reaches(&outside, &inside, inside.address()).await, "the flow has ended");
        assert_eq!(network.stats().filtered, 3);
        Ok(())
    })
}

#[test]
fn no_udp_passes_the_firewalls_that_block_it_before_a_host_or_a_nat() -> Result<(), Failure> {
    for options in [FirewallOptions::udp_blocked(), FirewallOptions::tcp_443_only()] {
        sim::run(14, |sim| async move {
            let (network, servers) = world(&sim)?;
            let office: SimSite = network.firewall(options);
            let laptop = office.nat(home(1), NatOptions::new())?.host(ip(LAPTOP)).bind(1)?;
            let server = office.host(home(2)).bind(1)?;
            assert_eq!(servers.reflect(&laptop).await, None);
            assert_eq!(servers.reflect(&server).await, None);
            assert!(!reaches(&servers.sockets[0], &server, server.address()).await);
            Ok::<_, Failure>(())
        })?;
    }
    Ok(())
}

#[test]
fn a_host_that_moves_keeps_its_ports_and_sends_from_its_new_address() -> Result<(), Failure> {
    sim::run(15, |sim| async move {
        let (network, servers) = world(&sim)?;
        let (wifi, mobile) =
            (network.nat(home(1), NatOptions::new())?, network.nat(home(2), NatOptions::carrier_grade())?);
        let laptop = wifi.host(ip(LAPTOP));
        let socket = laptop.bind(4000)?;
        let before = servers.reflect(&socket).await.ok_or("no answer")?;
        assert_eq!(before, SocketAddr::new(home(1), 4000));

        laptop.move_to(mobile.inside(), ip([10, 0, 0, 7]))?;
        assert_eq!((laptop.ip(), socket.address()), (ip([10, 0, 0, 7]), (ip([10, 0, 0, 7]), 4000).into()));
        servers.sockets[0].send_to("to where it was", before);
        let after = servers.reflect(&socket).await.ok_or("no answer")?;
        assert_eq!(after.ip(), home(2));

        // Its place is free for another.
        let phone = wifi.host(ip(LAPTOP));
        assert_eq!(servers.reflect(&*phone.bind(4000)?).await, Some(before));
        let refused = laptop.move_to(wifi.inside(), ip(LAPTOP));
        assert_eq!(refused, Err(SimError::AddressTaken(ip(LAPTOP))));
        assert_eq!(laptop.ip(), ip([10, 0, 0, 7]));
        Ok(())
    })
}

#[test]
fn a_socket_on_one_address_stays_there_and_two_may_share_a_port() -> Result<(), Failure> {
    sim::run(22, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let (first, second, client) = (ip([203, 0, 113, 1]), ip([203, 0, 113, 2]), network.bind((LAPTOP, 1).into())?);
        let server = network.host(first);
        server.add_address(&network.internet(), second)?;
        let sockets = [server.bind_udp((first, 3478).into())?, server.bind_udp((second, 3478).into())?];
        assert_eq!(server.bind(3478).err(), Some(SimError::AddressInUse((first, 3478).into())));
        for socket in &sockets {
            socket.try_send(client.address(), b"hello")?;
            assert_eq!(client.recv_from().await.1, socket.local_address());
            client.send_to("and back", socket.local_address());
            let mut buffer = [0; 9];
            let received = std::future::poll_fn(|context| socket.poll_receive(context, &mut buffer)).await?;
            assert_eq!(received, (8, client.address()));
        }
        server.move_to(&network.internet(), second)?;
        sockets[0].try_send(client.address(), b"from an address that is gone")?;
        sockets[1].try_send(client.address(), b"still here")?;
        assert_eq!(client.recv_from().await.0, "still here");
        assert_eq!(network.stats().unroutable, 1);
        Ok(())
    })
}

#[test]
fn a_nat_that_reboots_has_forgotten_its_mappings_and_may_have_another_address() -> Result<(), Failure> {
    sim::run(16, |sim| async move {
        let (network, servers) = world(&sim)?;
        let nat = network.nat(home(1), NatOptions::full_cone().with_ports(PortAllocation::Random))?;
        let socket = nat.host(ip(LAPTOP)).bind(4000)?;
        let before = servers.reflect(&socket).await.ok_or("no answer")?;
        assert!(reaches(&servers.sockets[3], &socket, before).await);
        nat.reboot();
        assert!(!reaches(&servers.sockets[3], &socket, before).await);
        let after = servers.reflect(&socket).await.ok_or("no answer")?;
        assert!(after.ip() == before.ip() && after.port() != before.port(), "{before}, then {after}");

        nat.reboot_with_address(home(9))?;
        assert!(!reaches(&servers.sockets[3], &socket, after).await);
        assert_eq!(servers.reflect(&socket).await.map(|seen| seen.ip()), Some(home(9)));
        assert_eq!(
            (nat.public_ip(), nat.reboot_with_address(ip(Servers::ADDRESSES[0]))),
            (Some(home(9)), Err(SimError::AddressTaken(ip(Servers::ADDRESSES[0]))))
        );
        Ok(())
    })
}

#[test]
fn a_partition_and_an_isolation_of_a_nat_cut_all_behind_it_and_nothing_inside() -> Result<(), Failure> {
    sim::run(17, |sim| async move {
        let (network, servers) = world(&sim)?;
        let nat = network.nat(home(1), NatOptions::new())?;
        let (laptop, phone) = (nat.host(ip(LAPTOP)).bind(1)?, nat.host(ip(PHONE)).bind(1)?);
        network.partition(&[home(1)], &[ip(Servers::ADDRESSES[0])]);
        assert_eq!(servers.ask(&laptop, 0, 0).await, None);
        assert!(servers.ask(&laptop, 2, 2).await.is_some());
        network.heal();
        network.isolate(home(1));
        assert_eq!(servers.ask(&laptop, 2, 2).await, None);
        assert!(reaches(&laptop, &phone, phone.address()).await);
        nat.reconnect();
        assert!(servers.ask(&laptop, 0, 0).await.is_some());
        Ok(())
    })
}

#[test]
fn a_round_trip_is_the_sum_of_the_links_and_access_links_on_the_way() -> Result<(), Failure> {
    sim::run(18, |sim| async move {
        let link = |millis| LinkOptions::new().with_latency(Duration::from_millis(millis));
        let network = SimNetwork::new(sim.options().with_default_link(link(50)));
        let servers = Servers::start(&network)?;
        let round_trip = async |host: &SimHost| -> Result<Duration, Failure> {
            let (socket, start) = (host.bind(0)?, sim.now());
            servers.reflect(&socket).await.ok_or("no answer")?;
            Ok(sim.now() - start)
        };
        let plain = network.nat(home(1), NatOptions::new())?;
        assert_eq!(round_trip(&plain.host(ip(LAPTOP))).await?, Duration::from_millis(100));
        let wireless = plain.host(ip(PHONE)).with_access_link(link(3));
        assert_eq!(round_trip(&wireless).await?, Duration::from_millis(106));
        let far = network.nat(home(2), NatOptions::new().with_access_link(link(20)))?;
        assert_eq!(round_trip(&far.host(ip(LAPTOP)).with_access_link(link(1))).await?, Duration::from_millis(142));
        Ok(())
    })
}

#[test]
fn an_access_link_is_shared_by_all_who_use_it() -> Result<(), Failure> {
    sim::run(19, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let line = LinkOptions::new().with_bandwidth(800_000).with_queue(1 << 20);
        let nat = network.nat(home(1), NatOptions::new().with_access_link(line))?;
        let server = network.bind((Servers::ADDRESSES[0], 1).into())?;
        let senders = [nat.host(ip(LAPTOP)).bind(1)?, nat.host(ip(PHONE)).bind(1)?];
        for _ in 0..50 {
            senders.iter().for_each(|sender| sender.send_to(vec![0; 1_000], server.address()));
        }
        for _ in 0..100 {
            server.recv_from().await;
        }
        // 100 kB at 100 kB per second, and one millisecond for each of the two links.
        assert_eq!(sim.now(), SECOND + Duration::from_millis(2));
        Ok(())
    })
}

#[test]
fn a_host_with_two_families_sends_from_the_one_that_fits() -> Result<(), Failure> {
    sim::run(20, |sim| async move {
        let (network, servers) = world(&sim)?;
        let laptop = network.nat(home(1), NatOptions::new())?.host(ip(LAPTOP));
        laptop.add_address(&network.firewall(FirewallOptions::inbound_blocked()), "2001:db8::5".parse()?)?;
        let (socket, peer) = (laptop.bind(4000)?, network.bind("[2001:db8::9]:1".parse()?)?);
        assert_eq!(servers.reflect(&socket).await, Some(SocketAddr::new(home(1), 4000)));
        socket.send_to("over six", peer.address());
        assert_eq!(peer.recv_from().await, ("over six".into(), "[2001:db8::5]:4000".parse()?));
        Ok(())
    })
}

#[test]
fn a_node_behind_nats_edits_with_a_public_one() -> Result<(), Failure> {
    sim::run(21, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let carrier = network.nat(home(1), NatOptions::carrier_grade())?;
        let laptop = carrier.nat(ip([100, 64, 0, 2]), NatOptions::symmetric())?.host(ip(LAPTOP));
        let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let start = |directory: &TempDir, host: &SimHost, name| {
            let options = PandaNetworkOptions::new(directory.path()).with_durability(Durability::Process);
            PandaNetwork::start(options.with_simulation(host, 4000, sim.derive_seed(name)))
        };
        let public = start(&there, &network.host(ip([203, 0, 113, 9])), "public").await?;
        let hidden = start(&here, &laptop, "hidden").await?;
        let theirs = public.create().await?;
        let ours = hidden.open(theirs.ticket().await?).await?;
        let mut events = theirs.subscribe(StartFrom::Start).await?;
        ours.publish("from behind").await?;
        let stored = loop {
            let event = timeout(60 * SECOND, events.next()).await?.ok_or("the subscription ended")??;
            if let DocumentEvent::Operation(stored) = event {
                break stored;
            }
        };
        assert_eq!(stored.operation.payload().to_vec(), b"from behind");
        Ok(())
    })
}

#[test]
fn the_same_seed_gives_the_same_packets_through_nats() -> Result<(), Failure> {
    let life = |seed| {
        sim::run(seed, |sim| async move {
            let line = LinkOptions::new().with_loss(0.1).with_jitter(Duration::from_millis(7)).with_duplication(0.1);
            let network = SimNetwork::new(sim.options().with_default_link(line));
            let servers = Servers::start(&network)?;
            let carrier = network.nat(home(1), NatOptions::carrier_grade())?;
            let inner = carrier.nat(ip([100, 64, 0, 2]), NatOptions::symmetric())?;
            let laptop = inner.host(ip(LAPTOP));
            let socket = laptop.bind(0)?;
            for round in 0..40 {
                socket.send_to(vec![9; 100], servers.address(round % 4));
                sleep(SECOND / 3).await;
                if round == 20 {
                    laptop.move_to(carrier.inside(), ip([100, 64, 0, 3]))?;
                    inner.reboot();
                }
            }
            Ok::<_, Failure>(network.trace_digest())
        })
    };
    let digests = [life(1)?, life(1)?, life(2)?];
    assert_eq!(digests[0], digests[1]);
    assert_ne!(digests[0], digests[2]);
    Ok(())
}
