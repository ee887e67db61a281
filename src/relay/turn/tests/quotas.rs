//! Quotas of users, networks and the server, and what is bounded per client.

use super::*;

#[test]
fn quotas_of_a_user_and_of_the_server_hold() {
    let mut bench = Bench::new(RelayLimits::new().with_allocations_per_user(2).with_allocations(3));
    let error = |bench: &mut Bench, n, name: &str| {
        let user = bench.user(n, name);
        bench.ask(&user, Request::allocate(AddressFamily::V4, TURN_LIFETIME)).error()
    };
    assert_eq!([error(&mut bench, 1, "a"), error(&mut bench, 2, "a")], [None, None]);
    bench.pass(Duration::from_secs(2));
    assert_eq!(error(&mut bench, 3, "a"), Some(ErrorCode::AllocationQuotaReached), "whatever the expiry in its name");
    assert_eq!(error(&mut bench, 4, "b"), None);
    assert_eq!(error(&mut bench, 5, "c"), Some(ErrorCode::InsufficientCapacity));
    bench = Bench::new(RelayLimits::new().with_allocations_per_user(0));
    assert_eq!(error(&mut bench, 1, "a"), Some(ErrorCode::AllocationQuotaReached), "none is none");
}

#[test]
fn who_makes_up_many_names_gets_no_more_addresses_than_its_own_network_may_have() {
    let mut bench = Bench::new(RelayLimits::new().with_allocations_per_address(10));
    let mut taken = |host: &dyn Fn(u16) -> IpAddr, names| {
        let allocate = |n: u16| {
            let user = bench.user_at((host(n), 1000 + n).into(), &format!("name {n}"));
            let answer = bench.ask(&user, Request::allocate(AddressFamily::V4, TURN_LIFETIME));
            assert!([None, Some(ErrorCode::AllocationQuotaReached)].contains(&answer.error()));
            (answer.error().is_none(), user)
        };
        let users: Vec<_> = (0..names).map(allocate).filter(|(taken, _)| *taken).collect();
        let (count, first) = (users.len(), users.into_iter().next().unwrap().1);
        assert_eq!(bench.ask(&first, Request::refresh(Duration::ZERO)).error(), None);
        (count, bench.allocate(&first).is_ipv4())
    };
    assert_eq!(taken(&|_| [192, 0, 2, 1].into(), 50), (10, true), "and one that ended makes room");
    assert_eq!(taken(&|_| [192, 0, 2, 2].into(), 1), (1, true), "others are not concerned");
    let site = |n| [0x2001, 0xdb8, 1, n, 0, 0, 0, 1].into();
    assert_eq!(taken(&site, 100), (10 * RELAY_SITE_NETWORKS, true), "a /48 is more than an address, but not 65,536");
    assert_eq!(bench.server.allocations(), 11 + 10 * RELAY_SITE_NETWORKS);
}

#[test]
fn permissions_and_channels_are_bounded() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    bench.allocate(&user);
    let ip = |n: usize| IpAddr::from([203, 0, 113, u8::try_from(n).unwrap()]);
    let errors = (0..TURN_CHANNELS + 1).map(|n| {
        let number = channel(0x4000 + u16::try_from(n).unwrap());
        bench.ask(&user, Request::channel_bind(number, (ip(0), 1000 + number.value()).into())).error()
    });
    assert_eq!(errors.flatten().collect::<Vec<_>>(), [ErrorCode::InsufficientCapacity]);
    let mut errors = Vec::new();
    for n in 1..=TURN_PERMISSIONS {
        errors.extend(bench.ask(&user, Request::create_permission(ip(n))).error());
    }
    assert_eq!(errors, [ErrorCode::InsufficientCapacity]);
}

#[test]
fn bytes_over_the_quota_are_dropped() {
    let rate = Rate { per_second: 100, burst: 2 * (RELAY_DATAGRAM_COST_BYTES + 80) - 1 };
    let mut bench = Bench::new(RelayLimits::new().with_bytes_per_client(rate));
    let user = bench.user(1, "a");
    bench.allocate(&user);
    bench.ask(&user, Request::create_permission(peer().ip()));
    assert!(matches!(bench.send(&user, peer(), &[7; 80]), Sent::ToPeer(..)));
    assert_eq!(bench.send(&user, peer(), &[7; 80]), Sent::Dropped("over quota"));
}

#[test]
fn a_datagram_costs_more_than_its_payload_also_when_it_is_empty() {
    let rate = Rate { per_second: 1, burst: 10 * RELAY_DATAGRAM_COST_BYTES };
    let mut bench = Bench::new(RelayLimits::new().with_bytes_per_client(rate));
    let user = bench.user(1, "a");
    bench.allocate(&user);
    bench.ask(&user, Request::create_permission(peer().ip()));
    let sent = (0..100).filter(|_| matches!(bench.send(&user, peer(), b""), Sent::ToPeer(..))).count();
    assert_eq!(sent, 10);
    let (now, mut out) = (bench.times.now, Vec::new());
    assert_eq!(bench.server.on_peer_datagram(AllocationId(0), peer(), b"", now, &mut out), None);
}
