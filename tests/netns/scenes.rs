//! Scenes that prove the harness right, with tools that know nothing of our nodes: coturn's clients and the helper's naive
//! punch. What other scenes rely on is shown here first.

use std::fs;
use std::net::Ipv4Addr;
use std::panic;
use std::process::Command;
use std::time::Duration;

use data_encoding::BASE64_MIME;
use libtest_mimic::Trial;

use crate::helper::helper;
use crate::link::Link;
use crate::matrix::{self, Pair, Way};
use crate::nat::Nat;
use crate::port_mapping;
use crate::process::Process;
use crate::scene;
use crate::shell::{self, PATIENCE};
use crate::site::Host;
use crate::turn::{self, Turn};
use crate::world::{self, World};

type Scene = fn(&World);

/// All of them.
pub fn trials() -> Vec<Trial> {
    let behaves =
        |nat: Nat| scene(format!("behaviour::{nat}"), Ok(()), move |world| behaves_as_its_name_says(world, nat));
    let mut trials: Vec<_> = Nat::ALL.into_iter().filter(|nat| *nat != Nat::UdpBlocked).map(behaves).collect();
    trials.extend(matrix::trials("punch", Ok(()), matrix::pairs(), a_naive_punch_works_where_it_should));
    let single: [(&str, Scene); 17] = [
        ("udp_blocked_lets_only_tcp_443_through", udp_blocked_lets_only_tcp_443_through),
        ("turn_over_tls_on_443_passes_where_udp_is_blocked", turn_over_tls_on_443_passes_where_udp_is_blocked),
        ("turn_relays_with_rest_credentials", turn_relays_with_rest_credentials),
        ("a_hairpin_leads_back_inside_and_others_do_not", a_hairpin_leads_back_inside_and_others_do_not),
        ("a_mapped_port_lets_in_what_a_symmetric_nat_would_not", a_mapped_port_lets_in_what_a_symmetric_nat_would_not),
        ("a_delayed_link_is_late_in_both_directions", a_delayed_link_is_late_in_both_directions),
        ("a_delayed_link_carries_ten_thousand_packets_a_second", a_delayed_link_carries_ten_thousand_packets_a_second),
        ("jitter_reorders_and_loses_nothing", jitter_reorders_and_loses_nothing),
        ("a_lossy_link_loses_its_share", a_lossy_link_loses_its_share),
        ("a_narrow_link_takes_its_time", a_narrow_link_takes_its_time),
        ("a_packet_above_the_mtu_does_not_pass", a_packet_above_the_mtu_does_not_pass),
        ("a_host_moves_while_its_process_runs_on", a_host_moves_while_its_process_runs_on),
        ("a_router_forgets_its_mappings", a_router_forgets_its_mappings),
        ("a_link_is_cut_and_restored", a_link_is_cut_and_restored),
        ("a_relay_is_killed_and_comes_back", a_relay_is_killed_and_comes_back),
        ("a_failure_shows_the_logs_and_nothing_stays", a_failure_shows_the_logs_and_nothing_stays),
        ("what_a_killed_run_left_behind_is_removed", what_a_killed_run_left_behind_is_removed),
    ];
    trials.extend(single.map(|(name, play)| scene(format!("harness::{name}"), Ok(()), play)));
    trials
}

/// RFC 5780, asked by coturn's own client.
fn behaves_as_its_name_says(world: &World, nat: Nat) {
    let server = world.server("stun");
    let turn = Turn::start(&server);
    let host = world.host(nat);
    let server_ip = turn.address().ip().to_string();
    let told = host.run(Command::new("turnutils_natdiscovery").args(["-m", "-f", &server_ip]), "");
    let mapping =
        if nat.maps_independently() { "Endpoint Independent Mapping" } else { "Address and Port Dependent Mapping" };
    let filtering = match (nat.admits_strangers(), nat.admits_other_ports()) {
        (true, _) => "Endpoint Independent Filtering",
        (false, true) => "Address Dependent Filtering",
        (false, false) => "Address and Port Dependent Filtering",
    };
    assert!(told.contains(mapping), "expected {mapping}:\n{told}");
    assert!(told.contains(filtering), "expected {filtering}:\n{told}");
}

