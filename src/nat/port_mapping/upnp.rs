//! Messages of UPnP's Internet Gateway Device, the way to map a port that most home routers know: text in, text out.
//!
//! The driver sends [`search`] and takes the first [`location`] of a router, gets the description there, finds the [`Service`]
//! in it, and asks that for [`Action`]s. Everything is one HTTP request and its [`response`] per TCP connection.
//!
//! What answers may be anything in the local network. So it is only asked where it answered from, its texts are bounded by
//! the driver, and XML is read without entities of its own.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// Where devices listen for searches (UPnP Device Architecture 1.1, section 1.3.2).
pub const SEARCH_ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// What is searched for: version 2 devices answer to 1 too (section 1.3.2).
const DEVICE: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
/// The services that map ports (WANIPConnection:1 section 2.4), the better one first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// What users see in their router's list.
const DESCRIPTION: &str = "panda-network";
/// Error codes (WANIPConnection:1 section 2.4.16): the router wants no lifetime; another host has the port.
pub const ONLY_PERMANENT_LEASES: u16 = 725;
/// See [`ONLY_PERMANENT_LEASES`].
pub const CONFLICT: u16 = 718;

/// Something that a router offers by HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Where.
    pub address: SocketAddrV4,
    /// What, from the first `/` on.
    path: String,
}

impl Resource {
    /// `http://192.168.1.1:5000/rootDesc.xml`. Only addresses, no names: nobody is looked up for a router's word.
    fn parse(url: &str) -> Option<Self> {
        let rest = url.trim().strip_prefix("http://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address = host.parse().or_else(|_| host.parse().map(|ip| SocketAddrV4::new(ip, 80))).ok()?;
        Some(Self { address, path: if path.is_empty() { "/".into() } else { clean(path)? } })
    }

    /// What a description at this place means by a path: relative, or in full at the same address.
    fn join(&self, path: &str) -> Option<Self> {
        let path = path.trim();
        if path.starts_with("http://") {
            return Self::parse(path).filter(|other| other.address.ip() == self.address.ip());
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Self { address: self.address, path: clean(&path)? })
    }

    /// Asks for it.
    pub fn get(&self) -> String {
        format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.path, self.address)
    }
}

/// A path that cannot break out of its line.
fn clean(path: &str) -> Option<String> {
    path.bytes().all(|byte| byte.is_ascii_graphic()).then(|| path.to_owned())
}

/// A search for routers, to be sent to [`SEARCH_ADDRESS`] and to the router itself.
pub fn search() -> String {
    format!("M-SEARCH * HTTP/1.1\r\nHOST: {SEARCH_ADDRESS}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {DEVICE}\r\n\r\n")
}

/// Where the sender of an answer to a search has its description; `None` if it speaks of somebody else.
pub fn location(answer: &[u8], from: SocketAddr) -> Option<Resource> {
    let text = std::str::from_utf8(answer).ok()?;
    let mut lines = text.split("\r\n");
    let ok = lines.next()?.split(' ').nth(1) == Some("200");
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |name: &str| {
        headers.iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let gateway = header("st").is_some_and(|target| target.contains(":InternetGatewayDevice:"));
    let resource = Resource::parse(header("location")?)?;
    (ok && gateway && from.ip() == *resource.address.ip()).then_some(resource)
}

/// What an HTTP server answered: status and body. `None` while there is more to come; `ended` says that there is not.
pub fn response(bytes: &[u8], ended: bool) -> Option<(u16, Vec<u8>)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |name: &str| {
        headers.iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return Some((status, unchunk(body)?));
    }
    let length = header("content-length").and_then(|length| length.parse::<usize>().ok());
    match length {
        Some(length) => Some((status, body.get(..length)?.to_vec())),
        None => ended.then(|| (status, body.to_vec())),
    }
}

/// RFC 9112, section 7.1; `None` when the last chunk is missing.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend(rest.get(..size)?);
        rest = rest.get(size.checked_add(2)?..)?;
    }
}

