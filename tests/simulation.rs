//! The simulation's promise: real quinn over simulated links, the same for the same seed.
#![cfg(feature = "sim")]

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use panda_network::sim::{self, Fate, LinkOptions, NatOptions, Sim, SimHost, SimNetwork, SimOptions};
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{
    AsyncUdpSocket, ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig,
    TokioRuntime,
};
use tokio::time::{sleep, timeout};

type Failure = Box<dyn Error + Send + Sync>;

const SERVER: [u8; 4] = [10, 0, 0, 1];
const CLIENT: [u8; 4] = [10, 0, 0, 2];
const THIRD: [u8; 4] = [10, 0, 0, 3];
const SECOND: Duration = Duration::from_secs(1);

fn ip(octets: [u8; 4]) -> IpAddr {
    octets.into()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A link as bad as a train ride: 20 % loss, jitter larger than the gap between packets, reordering, copies.
fn bad_link() -> LinkOptions {
    LinkOptions::new()
        .with_latency(millis(30))
        .with_jitter(millis(10))
        .with_loss(0.2)
        .with_reordering(0.1, millis(20))
        .with_duplication(0.05)
}

/// A quinn server that sends every stream back, and a client of it.
struct Echo {
    sim: Sim,
    network: SimNetwork,
    server_config: ServerConfig,
    client_config: ClientConfig,
}

impl Echo {
    fn new(sim: &Sim, network: &SimNetwork) -> Result<Self, Failure> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut params = rcgen::CertificateParams::new(vec!["server".to_owned()])?;
        params.serial_number = Some(1_u64.into());
        let certificate = params.self_signed(&key)?.der().clone();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone())?;
        let server_config = ServerConfig::with_single_cert(vec![certificate], key.into())?;
        let mut client_config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        let mut transport = quinn::TransportConfig::default();
        transport.max_idle_timeout(Some(Duration::from_secs(10).try_into()?)).keep_alive_interval(Some(SECOND));
        client_config.transport_config(Arc::new(transport));
        Ok(Self { sim: sim.clone(), network: network.clone(), server_config, client_config })
    }

    fn endpoint(&self, name: &str, host: &SimHost, server: Option<ServerConfig>) -> Result<Endpoint, Failure> {
        let socket = host.bind(4433)?;
        let mut config = EndpointConfig::default();
        config.rng_seed(Some(self.sim.derive_seed(name)));
        Ok(Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))?)
    }

    fn serve(&self) -> Result<Endpoint, Failure> {
        let endpoint = self.endpoint("server", &self.network.host(ip(SERVER)), Some(self.server_config.clone()))?;
        let accepting = endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                tokio::spawn(async move { echo_streams(incoming.await?).await });
            }
        });
        Ok(endpoint)
    }

    async fn connect(&self) -> Result<(Endpoint, Connection), Failure> {
        self.connect_from(&self.network.host(ip(CLIENT))).await
    }

    async fn connect_from(&self, client: &SimHost) -> Result<(Endpoint, Connection), Failure> {
        let mut endpoint = self.endpoint("client", client, None)?;
        endpoint.set_default_client_config(self.client_config.clone());
        let connection = endpoint.connect((SERVER, 4433).into(), "server")?.await?;
        Ok((endpoint, connection))
    }
}

/// A stream that its client gives up ends alone.
async fn echo_streams(connection: Connection) -> Result<(), Failure> {
    loop {
        let (send, receive) = connection.accept_bi().await?;
        tokio::spawn(echo_stream(send, receive));
    }
}

async fn echo_stream(mut send: SendStream, mut receive: RecvStream) -> Result<(), Failure> {
    send.write_all(&receive.read_to_end(1 << 20).await?).await?;
    Ok(send.finish()?)
}

async fn ask(connection: &Connection, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(bytes).await?;
    send.finish()?;
    Ok(receive.read_to_end(1 << 20).await?)
}

/// Connects over a bad link, echoes 20 kB through a short partition, and returns the digest and what came back.
fn eventful_run(seed: u64) -> Result<(u64, Vec<u8>), Failure> {
    sim::run(seed, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(bad_link()));
        let echo = Echo::new(&sim, &network)?;
        let _server = echo.serve()?;
        let (_client, connection) = echo.connect().await?;
        network.partition(&[ip(CLIENT)], &[ip(SERVER)]);
        let cut = network.clone();
        tokio::spawn(async move {
            sleep(SECOND).await;
            cut.heal();
        });
        let answer = ask(&connection, &[7; 20_000]).await?;
        sleep(SECOND).await;
        Ok((network.trace_digest(), answer))
    })
}