fn a_naive_punch_works_where_it_should(world: &World, pair: Pair) {
    let server = world.server("stun");
    let turn = Turn::start(&server);
    let (left, right) = pair.hosts(world);
    let address = turn.address().to_string();
    let mut left = left.spawn("left", &helper(&["punch", &address]));
    let mut right = right.spawn("right", &helper(&["punch", &address]));
    if pair.way() == Way::RelayedOverTcp {
        // Whoever is not blocked learns its address; a blocked one cannot even ask.
        let failed = |process: &mut Process| {
            process.wait_for("an end", PATIENCE, |line| match line.split(' ').next() {
                Some("mapped") => Some(false),
                Some("failed") => Some(true),
                _ => None,
            })
        };
        let (left, right) = (failed(&mut left), failed(&mut right));
        let Pair::Sites(left_nat, right_nat) = pair else { panic!("{pair}: not in the table") };
        assert_eq!((left, right), (left_nat == Nat::UdpBlocked, right_nat == Nat::UdpBlocked));
        return;
    }
    let (left_mapped, right_mapped) = (left.wait_for_prefix("mapped "), right.wait_for_prefix("mapped "));
    left.send_line(&right_mapped);
    right.send_line(&left_mapped);
    let connected = |process: &mut Process| {
        process.wait_for("an end", PATIENCE, |line| match line {
            "not connected" => Some(false),
            _ => line.starts_with("connected ").then_some(true),
        })
    };
    let both = [connected(&mut left), connected(&mut right)];
    assert_eq!(both, [pair.way() == Way::Direct; 2], "{left_mapped} and {right_mapped}, expected {:?}", pair.way());
}

fn udp_blocked_lets_only_tcp_443_through(world: &World) {
    let server = world.server("stun");
    let turn = Turn::start(&server);
    let site = world.site(Nat::UdpBlocked);
    let host = site.host();
    let at = |port: u16| format!("{}:{port}", turn.address().ip());
    for (what, port, passes) in [
        ("stun", turn::PORT, false),
        ("stun", turn::HTTPS_PORT, false),
        ("stun-tcp", turn::PORT, false),
        ("stun-tcp", turn::HTTPS_PORT, true),
    ] {
        let told = host.try_run(&helper(&[what, &at(port)]));
        assert_eq!(told.is_ok(), passes, "{what} to port {port}: {told:?}");
        // Otherwise the server is at fault, not the NAT.
        let own = server.try_run(&helper(&[what, &at(port)]));
        assert!(own.is_ok(), "{what} to port {port}, at the server itself: {own:?}");
    }
    let public_ip = site.public_ip().expect("a router");
    let told = host.run(&helper(&["stun-tcp", &at(turn::HTTPS_PORT)]), "");
    assert!(told.starts_with(&format!("mapped {public_ip}:")), "{told}, expected {public_ip}");
}

fn turn_over_tls_on_443_passes_where_udp_is_blocked(world: &World) {
    let server = world.server("turn");
    let (certificate, key) = (server.directory().join("cert.pem"), server.directory().join("key.pem"));
    let made = rcgen::generate_simple_self_signed([server.ip().to_string()]).expect("a certificate");
    let pem = |label: &str, der: &[u8]| {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_MIME.encode(der).trim_end())
    };
    fs::write(&certificate, pem("CERTIFICATE", made.cert.der())).expect("the certificate's file");
    fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).expect("the key's file");
    let options = [format!("--cert={}", certificate.display()), format!("--pkey={}", key.display())];
    let turn = Turn::start_with(&server, &["--tls-listening-port=443", &options[0], &options[1]]);
    relays(&world.host(Nat::UdpBlocked), &turn, &["-t", "-S", "-p", "443"]);
}

