//! Ports of simulated routers, on virtual time: routers that speak PCP, UPnP, or nothing.

use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::sim::{self, NatOptions, SimHost, SimNetwork};
use crate::transports::stream::TokioStream;

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const GATEWAY: Gateway = Gateway { router: Ipv4Addr::new(192, 168, 1, 1), interface: Ipv4Addr::new(192, 168, 1, 2) };
const OURS: u16 = 4000;
const NONCE: [u8; 12] = [7; 12];

/// A home with a host at the address of its router, which plays that part.
fn home(sim: &sim::Sim) -> (Arc<dyn HostNetwork>, SimHost) {
    let network = SimNetwork::new(sim.options());
    let nat = network.nat(EXTERNAL.into(), NatOptions::symmetric()).unwrap();
    (Arc::new(nat.host(GATEWAY.interface.into()).with_router(GATEWAY.router)), nat.host(GATEWAY.router.into()))
}

/// What was done at a router, in order.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn note(&self, what: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Grants every PCP request, for ten minutes.
async fn speak_pcp(router: SimHost, log: Log) {
    let socket = router.bind_udp(([0, 0, 0, 0], PORT).into()).unwrap();
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = receive(&*socket, &mut buffer).await.unwrap();
        let [2, opcode, _, _, l0, l1, l2, l3, ..] = buffer[..length] else { continue };
        let lifetime = u32::from_be_bytes([l0, l1, l2, l3]);
        let mut answer = buffer[..length].to_vec();
        answer[1] |= 0x80;
        if opcode == 1 {
            log.note(format!("map for {lifetime}"));
            answer[4..8].copy_from_slice(&lifetime.min(600).to_be_bytes());
            answer[42..44].copy_from_slice(&7000_u16.to_be_bytes());
            answer[56..60].copy_from_slice(&EXTERNAL.octets());
        }
        socket.try_send(from, &answer).unwrap();
    }
}

/// Answers searches, and tells where its description is.
async fn answer_searches(router: SimHost) {
    let socket = router.bind_udp(([0, 0, 0, 0], 1900).into()).unwrap();
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = receive(&*socket, &mut buffer).await.unwrap();
        assert!(buffer[..length].starts_with(b"M-SEARCH * HTTP/1.1\r\n"));
        let answer = "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                      LOCATION: http://192.168.1.1:5000/desc.xml\r\n\r\n";
        socket.try_send(from, answer.as_bytes()).unwrap();
    }
}

/// One port belongs to somebody else, and leases are for ever.
fn upnp_answer(request: &str, log: &Log) -> (u16, String) {
    if request.starts_with("GET /desc.xml ") {
        let service = "<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>";
        return (200, format!("<root><service>{service}<controlURL>/ctl</controlURL></service></root>"));
    }
    let value = |name: &str| {
        let (_, rest) = request.split_once(&format!("<{name}>")).unwrap();
        rest.split_once('<').unwrap().0.to_owned()
    };
    let (name, _) = request.split_once('#').unwrap().1.split_once('"').unwrap();
    let refused = |code| (500, format!("<a><errorCode>{code}</errorCode></a>"));
    match name {
        "GetExternalIPAddress" => (200, format!("<a><NewExternalIPAddress>{EXTERNAL}</NewExternalIPAddress></a>")),
        "AddPortMapping" if value("NewExternalPort") == OURS.to_string() => refused(718),
        "AddPortMapping" if value("NewLeaseDuration") != "0" => refused(725),
        "AddPortMapping" => {
            assert_eq!(
                (value("NewInternalClient"), value("NewInternalPort")),
                ("192.168.1.2".into(), OURS.to_string())
            );
            log.note(format!("add {}", value("NewExternalPort")));
            (200, "<a/>".into())
        }
        "DeletePortMapping" => {
            log.note(format!("delete {}", value("NewExternalPort")));
            (200, "<a/>".into())
        }
        other => panic!("asked for {other}"),
    }
}

