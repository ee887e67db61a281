//! Simulated TCP, names and interfaces, through the port that nodes and relays use.
#![cfg(feature = "sim")]

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use panda_network::net::{ByteStream, HostNetwork, StreamListener};
use panda_network::sim::{self, FirewallOptions, LinkOptions, NatOptions, Sim, SimHost, SimNetwork};
use tokio::time::{sleep, timeout};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const SERVER: [u8; 4] = [203, 0, 113, 1];
const CLIENT: [u8; 4] = [203, 0, 113, 2];
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn ip(octets: [u8; 4]) -> IpAddr {
    octets.into()
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn anywhere(port: u16) -> SocketAddr {
    ([0, 0, 0, 0], port).into()
}

type Stream = Box<dyn ByteStream>;

async fn accept(listener: &mut Box<dyn StreamListener>) -> io::Result<(Stream, SocketAddr)> {
    poll_fn(|context| listener.poll_accept(context)).await
}

async fn read(stream: &mut Stream, buffer: &mut [u8]) -> io::Result<usize> {
    poll_fn(|context| stream.poll_read(context, buffer)).await
}

async fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<usize> {
    poll_fn(|context| stream.poll_write(context, bytes)).await
}

async fn finish(stream: &mut Stream) -> io::Result<()> {
    poll_fn(|context| stream.poll_finish(context)).await
}

async fn write_all(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = write(stream, bytes).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}

async fn read_to_end(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let (mut all, mut buffer) = (Vec::new(), [0; 5_000]);
    loop {
        match read(stream, &mut buffer).await? {
            0 => return Ok(all),
            count => all.extend(&buffer[..count]),
        }
    }
}

fn pattern(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|n| (n % 251) as u8).collect()
}

/// A network and a host in it that sends every stream back on port 443.
fn world(sim: &Sim, link: LinkOptions) -> io::Result<(SimNetwork, SimHost)> {
    let network = SimNetwork::new(sim.options().with_default_link(link));
    let server = network.host(ip(SERVER));
    serve(&server)?;
    Ok((network, server))
}

fn serve(server: &SimHost) -> io::Result<()> {
    let mut listener = server.listen_tcp(anywhere(443))?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = accept(&mut listener).await {
            tokio::spawn(async move {
                let mut buffer = [0; 5_000];
                while let Ok(count @ 1..) = read(&mut stream, &mut buffer).await {
                    write_all(&mut stream, &buffer[..count]).await?;
                }
                finish(&mut stream).await
            });
        }
    });
    Ok(())
}

/// A connection of `client` to a listener of the server, both ends.
async fn pair(client: &SimHost, server: &SimHost) -> io::Result<(Stream, Stream)> {
    let mut listener = server.listen_tcp(anywhere(0))?;
    let address = SocketAddr::new(server.ip(), listener.local_address().port());
    let (near, far) = tokio::join!(client.connect_tcp(address), accept(&mut listener));
    Ok((near?, far?.0))
}

