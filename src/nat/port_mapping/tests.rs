//! The machine against routers that speak one protocol, both, or none.

use super::*;

const NONCE: Nonce = [7; 12];
const OURS: u16 = 4000;

fn gateway() -> Gateway {
    Gateway { router: [192, 168, 1, 1].into(), interface: [192, 168, 1, 2].into() }
}

fn router() -> SocketAddr {
    (gateway().router, PORT).into()
}

fn external() -> SocketAddrV4 {
    SocketAddrV4::new([203, 0, 113, 9].into(), 7000)
}

/// A router, by what it speaks.
#[derive(Clone, Copy)]
struct Router {
    pcp: bool,
    nat_pmp: bool,
    external: SocketAddrV4,
    lifetime: u32,
}

const BOTH: Router = Router {
    pcp: true,
    nat_pmp: true,
    external: SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 9), 7000),
    lifetime: 3600,
};

/// Hands everything to the router and its answers back; what was asked, in order.
fn exchange(machine: &mut PortMappingMachine, now: Instant, router: Option<Router>) -> Vec<Vec<u8>> {
    let mut asked = Vec::new();
    while let Some(Transmit { to, bytes }) = machine.poll_transmit() {
        assert_eq!(to, self::router());
        let answer = router.and_then(|router| match bytes[0] {
            2 if router.pcp => Some(pcp::tests::mapped(&bytes, router.external, router.lifetime)),
            0 if router.nat_pmp => {
                let Router { external, lifetime, .. } = router;
                Some(nat_pmp::tests::answered(&bytes, *external.ip(), external.port(), lifetime))
            }
            _ => None,
        });
        asked.push(bytes);
        if let Some(answer) = answer {
            machine.handle_input(now, to, &answer);
        }
    }
    asked
}

fn start(now: Instant, router: Option<Router>) -> PortMappingMachine {
    let mut machine = PortMappingMachine::new(now, gateway(), OURS, NONCE);
    exchange(&mut machine, now, router);
    machine
}

/// Goes to the machine's next timeout.
fn wait(machine: &mut PortMappingMachine, router: Option<Router>) -> (Instant, Vec<Vec<u8>>) {
    let (at, _) = machine.poll_timeout().unwrap();
    machine.handle_timeout(at);
    (at, exchange(machine, at, router))
}

#[test]
fn a_router_that_speaks_either_protocol_maps_the_port() {
    let now = Instant::now();
    for (pcp, nat_pmp) in [(true, true), (true, false), (false, true)] {
        let machine = start(now, Some(Router { pcp, nat_pmp, ..BOTH }));
        assert_eq!(machine.status(), Status::Mapped(external()), "PCP {pcp}, NAT-PMP {nat_pmp}");
    }
}

#[test]
fn a_lost_question_is_repeated() {
    let mut machine = start(Instant::now(), None);
    assert_eq!(machine.status(), Status::Asking);
    wait(&mut machine, Some(BOTH));
    assert_eq!(machine.status(), Status::Mapped(external()));
}

