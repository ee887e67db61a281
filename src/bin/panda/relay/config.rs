//! `relay.toml`: what may be in it, and how it becomes the options of a relay.
//!
//! Strict: an unknown key or a value that cannot be is an error that names the line. `relay.example.toml` shows all keys.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use panda_network::identity::Identity;
use panda_network::relay::{
    Alternate, ExternalServer, ExternalTurn, IpNetwork, PeerPolicy, Rate, RelayLimits, RelayOptions, TurnMode,
};
use panda_network::rendezvous::address::{DEFAULT_PORT, HostPort};
use panda_network::rendezvous::pin::SpkiPin;
use panda_network::rendezvous::wire::TurnTransport;
use serde::{Deserialize, Deserializer, de};
use zeroize::Zeroizing;

/// Longest configuration worth reading, in bytes.
pub const CONFIG_MAX_BYTES: u64 = 64 * 1024;
/// The port of TURN without TLS, and of STUN (RFC 8489, section 18.6).
const STUN_PORT: u16 = 3478;
/// The port of TURN with TLS (RFC 8656, section 20.2).
const TURNS_PORT: u16 = 5349;
/// The port of the embedded default, which needs no privileges.
const LOCAL_PORT: u16 = 7443;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where TLS is taken.
    pub listen: Option<SocketAddr>,
    /// Where UDP is taken.
    pub datagrams: Option<SocketAddr>,
    /// What users reach the TLS port by.
    #[serde(deserialize_with = "optional")]
    pub public_address: Option<Server<DEFAULT_PORT>>,
    /// Where the key is.
    pub identity: Option<PathBuf>,
    admin: Option<SocketAddr>,
    #[serde(deserialize_with = "list")]
    stun: Vec<Server<STUN_PORT>>,
    public_ips: Vec<IpAddr>,
    relay_ips: Vec<IpAddr>,
    alternate: Option<AlternateConfig>,
    turn: TurnConfig,
    peers: PeersConfig,
    limits: LimitsConfig,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlternateConfig {
    ip: IpAddr,
    port: u16,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Embedded,
    External,
    Off,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TurnConfig {
    mode: Mode,
    tcp: Option<SocketAddr>,
    ports: Option<[u16; 2]>,
    #[serde(deserialize_with = "list")]
    servers: Vec<TurnUri>,
    secret: Option<String>,
}

impl std::fmt::Debug for TurnConfig {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TurnConfig({:?}, {:?})", self.mode, self.servers)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PeersConfig {
    #[serde(deserialize_with = "list")]
    allow: Vec<IpNetwork>,
    #[serde(deserialize_with = "list")]
    deny: Vec<IpNetwork>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsConfig {
    sessions: Option<usize>,
    sessions_per_address: Option<usize>,
    sessions_per_peer: Option<usize>,
    requests_per_second: Option<u64>,
    flows: Option<usize>,
    flows_per_client: Option<usize>,
    flows_per_address: Option<usize>,
    bytes_per_second: Option<u64>,
    bytes_per_second_per_client: Option<u64>,
    allocations: Option<usize>,
    allocations_per_user: Option<usize>,
    allocations_per_address: Option<usize>,
    streams: Option<usize>,
    streams_per_address: Option<usize>,
    stun_per_second_per_address: Option<u64>,
    records: Option<usize>,
    records_per_address: Option<usize>,
}

/// A host and a port, with a default for the port.
#[derive(Debug, Clone)]
pub struct Server<const PORT: u16>(pub HostPort);

impl<const PORT: u16> std::str::FromStr for Server<PORT> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        HostPort::parse(text, PORT).map(Self).map_err(|error| error.to_string())
    }
}

/// A TURN server as RFC 7065 writes it: `turn:host:port?transport=udp`, `turns:host:port`; after `#`, the pin of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TurnUri(ExternalServer);