async fn speak_upnp(router: SimHost, log: Log) {
    tokio::spawn(answer_searches(router.clone()));
    let mut listener = router.listen_tcp(([0, 0, 0, 0], 5000).into()).unwrap();
    loop {
        let (stream, _) = poll_fn(|context| listener.poll_accept(context)).await.unwrap();
        let mut stream = TokioStream(stream);
        let mut request = String::new();
        let mut buffer = [0; 2048];
        while !request.contains("\r\n\r\n") || request.starts_with("POST") && !request.contains("</s:Envelope>") {
            let read = stream.read(&mut buffer).await.unwrap();
            request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        let (status, body) = upnp_answer(&request, &log);
        stream.write_all(format!("HTTP/1.1 {status} x\r\n\r\n{body}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    }
}

/// Runs a mapper for so long; what it told.
async fn run_for(mapper: &mut Mapper, time: Duration) -> Vec<Option<SocketAddrV4>> {
    let mut told = Vec::new();
    let _ = timeout(time, mapper.run(|external| told.push(external))).await;
    told
}

#[test]
fn a_port_is_mapped_renewed_and_given_back_by_pcp() {
    sim::run(1, |sim| async move {
        let ((network, router), log) = (home(&sim), Log::default());
        tokio::spawn(speak_pcp(router, log.clone()));
        let mut mapper = Mapper::new(network, GATEWAY, OURS, NONCE);
        let told = run_for(&mut mapper, Duration::from_secs(1000)).await;
        assert_eq!(told, [Some(SocketAddrV4::new(EXTERNAL, 7000))]);
        // At once, and every five minutes.
        assert_eq!(log.taken(), ["map for 3600"; 4]);
        mapper.release().await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(log.taken(), ["map for 0"]);
    });
}

#[test]
fn a_router_that_only_speaks_upnp_is_asked_that_way_and_may_choose_the_port() {
    sim::run(1, |sim| async move {
        let ((network, router), log) = (home(&sim), Log::default());
        tokio::spawn(speak_upnp(router, log.clone()));
        let mut mapper = Mapper::new(network, GATEWAY, OURS, NONCE);
        let told = run_for(&mut mapper, Duration::from_secs(2000)).await;
        let [Some(external)] = told[..] else { panic!("{told:?}") };
        assert!(*external.ip() == EXTERNAL && external.port() != OURS, "{external}");
        let added = format!("add {}", external.port());
        assert_eq!(log.taken(), [added.clone(), added], "mapped, and renewed after half an hour");
        mapper.release().await;
        assert_eq!(log.taken(), [format!("delete {}", external.port())]);
    });
}

#[test]
fn a_router_that_is_gone_takes_its_mapping_with_it() {
    for upnp in [false, true] {
        sim::run(1, |sim| async move {
            let ((network, router), log) = (home(&sim), Log::default());
            if upnp {
                tokio::spawn(speak_upnp(router.clone(), log.clone()));
            } else {
                tokio::spawn(speak_pcp(router.clone(), log.clone()));
            }
            let unplug = async {
                sleep(Duration::from_secs(30)).await;
                router.isolate();
            };
            let mut mapper = Mapper::new(network, GATEWAY, OURS, NONCE);
            let (told, ()) = tokio::join!(run_for(&mut mapper, Duration::from_secs(4000)), unplug);
            assert!(matches!(told[..], [Some(_), None]), "UPnP: {upnp}, {told:?}");
        });
    }
}

#[test]
fn a_probe_tells_what_the_router_speaks_and_maps_nothing() {
    sim::run(1, |sim| async move {
        let ((network, router), log) = (home(&sim), Log::default());
        let silent = probe(&*network).await;
        assert_eq!(silent, PortMappingReport { gateway: Some(GATEWAY), ..PortMappingReport::default() });
        assert!(!silent.is_useful());
        tokio::spawn(speak_pcp(router.clone(), log.clone()));
        tokio::spawn(speak_upnp(router, log.clone()));
        let report = probe(&*network).await;
        assert!(report.pcp && report.upnp && !report.nat_pmp && report.is_useful(), "{report:?}");
        assert_eq!(report.external, Some(EXTERNAL));
        assert!(log.taken().is_empty());
    });
}