#[test]
fn quinn_moves_data_through_loss_jitter_and_reordering() -> Result<(), Failure> {
    sim::run(1, |sim| async move {
        let network = SimNetwork::new(sim.options().with_default_link(bad_link()));
        let echo = Echo::new(&sim, &network)?;
        let _server = echo.serve()?;
        let (_client, connection) = echo.connect().await?;
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        assert!(ask(&connection, &sent).await? == sent, "the echo differs from what was sent");
        let stats = network.stats();
        let lost = stats.lost as f64 / stats.sent as f64;
        assert!((0.15..0.25).contains(&lost), "{:.0} % lost", lost * 100.0);
        Ok(())
    })
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() -> Result<(), Failure> {
    let mut digests = Vec::new();
    for seed in 0..20 {
        let (first, second) = (eventful_run(seed)?, eventful_run(seed)?);
        assert!(first == second, "two runs with seed {seed} differ");
        digests.push(first.0);
    }
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 20);
    Ok(())
}

#[test]
fn a_partition_stops_traffic_and_healing_resumes_it() -> Result<(), Failure> {
    sim::run(2, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let echo = Echo::new(&sim, &network)?;
        let _server = echo.serve()?;
        let (_client, connection) = echo.connect().await?;
        network.partition(&[ip(CLIENT)], &[ip(SERVER), ip(THIRD)]);
        let before = network.stats().delivered;
        let asked = timeout(Duration::from_secs(5), ask(&connection, b"anybody there?"));
        assert!(asked.await.is_err());
        assert_eq!(network.stats().delivered, before);
        network.heal();
        assert_eq!(ask(&connection, b"and now?").await?, b"and now?");
        Ok(())
    })
}

#[test]
fn an_isolated_host_comes_back_with_its_connections() -> Result<(), Failure> {
    sim::run(3, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let echo = Echo::new(&sim, &network)?;
        let _server = echo.serve()?;
        let (_client, connection) = echo.connect().await?;
        network.isolate(ip(SERVER));
        assert!(timeout(SECOND, ask(&connection, b"1")).await.is_err());
        network.reconnect(ip(SERVER));
        assert_eq!(ask(&connection, b"2").await?, b"2");
        Ok(())
    })
}

#[test]
fn a_connection_goes_with_its_client_from_one_nat_to_another_and_through_reboots() -> Result<(), Failure> {
    sim::run(17, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let echo = Echo::new(&sim, &network)?;
        let _server = echo.serve()?;
        let wifi = network.nat([198, 51, 100, 1].into(), NatOptions::symmetric())?;
        let carrier = network.nat([198, 51, 100, 2].into(), NatOptions::carrier_grade())?;
        let laptop = wifi.host([192, 168, 1, 2].into());
        let (_client, connection) = echo.connect_from(&laptop).await?;
        assert_eq!(ask(&connection, b"from wifi").await?, b"from wifi");
        laptop.move_to(carrier.inside(), [100, 64, 0, 2].into())?;
        assert_eq!(ask(&connection, b"from mobile").await?, b"from mobile");
        carrier.reboot_with_address([198, 51, 100, 3].into())?;
        assert_eq!(ask(&connection, b"after a reboot").await?, b"after a reboot");
        Ok(())
    })
}

#[test]
fn a_crashed_host_says_no_goodbye_and_restarts_on_its_address() -> Result<(), Failure> {
    sim::run(4, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let echo = Echo::new(&sim, &network)?;
        let _crashed = echo.serve()?;
        let (client, connection) = echo.connect().await?;
        ask(&connection, b"settle").await?;
        let crashed_at = sim.now();
        network.crash(ip(SERVER));
        let reason = connection.closed().await;
        assert!(matches!(reason, quinn::ConnectionError::TimedOut), "{reason}");
        assert!(sim.now() - crashed_at >= Duration::from_secs(9), "noticed after {:?}", sim.now() - crashed_at);
        let _restarted = echo.serve()?;
        let connection = client.connect((SERVER, 4433).into(), "server")?.await?;
        assert_eq!(ask(&connection, b"back?").await?, b"back?");
        Ok(())
    })
}