/// What maps ports on one router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Where it takes actions.
    pub control: Resource,
    kind: &'static str,
}

impl Service {
    /// The best service in the description that was found at `place`.
    pub fn find(description: &str, place: &Resource) -> Option<Self> {
        let document = roxmltree::Document::parse(description).ok()?;
        let text = |node: roxmltree::Node<'_, '_>, name: &str| {
            let child = node.children().find(|child| child.tag_name().name() == name)?;
            Some(child.text()?.trim().to_owned())
        };
        SERVICES.into_iter().find_map(|kind| {
            let services = document.descendants().filter(|node| node.tag_name().name() == "service");
            let mut wanted = services.filter(|node| text(*node, "serviceType").is_some_and(|found| found == kind));
            Some(Self { control: place.join(&text(wanted.next()?, "controlURL")?)?, kind })
        })
    }
}

/// What is asked of a [`Service`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Its address outside.
    ExternalAddress,
    /// A UDP port, for so many seconds; 0 is for ever.
    Add {
        /// Outside.
        external_port: u16,
        /// Ours.
        inside: SocketAddrV4,
        /// In seconds.
        lease: u32,
    },
    /// Takes a UDP port back.
    Delete {
        /// Outside.
        external_port: u16,
    },
}

impl Action {
    /// The HTTP request.
    pub fn request(&self, service: &Service) -> String {
        let (name, arguments) = match self {
            Self::ExternalAddress => ("GetExternalIPAddress", String::new()),
            Self::Add { external_port, inside, lease } => {
                // In the order of the specification, which some routers insist on.
                let mut arguments = mapping(*external_port);
                let (ip, port) = (inside.ip(), inside.port());
                let _ = write!(
                    arguments,
                    "<NewInternalPort>{port}</NewInternalPort><NewInternalClient>{ip}</NewInternalClient>\
                     <NewEnabled>1</NewEnabled><NewPortMappingDescription>{DESCRIPTION}</NewPortMappingDescription>\
                     <NewLeaseDuration>{lease}</NewLeaseDuration>"
                );
                ("AddPortMapping", arguments)
            }
            Self::Delete { external_port } => ("DeletePortMapping", mapping(*external_port)),
        };
        let Service { control: Resource { address, path }, kind } = service;
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{kind}\">\
             {arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        );
        format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
             SOAPAction: \"{kind}#{name}\"\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

fn mapping(external_port: u16) -> String {
    format!(
        "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external_port}</NewExternalPort><NewProtocol>UDP</NewProtocol>"
    )
}

/// The router's address in an answer to [`Action::ExternalAddress`].
pub fn external_address(body: &str) -> Option<Ipv4Addr> {
    element(body, "NewExternalIPAddress")?.parse().ok()
}

/// Why an action failed.
pub fn error_code(body: &str) -> Option<u16> {
    element(body, "errorCode")?.parse().ok()
}

fn element(body: &str, name: &str) -> Option<String> {
    let document = roxmltree::Document::parse(body).ok()?;
    let node = document.descendants().find(|node| node.tag_name().name() == name)?;
    Some(node.text()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Resource {
        Resource::parse("http://192.168.1.1:5000/igd/desc.xml").unwrap()
    }

    const ANSWER: &str = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
        ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLocation:http://192.168.1.1:5000/igd/desc.xml\r\n\r\n";

    const ROOT: &str = r#"<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device><serviceList>
        <service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/no</controlURL></service>
        </serviceList><deviceList><device><serviceList>
        <service><serviceType>urn:schemas-upnp-org:service:WANPPPConnection:1</serviceType><controlURL>/ppp</controlURL></service>
        <service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL> ctl/IPConn </controlURL></service>
        </serviceList></device></deviceList></device></root>"#;

    #[test]
    fn only_a_router_that_speaks_of_itself_is_found() {
        let from = "192.168.1.1:1900".parse().unwrap();
        assert_eq!(location(ANSWER.as_bytes(), from), Some(place()));
        assert_eq!(location(ANSWER.as_bytes(), "192.168.1.66:1900".parse().unwrap()), None);
        for (old, new) in [("InternetGatewayDevice", "MediaServer"), ("200 OK", "404 No"), ("http:", "https:")] {
            assert_eq!(location(ANSWER.replace(old, new).as_bytes(), from), None, "{new}");
        }
        assert_eq!(location(ANSWER.replace("192.168.1.1:5000", "evil.example").as_bytes(), from), None);
        assert_eq!(location(&[0xff, 0xfe], from), None);
    }

    #[test]
    fn the_best_service_of_a_description_is_taken_and_stays_at_its_router() {
        let service = Service::find(ROOT, &place()).unwrap();
        assert_eq!(service.kind, SERVICES[1]);
        assert_eq!(service.control, Resource { address: place().address, path: "/ctl/IPConn".into() });
        let full = |url: &str| Service::find(&ROOT.replace(" ctl/IPConn ", url), &place());
        assert_eq!(full("http://192.168.1.1:6000/c").unwrap().control.address.port(), 6000);
        // The next service is better than one somewhere else.
        for elsewhere in ["http://192.168.1.66/c", "/a b", "/a\r\nHost: x"] {
            assert_eq!(full(elsewhere).unwrap().control.path, "/ppp", "{elsewhere}");
        }
        assert_eq!(Service::find("<root>", &place()), None);
        let entities = r#"<!DOCTYPE x [<!ENTITY a "b">]><root>&a;</root>"#;
        assert_eq!(Service::find(entities, &place()), None);
    }

    #[test]
    fn an_action_is_a_request_whose_length_is_right() {
        let service = Service::find(ROOT, &place()).unwrap();
        let inside = "192.168.1.2:4000".parse().unwrap();
        let request = Action::Add { external_port: 7000, inside, lease: 3600 }.request(&service);
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /ctl/IPConn HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert!(head.contains("SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\""));
        for (name, value) in [
            ("NewExternalPort", "7000"),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", "4000"),
            ("NewInternalClient", "192.168.1.2"),
            ("NewLeaseDuration", "3600"),
        ] {
            assert_eq!(element(body, name).as_deref(), Some(value), "{name}");
        }
        let request = Action::Delete { external_port: 7000 }.request(&service);
        assert!(request.contains("DeletePortMapping") && request.contains("<NewExternalPort>7000<"));
    }

    #[test]
    fn answers_are_read_whether_they_come_at_length_in_chunks_or_to_the_end() {
        let body = "<a><NewExternalIPAddress>203.0.113.9</NewExternalIPAddress></a>";
        let long = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (first, rest) = body.split_at(9);
        let chunks = format!("9\r\n{first}\r\n{:X};x=y\r\n{rest}\r\n0\r\n\r\n", rest.len());
        let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let open = format!("HTTP/1.1 200 OK\r\n\r\n{body}");
        for (text, needs_end) in [(&long, false), (&chunked, false), (&open, true)] {
            let (status, read) = response(text.as_bytes(), needs_end).unwrap();
            let read = String::from_utf8(read).unwrap();
            assert_eq!((status, external_address(&read)), (200, Some([203, 0, 113, 9].into())));
            assert_eq!(response(&text.as_bytes()[..text.len() - 12], false), None, "{text}");
        }
        let fault = "<s><UPnPError><errorCode>718</errorCode></UPnPError></s>";
        assert_eq!(error_code(fault), Some(CONFLICT));
        for noise in ["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n", "\r\n\r\n", "x"] {
            assert_eq!(response(noise.as_bytes(), true), None);
        }
    }

    #[test]
    fn a_description_that_is_nested_without_end_is_read_or_refused() {
        let deep = "<a>".repeat(crate::limits::ROUTER_ANSWER_MAX_BYTES / 3);
        assert_eq!(Service::find(&deep, &place()), None);
        let closed = format!("{}{}", "<a>".repeat(9000), "</a>".repeat(9000));
        assert_eq!(Service::find(&closed, &place()), None);
    }
}