fn turn_relays_with_rest_credentials(world: &World) {
    let server = world.server("turn");
    let turn = Turn::start(&server);
    relays(&world.host(Nat::Symmetric), &turn, &[]);
}

/// coturn's client allocates twice, and sends between the two. Over TLS it misses messages of its own, and then takes its
/// time: one that arrives is proof enough.
#[track_caller]
fn relays(host: &Host, turn: &Turn, options: &[&str]) {
    let mut client = Command::new("turnutils_uclient");
    client.args(["-y", "-c", "-u", "tester", "-W", turn::SECRET]).args(options).arg(turn.address().ip().to_string());
    let arrived = |line: &str| {
        let (_, rest) = line.split_once("tot_recv_msgs=")?;
        (!rest.starts_with('0')).then_some(())
    };
    host.spawn("uclient", &client).wait_for("a message through the relay", PATIENCE, arrived);
}

fn a_hairpin_leads_back_inside_and_others_do_not(world: &World) {
    let server = world.server("stun");
    let turn = Turn::start(&server);
    for (nat, turns) in [(Nat::Hairpin, true), (Nat::PortRestricted, false)] {
        let server_ip = turn.address().ip().to_string();
        let told = world.host(nat).try_run(Command::new("turnutils_natdiscovery").args(["-H", &server_ip]));
        let told = told.unwrap_or_else(|problem| problem);
        assert_eq!(told.contains("successful hairpinning"), turns, "{nat}:\n{told}");
    }
}

/// A server that answers everything, and its address.
fn echo(world: &World) -> (Process, String) {
    let server = world.server("echo");
    let mut echo = server.spawn("echo", &helper(&["echo", "7"]));
    echo.wait_for_prefix("ready");
    (echo, format!("{}:7", server.ip()))
}

fn a_mapped_port_lets_in_what_a_symmetric_nat_would_not(world: &World) {
    let (left, right) = (world.site(Nat::Symmetric), world.site(Nat::Symmetric));
    let _daemon = port_mapping::start(&left);
    let host = left.host();
    let mut echo = host.spawn("echo", &helper(&["echo", "4000"]));
    echo.wait_for_prefix("ready");
    let mapping = host.run(&helper(&["map", &left.gateway().to_string(), "4000", "600"]), "");
    let port = mapping.trim().strip_prefix("external ").unwrap_or_else(|| panic!("{mapping}"));
    let target = format!("{}:{port}", left.public_ip().expect("a router"));
    let beat = right.host().spawn("beat", &helper(&["beat", &target]));
    heard_from(&beat, right.public_ip());
}

/// What the helper measured.
struct Measured {
    received: u32,
    least_us: u32,
    overtaken: u32,
    took_ms: u32,
}

/// Round trips between a host whose link is as told and an echo at a server.
fn measure(world: &World, link: &Link, packets: u32, per_second: u32, bytes: u32) -> Measured {
    let (_echo, target) = echo(world);
    let host = world.site_with(Nat::LinuxFirewall, link).host();
    let numbers = [packets, per_second, bytes].map(|number| number.to_string());
    let told = host.run(&helper(&["measure", &target, &numbers[0], &numbers[1], &numbers[2]]), "");
    let words: Vec<_> = told.split_whitespace().collect();
    let number = |name: &str| {
        let at = words.iter().position(|word| *word == name).unwrap_or_else(|| panic!("no {name}: {told}"));
        words[at + 1].parse().unwrap_or_else(|error| panic!("{name}: {error}: {told}"))
    };
    let [received, least_us, overtaken, took_ms] = ["received", "least_us", "overtaken", "took_ms"].map(number);
    Measured { received, least_us, overtaken, took_ms }
}

fn a_delayed_link_is_late_in_both_directions(world: &World) {
    let link = Link::new().with_delay(Duration::from_millis(50));
    let measured = measure(world, &link, 500, 1_000, 200);
    assert!(measured.least_us >= 100_000, "a packet came back after {} us", measured.least_us);
    assert_eq!(measured.received, 500, "a delay loses nothing");
    assert_eq!(measured.overtaken, 0, "a delay without jitter keeps the order");
}