#[test]
fn the_old_socket_of_a_crashed_host_can_do_nothing_to_the_new_one() -> Result<(), Failure> {
    sim::run(16, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let (peer, old) = (network.bind((CLIENT, 1).into())?, network.bind((SERVER, 1).into())?);
        network.crash(ip(SERVER));
        let new = network.bind(old.address())?;
        old.send_to("from the grave", peer.address());
        peer.send_to("hello", new.address());
        assert!(timeout(SECOND, old.recv_from()).await.is_err());
        drop(old);
        assert_eq!(new.recv_from().await, ("hello".into(), peer.address()));
        new.send_to("alive", peer.address());
        assert_eq!(peer.recv_from().await, ("alive".into(), new.address()));
        Ok(())
    })
}

#[test]
fn a_dropped_endpoint_frees_its_address() -> Result<(), Failure> {
    sim::run(5, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let echo = Echo::new(&sim, &network)?;
        let _server = echo.serve()?;
        let (client, connection) = echo.connect().await?;
        client.close(0_u32.into(), b"");
        client.wait_idle().await;
        drop((client, connection));
        sleep(SECOND).await;
        let (_client, connection) = echo.connect().await?;
        assert_eq!(ask(&connection, b"again").await?, b"again");
        Ok(())
    })
}

#[test]
fn datagrams_to_an_address_nobody_holds_vanish() -> Result<(), Failure> {
    sim::run(6, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let (sender, receiver) = (network.bind((CLIENT, 1).into())?, network.bind((SERVER, 1).into())?);
        let address = receiver.address();
        let taken = network.bind(address).map(|socket| socket.address());
        assert_eq!(taken, Err(sim::SimError::AddressInUse(address)));
        sender.send_to("in flight", address);
        drop(receiver);
        sleep(SECOND).await;
        assert_eq!(network.stats().unbound, 1);
        let receiver = network.bind(address)?;
        sender.send_to("after the restart", address);
        assert_eq!(receiver.recv_from().await, ("after the restart".into(), sender.address()));
        Ok(())
    })
}

#[test]
fn a_link_of_8_mbit_carries_a_megabyte_in_a_second() -> Result<(), Failure> {
    sim::run(7, |sim| async move {
        let link = LinkOptions::new().with_latency(millis(20)).with_bandwidth(8_000_000).with_queue(1 << 20);
        let network = SimNetwork::new(sim.options().with_default_link(link));
        let (sender, receiver) = (network.bind((CLIENT, 1).into())?, network.bind((SERVER, 1).into())?);
        (0..1_000).for_each(|_| sender.send_to(vec![0; 1_000], receiver.address()));
        for _ in 0..1_000 {
            receiver.recv_from().await;
        }
        assert_eq!(sim.now(), SECOND + millis(20));
        Ok(())
    })
}

#[test]
fn quinn_fills_a_slow_link_and_not_more() -> Result<(), Failure> {
    sim::run(8, |sim| async move {
        let link = LinkOptions::new().with_latency(millis(10)).with_bandwidth(8_000_000);
        let network = SimNetwork::new(sim.options());
        let echo = Echo::new(&sim, &network)?;
        let _server = echo.serve()?;
        let (_client, connection) = echo.connect().await?;
        network.set_link_both_ways(ip(CLIENT), ip(SERVER), link);
        let start = sim.now();
        ask(&connection, &vec![0; 1_000_000]).await?;
        // One second there and one second back, and what packet headers and congestion control add.
        let took = sim.now() - start;
        assert!((2.0..3.0).contains(&took.as_secs_f64()), "took {took:?}");
        Ok(())
    })
}

#[test]
fn quinn_finds_the_mtu_of_the_link() -> Result<(), Failure> {
    sim::run(9, |sim| async move {
        let link = LinkOptions::new().with_mtu(1_300);
        let network = SimNetwork::new(sim.options().with_default_link(link));
        let echo = Echo::new(&sim, &network)?;
        let _server = echo.serve()?;
        let (_client, connection) = echo.connect().await?;
        ask(&connection, &[0; 100_000]).await?;
        sleep(SECOND).await;
        let found = connection.stats().path.current_mtu;
        assert!((1_280..=1_300).contains(&found), "found {found}");
        assert!(network.stats().too_large > 0);
        Ok(())
    })
}