#[test]
fn a_silent_router_is_given_up() {
    let now = Instant::now();
    let mut machine = start(now, None);
    let mut last = now;
    while machine.status() == Status::Asking {
        last = wait(&mut machine, None).0;
    }
    assert_eq!(machine.status(), Status::Refused);
    assert_eq!(last - now, FIRST_WAIT * (2_u32.pow(TRIES) - 1));
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn a_refusal_in_one_protocol_leaves_the_other() {
    let now = Instant::now();
    let mut machine = PortMappingMachine::new(now, gateway(), OURS, NONCE);
    let request = machine.poll_transmit().unwrap().bytes;
    machine.handle_input(now, router(), &pcp::tests::refused(&request, 2));
    assert_eq!(machine.status(), Status::Asking);
    exchange(&mut machine, now, Some(Router { pcp: false, ..BOTH }));
    assert_eq!(machine.status(), Status::Mapped(external()));
}

#[test]
fn a_mapping_is_renewed_at_half_its_lifetime_and_keeps_its_address() {
    for pcp in [true, false] {
        let now = Instant::now();
        let router = Router { pcp, lifetime: 600, ..BOTH };
        let mut machine = start(now, Some(router));
        let (at, asked) = wait(&mut machine, Some(router));
        assert_eq!(at - now, Duration::from_secs(300));
        assert_eq!(asked.len(), if pcp { 1 } else { 2 });
        let (again, _) = wait(&mut machine, Some(router));
        assert_eq!(again - at, Duration::from_secs(300), "it lives for 600 s more");
        assert_eq!(machine.status(), Status::Mapped(external()));
    }
}

#[test]
fn a_router_that_gives_another_address_is_believed() {
    let mut machine = start(Instant::now(), Some(BOTH));
    let other = SocketAddrV4::new([203, 0, 113, 77].into(), 7001);
    wait(&mut machine, Some(Router { external: other, ..BOTH }));
    assert_eq!(machine.status(), Status::Mapped(other));
}

#[test]
fn a_mapping_that_cannot_be_renewed_ends_with_its_lifetime() {
    let now = Instant::now();
    let mut machine = start(now, Some(Router { lifetime: 600, ..BOTH }));
    let mut renewals = 0;
    let ended = loop {
        let (at, asked) = wait(&mut machine, None);
        if machine.status() == Status::Asking {
            break at;
        }
        renewals += asked.len();
    };
    assert_eq!(ended - now, Duration::from_secs(600));
    assert!((3..12).contains(&renewals), "{renewals} renewals");
}

#[test]
fn a_router_behind_a_nat_helps_nobody() {
    for ip in [[10, 0, 0, 7], [100, 64, 3, 4], [192, 168, 9, 9]] {
        let inside = SocketAddrV4::new(ip.into(), 7000);
        let mut machine = start(Instant::now(), Some(Router { external: inside, ..BOTH }));
        assert_eq!(machine.status(), Status::DoubleNat);
        assert!(machine.poll_transmit().is_none() && machine.poll_timeout().is_none());
    }
}

#[test]
fn a_mapping_is_given_back_with_a_lifetime_of_zero() {
    for pcp in [true, false] {
        let mut machine = start(Instant::now(), Some(Router { pcp, ..BOTH }));
        machine.release();
        let asked = exchange(&mut machine, Instant::now(), None);
        let expected =
            if pcp { pcp::map(gateway().interface, &NONCE, OURS, None, 0) } else { nat_pmp::map(OURS, 0, 0) };
        assert_eq!(asked, [expected]);
        assert_eq!(machine.status(), Status::Released);
    }
}

#[test]
fn only_the_router_is_heard() {
    let now = Instant::now();
    let mut machine = PortMappingMachine::new(now, gateway(), OURS, NONCE);
    let request = machine.poll_transmit().unwrap().bytes;
    let answer = pcp::tests::mapped(&request, external(), 3600);
    for stranger in ["192.168.1.66:5351", "192.168.1.1:5350"] {
        machine.handle_input(now, stranger.parse().unwrap(), &answer);
        assert_eq!(machine.status(), Status::Asking);
    }
    machine.handle_input(now, router(), &answer);
    assert_eq!(machine.status(), Status::Mapped(external()));
}

#[test]
fn a_router_is_asked_only_from_behind_a_nat() {
    let mapped = |text: &str| BTreeSet::from([text.parse().unwrap()]);
    let hosts = ["192.168.1.2:4000".parse().unwrap()];
    let ask = |gateways: &[Gateway], mapped: &BTreeSet<SocketAddr>| router_to_ask(gateways, &hosts, mapped);
    assert_eq!(ask(&[gateway()], &mapped("203.0.113.9:7000")), Some(gateway()));
    assert_eq!(ask(&[gateway()], &BTreeSet::new()), None, "nobody told how we are seen");
    assert_eq!(ask(&[gateway()], &mapped("192.168.1.2:4000")), None, "we are seen as we are");
    assert_eq!(ask(&[gateway()], &mapped("[2001:db8::1]:4000")), None, "IPv6 needs no mapping");
    assert_eq!(ask(&[], &mapped("203.0.113.9:7000")), None);
    let elsewhere = Gateway { interface: [192, 168, 7, 2].into(), ..gateway() };
    assert_eq!(ask(&[elsewhere], &mapped("203.0.113.9:7000")), None, "we do not listen there");
    let public = Gateway { interface: [198, 51, 100, 7].into(), ..gateway() };
    assert_eq!(ask(&[public], &mapped("203.0.113.9:7000")), None);
}

#[test]
fn a_probe_tells_who_speaks_what() {
    let [announce, address] = probes(gateway());
    assert_eq!(read_probe(&pcp::tests::refused(&announce, 0)), Some(ProbeAnswer::Pcp));
    assert_eq!(read_probe(&pcp::tests::refused(&announce, 1)), None);
    let ip = Ipv4Addr::new(203, 0, 113, 9);
    let told = nat_pmp::tests::answered(&address, ip, 0, 0);
    assert_eq!(read_probe(&told), Some(ProbeAnswer::NatPmp(Some(ip))));
    assert_eq!(read_probe(b"anything"), None);
}