fn a_delayed_link_carries_ten_thousand_packets_a_second(world: &World) {
    let link = Link::new().with_delay(Duration::from_millis(50));
    let measured = measure(world, &link, 10_000, 10_000, 200);
    assert!(measured.least_us >= 100_000, "a packet came back after {} us", measured.least_us);
    // Sockets may overflow while the machine is busy; a forwarder that cannot keep up loses nearly everything.
    assert!(measured.received > 5_000, "only {} of 10,000 came back", measured.received);
}

fn jitter_reorders_and_loses_nothing(world: &World) {
    let measured = measure(world, &Link::new().with_jitter(Duration::from_millis(20)).with_seed(1), 500, 1_000, 100);
    assert_eq!(measured.received, 500);
    assert!(measured.overtaken > 0);
}

fn a_lossy_link_loses_its_share(world: &World) {
    let measured = measure(world, &Link::new().with_loss(0.2).with_seed(1), 2_000, 2_000, 100);
    // Of 2,000 packets 64 % come back, give or take 1 % (one standard deviation).
    assert!((1_150..1_400).contains(&measured.received), "{} of 2,000 came back", measured.received);
}

fn a_narrow_link_takes_its_time(world: &World) {
    let measured = measure(world, &Link::new().with_rate("2mbit"), 500, 10_000, 1_000);
    // What passes at once (16 KiB) does not count; the rest had to keep to 2 bits a microsecond, headers left aside.
    let least_ms = (measured.received * 8_000).saturating_sub(16 * 1_024 * 8) / 2_000;
    assert!(measured.received > 16, "nothing but the burst came through: {}", measured.received);
    assert!(measured.took_ms >= least_ms, "{} packets in {} ms", measured.received, measured.took_ms);
}

fn a_packet_above_the_mtu_does_not_pass(world: &World) {
    let server = world.server("any");
    let host = world.site_with(Nat::LinuxFirewall, &Link::new().with_mtu_bytes(1_280)).host();
    // Whole packets only, as QUIC sends them; with 28 bytes of headers.
    let ping = |payload: &str| {
        let mut ping = Command::new("ping");
        host.try_run(ping.args([
            "-c",
            "2",
            "-i",
            "0.2",
            "-W",
            "2",
            "-M",
            "do",
            "-s",
            payload,
            &server.ip().to_string(),
        ]))
    };
    assert!(ping("1252").is_ok(), "a packet of 1,280 bytes does not pass");
    let problem = ping("1253").expect_err("a packet of 1,281 bytes passes");
    assert!(problem.contains("mtu = 1280") || problem.contains("mtu=1280"), "the router does not say so: {problem}");
}

fn a_host_moves_while_its_process_runs_on(world: &World) {
    let (_echo, target) = echo(world);
    let (first, second) = (world.site(Nat::LinuxFirewall), world.site(Nat::Symmetric));
    // A place without a router, with a link that has a process of its own.
    let third = world.site_with(Nat::None, &Link::new().with_delay(Duration::from_millis(1)));
    let host = first.host();
    let mut beat = host.spawn("beat", &helper(&["beat", &target]));
    heard_from(&beat, first.public_ip());
    host.move_to(&second);
    heard_from(&beat, second.public_ip());
    for _ in 0..2 {
        host.move_to(&third);
        heard_from(&beat, Some(host.ip()));
    }
    host.move_to(&first);
    heard_from(&beat, first.public_ip());
    assert!(beat.is_running());
}

/// Waits until the echo sees packets from that address.
#[track_caller]
fn heard_from(beat: &Process, ip: Option<Ipv4Addr>) {
    let seen = format!(" {}:", ip.expect("a router"));
    shell::until(&format!("heard{seen}"), PATIENCE, || {
        beat.log().lines().next_back().is_some_and(|line| line.contains(&seen)).then_some(())
    });
}