#[test]
fn a_datagram_that_overtakes_another_is_received_first() -> Result<(), Failure> {
    sim::run(10, |sim| async move {
        let network = SimNetwork::new(sim.options());
        network.set_link(ip(CLIENT), ip(SERVER), LinkOptions::new().with_latency(millis(500)));
        let receiver = network.bind((SERVER, 1).into())?;
        let (slow, fast) = (network.bind((CLIENT, 1).into())?, network.bind((THIRD, 1).into())?);
        slow.send_to("slow", receiver.address());
        let receiving = receiver.clone();
        let first = tokio::spawn(async move { receiving.recv_from().await });
        sleep(millis(100)).await; // the network sleeps until the slow one arrives
        fast.send_to("fast", receiver.address());
        assert_eq!(first.await?, ("fast".into(), fast.address()));
        assert_eq!(sim.now(), millis(101));
        assert_eq!(receiver.recv_from().await, ("slow".into(), slow.address()));
        assert_eq!(sim.now(), millis(500));
        Ok(())
    })
}

#[test]
fn a_batch_arrives_as_its_datagrams_with_their_ecn_bits() -> Result<(), Failure> {
    sim::run(11, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let (sender, receiver) = (network.bind((CLIENT, 1).into())?, network.bind((SERVER, 1).into())?);
        let destination = receiver.address();
        let ecn = Some(EcnCodepoint::Ect0);
        let contents = &[1, 1, 1, 2, 2, 2, 3];
        sender.try_send(&Transmit { destination, ecn, contents, segment_size: Some(3), src_ip: None })?;
        sender.try_send(&Transmit { destination, ecn: None, contents: &[4], segment_size: None, src_ip: None })?;
        sleep(SECOND).await;
        let mut storage = [[0; 8]; 5];
        let mut buffers = storage.each_mut().map(|buffer| std::io::IoSliceMut::new(buffer));
        let mut metas = [RecvMeta::default(); 5];
        let count = std::future::poll_fn(|cx| receiver.poll_recv(cx, &mut buffers, &mut metas)).await?;
        let received: Vec<_> = metas[..count].iter().map(|meta| (meta.addr, meta.len, meta.ecn)).collect();
        let from = sender.address();
        assert_eq!(received, [(from, 3, ecn), (from, 3, ecn), (from, 1, ecn), (from, 1, None)]);
        assert_eq!(storage.map(|buffer| buffer[0]), [1, 2, 3, 4, 0]);
        Ok(())
    })
}

#[test]
fn hosts_may_have_ipv6_addresses() -> Result<(), Failure> {
    sim::run(15, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let (alice, bob) = (network.bind("[2001:db8::1]:1".parse()?)?, network.bind("[2001:db8::2]:1".parse()?)?);
        alice.send_to("hello", bob.address());
        assert_eq!(bob.recv_from().await, ("hello".into(), alice.address()));
        Ok(())
    })
}

#[test]
fn a_socket_that_is_not_read_drops_the_newest_and_counts_them() -> Result<(), Failure> {
    sim::run(12, |sim| async move {
        let network = SimNetwork::new(sim.options().with_socket_queue(2).with_recorded_events(10));
        let (sender, receiver) = (network.bind((CLIENT, 1).into())?, network.bind((SERVER, 1).into())?);
        for payload in ["a", "b", "c"] {
            sender.send_to(payload, receiver.address());
        }
        sleep(SECOND).await;
        assert_eq!((receiver.recv_from().await.0, receiver.recv_from().await.0), ("a".into(), "b".into()));
        let fates: Vec<_> = network.trace().iter().map(|event| event.fate).collect();
        assert_eq!(fates, [Fate::Delivered, Fate::Delivered, Fate::SocketFull]);
        Ok(())
    })
}

#[test]
fn ephemeral_ports_are_free_ones_and_only_hosts_can_bind() -> Result<(), Failure> {
    sim::run(13, |sim| async move {
        let network = SimNetwork::new(sim.options());
        let host = network.host(ip(CLIENT));
        let _fixed = host.bind(49_153)?;
        let (first, second) = (host.bind(0)?, host.bind(0)?);
        assert_eq!((first.address().port(), second.address().port()), (49_152, 49_154));
        let anywhere = SocketAddr::from(([0, 0, 0, 0], 1));
        assert_eq!(network.bind(anywhere).err(), Some(sim::SimError::NotAHost(anywhere.ip())));
        Ok(())
    })
}

#[test]
fn a_network_outlives_its_run_unchanged() -> Result<(), Failure> {
    let (network, digest) = sim::run(14, |sim| async move {
        let network = SimNetwork::new(SimOptions::new(sim.seed()));
        let socket = network.bind((CLIENT, 1).into())?;
        socket.send_to("never arrives", (SERVER, 1).into());
        Ok::<_, Failure>((network.clone(), network.trace_digest()))
    })?;
    std::thread::sleep(millis(5));
    assert_eq!((network.trace_digest(), network.stats().in_flight), (digest, 1));
    Ok(())
}