impl std::str::FromStr for TurnUri {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no TURN server: turn:host:port?transport=udp or turns:host:port is");
        let (uri, pin) = text.split_once('#').map_or((text, None), |(uri, pin)| (uri, Some(pin)));
        let (scheme, rest) = uri.split_once(':').ok_or_else(wrong)?;
        let (server, transport) = rest.split_once("?transport=").map_or((rest, None), |(a, b)| (a, Some(b)));
        let (transport, port) = match (scheme, transport) {
            ("turn", None | Some("udp")) => (TurnTransport::Udp, STUN_PORT),
            ("turn", Some("tcp")) => (TurnTransport::Tcp, STUN_PORT),
            ("turns", None | Some("tcp")) => (TurnTransport::Tls, TURNS_PORT),
            _ => return Err(wrong()),
        };
        let server = HostPort::parse(server, port).map_err(|error| error.to_string())?;
        let pin: Option<SpkiPin> = pin.map(str::parse).transpose().map_err(|error| format!("{uri}: {error}"))?;
        if pin.is_some() && transport != TurnTransport::Tls {
            return Err(format!("{uri} shows no key that a pin could name: only turns: does"));
        }
        Ok(Self(ExternalServer { transport, server, pin }))
    }
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string().trim().replace('\n', "; "))?;
        let turn = &config.turn;
        match turn.mode {
            Mode::External
                if turn.servers.is_empty() || turn.secret.as_ref().is_none_or(|secret| secret.is_empty()) =>
            {
                Err("[turn] mode = \"external\" needs servers and secret".into())
            }
            Mode::Embedded | Mode::Off if !turn.servers.is_empty() || turn.secret.is_some() => {
                Err("[turn] servers and secret need mode = \"external\"".into())
            }
            Mode::External | Mode::Off if turn.tcp.is_some() || turn.ports.is_some() => {
                Err("[turn] tcp and ports need mode = \"embedded\"".into())
            }
            Mode::Embedded | Mode::External | Mode::Off => Ok(config),
        }
    }

    /// A relay for this machine alone, to try things with: on loopback, and it may send to loopback.
    pub fn local() -> Self {
        let loopback = ["127.0.0.0/8", "::1/128"].iter().filter_map(|text| text.parse().ok());
        Self { peers: PeersConfig { allow: loopback.collect(), deny: Vec::new() }, ..Self::default() }
    }

    /// Where it takes TLS connections.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, LOCAL_PORT)))
    }

    /// Where it takes datagrams: unless it was said, where it listens.
    pub fn datagrams_address(&self) -> SocketAddr {
        self.datagrams.unwrap_or(SocketAddr::new(self.listen_address().ip(), STUN_PORT))
    }

    /// Where it may send to.
    pub fn peer_policy(&self) -> PeerPolicy {
        let (allow, deny) = (self.peers.allow.iter().copied(), self.peers.deny.iter().copied());
        PeerPolicy::new().with_allowed(allow).with_denied(deny)
    }

    /// The options of the relay.
    pub fn into_options(self, identity: Identity) -> RelayOptions {
        let (listen, datagrams, policy) = (self.listen_address(), self.datagrams_address(), self.peer_policy());
        let turn = match self.turn.mode {
            Mode::Embedded => TurnMode::Embedded,
            Mode::External => TurnMode::External(ExternalTurn {
                servers: self.turn.servers.into_iter().map(|TurnUri(server)| server).collect(),
                secret: Zeroizing::new(self.turn.secret.unwrap_or_default()),
            }),
            Mode::Off => TurnMode::Off,
        };
        let mut options = RelayOptions::new(identity)
            .with_listen(listen)
            .with_datagrams(datagrams)
            .with_public_ips(self.public_ips)
            .with_relay_ips(self.relay_ips)
            .with_turn(turn)
            .with_stun_servers(self.stun.into_iter().map(|server| server.0))
            .with_peer_policy(policy)
            .with_limits(self.limits.into_limits());
        if let Some(Server(public)) = self.public_address {
            options = options.with_public_address(public);
        }
        if let Some(AlternateConfig { ip, port }) = self.alternate {
            options = options.with_alternate(Alternate { ip, port });
        }
        if let Some(tcp) = self.turn.tcp {
            options = options.with_turn_tcp(tcp);
        }
        if let Some([first, last]) = self.turn.ports {
            options = options.with_turn_ports(first..=last);
        }
        match self.admin {
            Some(admin) => options.with_admin(admin),
            None => options,
        }
    }
}