/// Sends bytes and reads the echo at the same time.
async fn echo(stream: &mut Stream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let (mut sent, mut finished, mut got, mut buffer) = (0, false, Vec::new(), [0; 5_000]);
    poll_fn(|context| {
        while sent < bytes.len() {
            let std::task::Poll::Ready(count) = stream.poll_write(context, &bytes[sent..])? else { break };
            sent += count;
        }
        if sent == bytes.len() && !finished {
            finished = stream.poll_finish(context)?.is_ready();
        }
        loop {
            match std::task::ready!(stream.poll_read(context, &mut buffer))? {
                0 => return std::task::Poll::Ready(Ok(())),
                count => got.extend(&buffer[..count]),
            }
        }
    })
    .await
    .map(|()| got)
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn a_connection_costs_one_round_trip_and_carries_bytes_both_ways() -> Result<(), Failure> {
    sim::run(1, |sim| async move {
        let (network, _) = world(&sim, LinkOptions::new().with_latency(millis(50)))?;
        let mut stream = network.host(ip(CLIENT)).connect_tcp((SERVER, 443).into()).await?;
        assert_eq!(sim.now(), millis(100));
        write_all(&mut stream, b"hello").await?;
        let mut answer = [0; 5];
        assert_eq!(read(&mut stream, &mut answer).await?, 5);
        assert_eq!((&answer, sim.now()), (b"hello", millis(200)));
        finish(&mut stream).await?;
        assert_eq!(read(&mut stream, &mut answer).await?, 0);
        assert_eq!(kind(write(&mut stream, b"more").await), Some(ErrorKind::BrokenPipe));
        Ok(())
    })
}

#[test]
fn every_byte_arrives_once_and_in_order_over_a_bad_link() -> Result<(), Failure> {
    for seed in 0..10 {
        sim::run(seed, |sim| async move {
            let link = LinkOptions::new()
                .with_latency(millis(20))
                .with_jitter(millis(10))
                .with_loss(0.05)
                .with_reordering(0.1, millis(15))
                .with_duplication(0.05);
            let (network, _) = world(&sim, link)?;
            let mut stream = network.host(ip(CLIENT)).connect_tcp((SERVER, 443).into()).await?;
            let sent = pattern(400_000);
            assert!(timeout(10 * MINUTE, echo(&mut stream, &sent)).await?? == sent, "the echo differs");
            Ok::<_, Failure>(())
        })?;
    }
    Ok(())
}

#[test]
fn a_stream_fills_a_link_with_a_queue() -> Result<(), Failure> {
    sim::run(2, |sim| async move {
        let link = LinkOptions::new().with_latency(millis(10)).with_bandwidth(8_000_000).with_queue(64 * 1024);
        let (network, server) = world(&sim, link)?;
        let (mut near, mut far) = pair(&network.host(ip(CLIENT)), &server).await?;
        let sent = pattern(2_000_000);
        let (got, ()) = tokio::try_join!(read_to_end(&mut far), async {
            write_all(&mut near, &sent).await?;
            finish(&mut near).await
        })?;
        assert!(got == sent, "what came differs");
        // Two seconds' worth of bytes; the rest is headers, slow start, and what the full queue dropped.
        assert!((2.0..3.5).contains(&sim.now().as_secs_f64()), "took {:?}", sim.now());
        Ok(())
    })
}

#[test]
fn a_writer_waits_for_a_reader_who_does_not_read() -> Result<(), Failure> {
    sim::run(3, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new())?;
        let (mut near, mut far) = pair(&network.host(ip(CLIENT)), &server).await?;
        let mut taken = 0;
        while let Ok(count) = timeout(SECOND, write(&mut near, &[7; 10_000])).await {
            taken += count?;
        }
        // What waits here, and what waits there.
        assert_eq!(taken, 512 * 1024);
        // A reader that wakes up after a long while finds everything.
        sleep(10 * MINUTE).await;
        let reading = tokio::spawn(async move { read_to_end(&mut far).await });
        write_all(&mut near, &[7; 100_000]).await?;
        finish(&mut near).await?;
        assert_eq!(timeout(MINUTE, reading).await???.len(), 512 * 1024 + 100_000);
        Ok(())
    })
}

#[test]
fn a_port_where_nobody_listens_refuses_and_one_behind_a_firewall_is_silent() -> Result<(), Failure> {
    sim::run(4, |sim| async move {
        let (network, _) = world(&sim, LinkOptions::new().with_latency(millis(50)))?;
        let client = network.host(ip(CLIENT));
        assert_eq!(kind(client.connect_tcp((SERVER, 80).into()).await), Some(ErrorKind::ConnectionRefused));
        assert_eq!(sim.now(), millis(100));

        let guarded = network.firewall(FirewallOptions::inbound_blocked()).host(ip([203, 0, 113, 9]));
        serve(&guarded)?;
        let start = sim.now();
        assert_eq!(kind(client.connect_tcp((guarded.ip(), 443).into()).await), Some(ErrorKind::TimedOut));
        assert!((30.0..36.0).contains(&(sim.now() - start).as_secs_f64()), "gave up after {:?}", sim.now() - start);
        Ok(())
    })
}