fn a_router_forgets_its_mappings(world: &World) {
    let (_echo, target) = echo(world);
    for nat in [Nat::Symmetric, Nat::FullCone] {
        let site = world.site(nat);
        let mut beat = site.host().spawn("beat", &helper(&["beat", &target]));
        let address = |line: &str| line.strip_prefix("heard ")?.split(' ').nth(1).map(str::to_owned);
        let before = beat.wait_for("an answer", PATIENCE, address);
        site.forget_mappings();
        let answers = beat.log().lines().count();
        let after = shell::until("an answer after that", PATIENCE, || {
            // One may have been under way.
            beat.log().lines().skip(answers + 1).find_map(address)
        });
        assert_eq!(before == after, nat.maps_independently(), "{nat}: {before} and then {after}");
    }
}

fn a_link_is_cut_and_restored(world: &World) {
    let server = world.server("stun");
    let turn = Turn::start(&server);
    let site = world.site(Nat::LinuxFirewall);
    let host = site.host();
    let stun = helper(&["stun", &turn.address().to_string()]);
    let carrier = || host.run(Command::new("cat").arg("/sys/class/net/eth0/carrier"), "").trim() == "1";
    let check = |passes: bool, has_carrier: bool| {
        assert_eq!(carrier(), has_carrier);
        let told = host.try_run(&stun);
        assert_eq!(told.is_ok(), passes, "{told:?}");
    };
    check(true, true);
    site.cut();
    check(false, true);
    site.restore();
    check(true, true);
    host.unplug();
    check(false, false);
    host.plug();
    check(true, true);
    server.cut();
    check(false, true);
    server.restore();
    check(true, true);
}

fn a_relay_is_killed_and_comes_back(world: &World) {
    let server = world.server("stun");
    let host = world.host(Nat::PortRestricted);
    for orderly in [false, true] {
        let mut turn = Turn::start(&server);
        let stun = helper(&["stun", &turn.address().to_string()]);
        assert!(host.try_run(&stun).is_ok());
        if orderly {
            turn.process().terminate();
            turn.process().wait(PATIENCE);
        } else {
            turn.process().kill();
        }
        assert!(host.try_run(&stun).is_err(), "a server that has ended answers");
    }
}

fn a_failure_shows_the_logs_and_nothing_stays(world: &World) {
    let names = || shell::run(Command::new("ip").args(["netns", "list"]), "");
    let mut inside = String::new();
    let result = World::play(|world| {
        let server = world.server("any");
        inside = server.name().to_owned();
        assert!(names().contains(&inside));
        let mut process = server.spawn("echo", &helper(&["echo", "7"]));
        process.wait_for_prefix("ready");
        // As a panic, without the message of one on the terminal.
        panic::resume_unwind(Box::new("it went wrong"));
    });
    let told = result.expect_err("a scene that panics fails").message().unwrap_or_default().to_owned();
    for expected in ["it went wrong", "--- echo at any", "ready"] {
        assert!(told.contains(expected), "no {expected:?} in: {told}");
    }
    assert!(!names().contains(&inside), "{inside} is still there");
    // Another world goes on.
    drop(world.server("other"));
}

fn what_a_killed_run_left_behind_is_removed(world: &World) {
    // No process has this number.
    let left = world::name_of("4194305-1", std::process::id());
    shell::run(Command::new("ip").args(["netns", "add", &left]), "");
    let log = tempfile::NamedTempFile::new().expect("a file for a log");
    let mut process = Process::spawn(&left, "left", &helper(&["echo", "7"]), log.path().to_owned());
    process.wait_for_prefix("ready");
    world::remove_leftovers().unwrap_or_else(|problem| panic!("{problem}"));
    process.wait(PATIENCE);
    let names = shell::run(Command::new("ip").args(["netns", "list"]), "");
    assert!(!names.contains(&left), "{left} is still there");
    let turn = Turn::start(&world.server("stun"));
    assert!(turn.address().port() > 0, "a world in use is left alone");
}