impl LimitsConfig {
    fn into_limits(self) -> RelayLimits {
        /// Sets what is there.
        fn set<T>(limits: RelayLimits, value: Option<T>, with: fn(RelayLimits, T) -> RelayLimits) -> RelayLimits {
            match value {
                Some(value) => with(limits, value),
                None => limits,
            }
        }
        let rate = |seconds| move |per_second: u64| Rate { per_second, burst: per_second.saturating_mul(seconds) };
        let limits = set(RelayLimits::new(), self.sessions, RelayLimits::with_sessions);
        let limits = set(limits, self.sessions_per_address, RelayLimits::with_sessions_per_address);
        let limits = set(limits, self.sessions_per_peer, RelayLimits::with_sessions_per_peer);
        let limits = set(limits, self.requests_per_second.map(rate(10)), RelayLimits::with_requests_per_client);
        let limits = set(limits, self.flows, RelayLimits::with_flows);
        let limits = set(limits, self.flows_per_client, RelayLimits::with_flows_per_client);
        let limits = set(limits, self.flows_per_address, RelayLimits::with_flows_per_address);
        let limits = set(limits, self.bytes_per_second.map(rate(1)), RelayLimits::with_bytes);
        let limits = set(limits, self.bytes_per_second_per_client.map(rate(2)), RelayLimits::with_bytes_per_client);
        let limits = set(limits, self.allocations, RelayLimits::with_allocations);
        let limits = set(limits, self.allocations_per_user, RelayLimits::with_allocations_per_user);
        let limits = set(limits, self.allocations_per_address, RelayLimits::with_allocations_per_address);
        let limits = set(limits, self.streams, RelayLimits::with_streams);
        let limits = set(limits, self.streams_per_address, RelayLimits::with_streams_per_address);
        let stun = self.stun_per_second_per_address.map(rate(10));
        let limits = set(limits, stun, RelayLimits::with_stun_per_address);
        let limits = set(limits, self.records, RelayLimits::with_records);
        set(limits, self.records_per_address, RelayLimits::with_records_per_address)
    }
}

/// A list of texts, each parsed.
fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