#[test]
fn the_firewalls_that_block_udp_let_tcp_out_one_of_them_only_to_443() -> Result<(), Failure> {
    for (options, is_open) in [(FirewallOptions::udp_blocked(), true), (FirewallOptions::tcp_443_only(), false)] {
        sim::run(5, |sim| async move {
            let (network, server) = world(&sim, LinkOptions::new())?;
            let office = network.firewall(options).nat(ip(CLIENT), NatOptions::symmetric())?;
            let laptop = office.host(ip([10, 1, 1, 1]));
            let _turn = server.listen_tcp(anywhere(3478))?;
            let mut stream = laptop.connect_tcp((SERVER, 443).into()).await?;
            assert_eq!(echo(&mut stream, b"through").await?, b"through");
            let other_port = timeout(MINUTE, laptop.connect_tcp((SERVER, 3478).into())).await?;
            assert_eq!(other_port.is_ok(), is_open);
            Ok::<_, Failure>(())
        })?;
    }
    Ok(())
}

#[test]
fn a_short_partition_delays_a_connection_and_a_long_one_ends_it() -> Result<(), Failure> {
    sim::run(6, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new())?;
        let (mut near, mut far) = pair(&network.host(ip(CLIENT)), &server).await?;
        network.partition(&[ip(CLIENT)], &[ip(SERVER)]);
        write_all(&mut near, b"late").await?;
        sleep(20 * SECOND).await;
        network.heal();
        let (mut got, healed_at) = ([0; 4], sim.now());
        assert_eq!(read(&mut far, &mut got).await?, 4);
        assert!(sim.now() - healed_at <= 6 * SECOND, "came {:?} after healing", sim.now() - healed_at);

        sleep(SECOND).await;
        network.partition(&[ip(CLIENT)], &[ip(SERVER)]);
        let cut_at = sim.now();
        write_all(&mut near, b"never").await?;
        assert_eq!(kind(read(&mut near, &mut got).await), Some(ErrorKind::TimedOut));
        assert!((30.0..36.0).contains(&(sim.now() - cut_at).as_secs_f64()));
        assert_eq!(kind(write(&mut near, b"more").await), Some(ErrorKind::TimedOut));
        // The other side had nothing to say and so has not noticed; what it says now is refused.
        network.heal();
        write_all(&mut far, b"are you there?").await?;
        drop(near);
        assert_eq!(kind(timeout(MINUTE, read(&mut far, &mut got)).await?), Some(ErrorKind::ConnectionReset));
        Ok(())
    })
}

#[test]
fn a_crashed_host_is_silent_until_it_is_back_and_then_refuses() -> Result<(), Failure> {
    sim::run(7, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new())?;
        let client = network.host(ip(CLIENT));
        let (mut near, mut far) = pair(&client, &server).await?;
        server.crash();
        write_all(&mut near, b"anybody?").await?;
        let mut buffer = [0; 9];
        assert!(timeout(10 * SECOND, read(&mut near, &mut buffer)).await.is_err());
        assert!(timeout(10 * SECOND, client.connect_tcp((SERVER, 443).into())).await.is_err());
        serve(&server)?;
        assert_eq!(kind(timeout(10 * SECOND, read(&mut near, &mut buffer)).await?), Some(ErrorKind::ConnectionReset));
        let mut again = client.connect_tcp((SERVER, 443).into()).await?;
        assert_eq!(echo(&mut again, b"back").await?, b"back");
        assert!(timeout(MINUTE, read(&mut far, &mut buffer)).await.is_err(), "the crashed end never hears anything");
        Ok(())
    })
}

#[test]
fn a_host_that_moves_loses_its_connections_and_makes_new_ones() -> Result<(), Failure> {
    sim::run(8, |sim| async move {
        let (network, _) = world(&sim, LinkOptions::new())?;
        let (wifi, mobile) =
            (network.nat(ip([198, 51, 100, 1]), NatOptions::new())?, network.nat(ip(CLIENT), NatOptions::symmetric())?);
        let laptop = wifi.host(ip([192, 168, 1, 2]));
        let mut old = laptop.connect_tcp((SERVER, 443).into()).await?;
        laptop.move_to(mobile.inside(), ip([10, 0, 0, 2]))?;
        assert_eq!(laptop.interface_addresses(), [ip([10, 0, 0, 2]), ip([127, 0, 0, 1])]);
        let mut new = laptop.connect_tcp((SERVER, 443).into()).await?;
        assert_eq!(echo(&mut new, b"from mobile").await?, b"from mobile");
        assert_eq!(kind(timeout(MINUTE, echo(&mut old, b"from wifi")).await?), Some(ErrorKind::TimedOut));
        assert!(network.stats().unroutable > 0);
        Ok(())
    })
}

#[test]
fn connections_go_out_through_two_nats_and_not_in() -> Result<(), Failure> {
    sim::run(9, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new())?;
        let carrier = network.nat(ip(CLIENT), NatOptions::carrier_grade())?;
        let home = carrier.nat(ip([100, 64, 0, 2]), NatOptions::full_cone())?;
        let laptop = home.host(ip([192, 168, 1, 2]));
        let mut listener = server.listen_tcp(anywhere(80))?;
        let (near, far) = tokio::join!(laptop.connect_tcp((SERVER, 80).into()), accept(&mut listener));
        let (near, (mut far, from)) = (near?, far?);
        assert_eq!(from.ip(), ip(CLIENT));
        assert_eq!((home.mappings(), carrier.mappings()), (1, 1));
        drop(near);
        assert_eq!(read_to_end(&mut far).await?, b"");

        serve(&laptop)?;
        let stranger = server.connect_tcp((CLIENT, from.port()).into());
        assert!(timeout(MINUTE, stranger).await.is_ok_and(|result| kind(result) == Some(ErrorKind::TimedOut)));
        Ok(())
    })
}

#[test]
fn what_was_written_before_a_stream_is_dropped_still_arrives() -> Result<(), Failure> {
    sim::run(10, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new().with_loss(0.3))?;
        let (mut near, mut far) = pair(&network.host(ip(CLIENT)), &server).await?;
        write_all(&mut near, &pattern(50_000)).await?;
        drop(near);
        assert!(timeout(5 * MINUTE, read_to_end(&mut far)).await?? == pattern(50_000));
        // Nobody reads what the other side says now.
        network.set_default_link(LinkOptions::new());
        write_all(&mut far, b"thank you").await?;
        sleep(SECOND).await;
        assert_eq!(kind(write(&mut far, b"hello?").await), Some(ErrorKind::ConnectionReset));
        Ok(())
    })
}

#[test]
fn a_dropped_listener_resets_whom_it_never_accepted_and_frees_its_port() -> Result<(), Failure> {
    sim::run(11, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new())?;
        let client = network.host(ip(CLIENT));
        let listener = server.listen_tcp(anywhere(80))?;
        assert_eq!(kind(server.listen_tcp(anywhere(80))), Some(ErrorKind::AddrInUse));
        let mut waiting = client.connect_tcp((SERVER, 80).into()).await?;
        drop(listener);
        assert_eq!(kind(timeout(SECOND, read(&mut waiting, &mut [0; 9])).await?), Some(ErrorKind::ConnectionReset));
        assert_eq!(kind(client.connect_tcp((SERVER, 80).into()).await), Some(ErrorKind::ConnectionRefused));
        assert!(server.listen_tcp(anywhere(80)).is_ok());
        Ok(())
    })
}

#[test]
fn a_listener_that_nobody_asks_takes_128_and_no_more() -> Result<(), Failure> {
    sim::run(12, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new())?;
        let client = network.host(ip(CLIENT));
        let mut listener = server.listen_tcp(anywhere(80))?;
        let mut waiting = Vec::new();
        for _ in 0..128 {
            waiting.push(client.connect_tcp((SERVER, 80).into()).await?);
        }
        assert!(timeout(SECOND / 2, client.connect_tcp((SERVER, 80).into())).await.is_err());
        accept(&mut listener).await?;
        assert!(timeout(SECOND, client.connect_tcp((SERVER, 80).into())).await?.is_ok());
        Ok(())
    })
}

#[test]
fn names_and_literal_addresses_resolve() -> Result<(), Failure> {
    sim::run(13, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new())?;
        network.name("relay.example.org", ip(SERVER));
        network.name("relay.example.org", "2001:db8::1".parse()?);
        let both: [SocketAddr; 2] = ["203.0.113.1:443".parse()?, "[2001:db8::1]:443".parse()?];
        assert_eq!(server.resolve("Relay.Example.Org", 443).await?, both);
        assert_eq!(server.resolve("203.0.113.1", 443).await?, both[..1]);
        assert_eq!(server.resolve("[2001:db8::1]", 443).await?, both[1..]);
        assert_eq!(kind(server.resolve("nobody.example.org", 443).await), Some(ErrorKind::NotFound));
        Ok(())
    })
}