/// A text that is parsed, if it is there.
fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_understood() {
        let config = Config::parse(include_str!("../../../../relay.example.toml")).unwrap();
        assert_eq!(config.public_address.as_ref().unwrap().0.to_string(), "relay.example.org:443");
        assert_eq!(config.listen, Some("[::]:443".parse().unwrap()));
        config.into_options(Identity::from_seed(&[1; 32]));
    }

    #[test]
    fn every_commented_key_of_the_example_is_understood_too() {
        let example = include_str!("../../../../relay.example.toml");
        // A comment that is a section or a key, and no sentence.
        let is_name = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        let is_key = |text: &str| text.split_once(" = ").is_some_and(|(name, _)| is_name(name));
        let uncommented = example.lines().map(|line| match line.strip_prefix("# ") {
            Some(key) if key.starts_with('[') || is_key(key) => key,
            _ => line,
        });
        let text = uncommented.collect::<Vec<_>>().join("\n");
        for key in known_keys() {
            assert!(text.lines().any(|line| line.starts_with(&key)), "{key} is not explained");
        }
        let embedded = text.replace("servers =", "# servers =").replace("secret =", "# secret =");
        let config = Config::parse(&embedded).unwrap();
        assert_eq!((config.public_ips.len(), config.relay_ips.len(), config.stun.len()), (1, 2, 1));
        assert!(config.alternate.is_some() && config.turn.ports.is_some());
        assert_eq!((config.peers.allow.len(), config.peers.deny.len()), (1, 1));
        let external = text.replace("\"embedded\"\n", "\"external\"\n").replace("tcp =", "# tcp =");
        let config = Config::parse(&external.replace("ports =", "# ports =")).unwrap();
        assert!(config.turn.servers.len() == 3 && !format!("{config:?}").contains("static-auth-secret"));
    }

    /// All keys that may be in a file, and how its sections begin: an error lists what else it could have been.
    fn known_keys() -> Vec<String> {
        let sections = ["", "[turn]\n", "[peers]\n", "[limits]\n", "[alternate]\n"];
        let listed = sections.map(|section| Config::parse(&format!("{section}unknown = 1")).unwrap_err());
        let keys = listed.iter().flat_map(|error| error.split('`').skip(3).step_by(2));
        let key = |key: &str| match sections.iter().find(|section| section.starts_with(&format!("[{key}]"))) {
            Some(section) => section.trim().to_owned(),
            None => format!("{key} = "),
        };
        let keys: Vec<_> = keys.map(key).collect();
        assert!(keys.len() > 30, "{keys:?}");
        keys
    }

    #[test]
    fn every_quota_can_be_set_and_the_example_shows_the_defaults() {
        let quotas = include_str!("../../../../relay.example.toml").split_once("[limits]").unwrap().1;
        let limits = |text: &str| {
            let text = format!("[limits]\n{text}");
            format!("{:#?}", Config::parse(&text).unwrap().limits.into_limits())
        };
        let default = format!("{:#?}", RelayLimits::new());
        assert_eq!(limits(quotas), default);
        let others: Vec<_> = quotas.lines().map(|line| line.split_once(" = ").map_or("", |(key, _)| key)).collect();
        let others = limits(
            &others.into_iter().filter(|key| !key.is_empty()).fold(String::new(), |text, key| text + key + " = 7\n"),
        );
        let same = others.lines().zip(default.lines()).filter(|(left, right)| left == right);
        let same: Vec<_> =
            same.map(|(left, _)| left).filter(|line| line.contains(|c: char| c.is_ascii_digit())).collect();
        assert_eq!(same, [""; 0], "cannot be set");
    }

    #[test]
    fn what_is_not_known_is_an_error_that_names_it() {
        for (text, named) in [
            ("lisen = \"[::]:443\"", "lisen"),
            ("[limits]\nsesions = 1", "sesions"),
            ("listen = \"443\"", "listen"),
            ("public_address = \"a b\"", "a b"),
            ("[turn]\nmode = \"maybe\"", "maybe"),
            ("[turn]\nmode = \"external\"", "secret"),
            ("[turn]\nsecret = \"x\"", "external"),
            ("[turn]\nmode = \"off\"\ntcp = \"[::]:3478\"", "embedded"),
            ("[turn]\nmode = \"off\"\nports = [1, 2]", "embedded"),
            ("[turn]\nports = [1, 65536]", "65536"),
            ("[turn]\nmode = \"external\"\nsecret = \"x\"\nservers = [\"http:a\"]", "http:a"),
            ("[peers]\nallow = [\"10.0.0.0/40\"]", "10.0.0.0/40"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn turn_servers_are_written_as_everywhere() {
        let server = |text: &str| text.parse::<TurnUri>().map(|TurnUri(it)| (it.transport, it.server.to_string()));
        assert_eq!(server("turn:a"), Ok((TurnTransport::Udp, "a:3478".into())));
        assert_eq!(server("turn:a:1?transport=tcp"), Ok((TurnTransport::Tcp, "a:1".into())));
        assert_eq!(server("turns:[::1]:443"), Ok((TurnTransport::Tls, "[::1]:443".into())));
        assert_eq!(server("turns:a"), Ok((TurnTransport::Tls, "a:5349".into())));
        assert!(server("turns:a?transport=udp").is_err() && server("stun:a").is_err() && server("a").is_err());
    }

    #[test]
    fn a_pin_goes_with_tls_only() {
        let pin = SpkiPin::of(b"a key");
        let TurnUri(pinned) = format!("turns:a:443?transport=tcp#{pin}").parse().unwrap();
        assert_eq!((pinned.server.to_string(), pinned.pin), ("a:443".into(), Some(pin)));
        let TurnUri(any) = "turns:a".parse().unwrap();
        assert_eq!(any.pin, None);
        let plain = format!("turn:a#{pin}").parse::<TurnUri>().unwrap_err();
        assert!(plain.contains("only turns:"), "{plain}");
        let wrong = "turns:a#AAAA".parse::<TurnUri>().unwrap_err();
        assert!(wrong.contains("AAAA") && wrong.contains("turns:a"), "{wrong}");
    }
}