#[test]
fn datagrams_go_by_the_same_port_and_loopback_stays_on_its_host() -> Result<(), Failure> {
    sim::run(14, |sim| async move {
        let (network, server) = world(&sim, LinkOptions::new())?;
        let client = network.host(ip(CLIENT));
        let (here, there) = (client.bind_udp("[::]:4000".parse()?)?, server.bind_udp((SERVER, 4000).into())?);
        assert_eq!((here.local_address().port(), there.local_address()), (4000, (SERVER, 4000).into()));
        assert_eq!(kind(client.bind_udp((SERVER, 1).into())), Some(ErrorKind::AddrNotAvailable));
        assert_eq!(kind(client.bind_udp(anywhere(4000))), Some(ErrorKind::AddrInUse));
        let mut buffer = [0; 3];
        here.try_send("[::ffff:203.0.113.1]:4000".parse()?, b"hello")?;
        let got = poll_fn(|context| there.poll_receive(context, &mut buffer)).await?;
        assert_eq!((got, &buffer), ((3, (CLIENT, 4000).into()), b"hel"));
        assert_eq!(kind(here.try_send("[2001:db8::1]:4000".parse()?, b"six")), Some(ErrorKind::NetworkUnreachable));

        here.try_send(([127, 0, 0, 1], 4000).into(), b"me")?;
        let got = poll_fn(|context| here.poll_receive(context, &mut buffer)).await?;
        assert_eq!(got, (2, ([127, 0, 0, 1], 4000).into()));
        let mut stream = server.connect_tcp(([127, 0, 0, 1], 443).into()).await?;
        assert_eq!(echo(&mut stream, b"to myself").await?, b"to myself");
        let refused = client.connect_tcp(([127, 0, 0, 1], 443).into()).await;
        assert_eq!(kind(refused), Some(ErrorKind::ConnectionRefused));
        Ok(())
    })
}

#[test]
fn a_network_falls_silent_when_all_streams_are_closed() -> Result<(), Failure> {
    sim::run(15, |sim| async move {
        let (network, _) = world(&sim, LinkOptions::new().with_loss(0.2))?;
        let client = network.host(ip(CLIENT));
        for _ in 0..20 {
            let mut stream = client.connect_tcp((SERVER, 443).into()).await?;
            echo(&mut stream, &pattern(10_000)).await?;
        }
        sleep(MINUTE).await;
        let before = network.stats();
        sleep(100 * MINUTE).await;
        assert_eq!((network.stats(), before.in_flight), (before, 0));
        Ok(())
    })
}

#[test]
fn the_same_seed_gives_the_same_segments_through_nats_and_loss() -> Result<(), Failure> {
    let life = |seed| {
        sim::run(seed, |sim| async move {
            let (network, _) = world(&sim, LinkOptions::new().with_loss(0.1).with_jitter(millis(9)))?;
            let office = network.firewall(FirewallOptions::tcp_443_only());
            let laptop = office.nat(ip(CLIENT), NatOptions::symmetric())?.host(ip([10, 1, 1, 1]));
            let laptop = laptop.with_access_link(LinkOptions::new().with_bandwidth(1_000_000).with_jitter(millis(3)));
            let mut stream = laptop.connect_tcp((SERVER, 443).into()).await?;
            assert!(echo(&mut stream, &pattern(100_000)).await? == pattern(100_000));
            Ok::<_, Failure>(network.trace_digest())
        })
    };
    let digests = [life(1)?, life(1)?, life(2)?];
    assert_eq!(digests[0], digests[1]);
    assert_ne!(digests[0], digests[2]);
    Ok(())
}

#[test]
fn a_network_with_open_streams_outlives_its_run_unchanged() -> Result<(), Failure> {
    let (network, digest, stats) = sim::run(16, |sim| async move {
        let (network, _) = world(&sim, LinkOptions::new().with_loss(0.5))?;
        let mut stream = network.host(ip(CLIENT)).connect_tcp((SERVER, 443).into()).await?;
        tokio::spawn(async move { echo(&mut stream, &pattern(100_000)).await });
        sleep(SECOND / 2).await;
        Ok::<_, Failure>((network.clone(), network.trace_digest(), network.stats()))
    })?;
    std::thread::sleep(millis(5));
    assert_eq!((network.trace_digest(), network.stats()), (digest, stats));
    Ok(())
}
