//! coturn, as the STUN and TURN server that was not written here.
//!
//! Credentials are those of its REST API: user `<expiry>:<name>`, password base64(HMAC-SHA1([`SECRET`], user)).

use std::net::SocketAddrV4;
use std::process::Command;

use crate::helper::helper;
use crate::process::Process;
use crate::shell::PATIENCE;
use crate::site::Server;

pub const SECRET: &str = "not-a-secret";
pub const REALM: &str = "turn.test";
pub const PORT: u16 = 3478;
/// UDP and TCP without TLS; for TLS on 443 give `--tls-listening-port`, which leaves this one out.
pub const HTTPS_PORT: u16 = 443;

/// A running server, killed on drop. It answers when this exists.
#[derive(Debug)]
pub struct Turn {
    process: Process,
    address: SocketAddrV4,
}

impl Turn {
    /// On both addresses of the server, for RFC 5780: port 3478, the alternate port 3479, and 443.
    #[track_caller]
    pub fn start(server: &Server) -> Self {
        Self::start_with(server, &[])
    }

    /// With more of coturn's options.
    #[track_caller]
    pub fn start_with(server: &Server, options: &[&str]) -> Self {
        let mut command = Command::new("turnserver");
        command.args(["-n", "--no-cli", "--log-file=stdout", "--simple-log"]);
        command.arg(format!("--pidfile={}", server.directory().join("turnserver.pid").display()));
        command.args(["--use-auth-secret", "--min-port=49152", "--max-port=49999"]);
        command.args([format!("--static-auth-secret={SECRET}"), format!("--realm={REALM}")]);
        command.args([format!("--listening-port={PORT}")]);
        command.args([server.ip(), server.second_ip()].map(|ip| format!("--listening-ip={ip}")));
        if !options.iter().any(|option| option.starts_with("--tls-listening-port")) {
            command.arg(format!("--aux-server={}:{HTTPS_PORT}", server.ip()));
        }
        let process = server.spawn("turnserver", command.args(options));
        let address = SocketAddrV4::new(server.ip(), PORT);
        let probe = helper(&["stun", &address.to_string()]);
        crate::shell::until("coturn answers", PATIENCE, || server.try_run(&probe).ok());
        Self { process, address }
    }

    /// Of STUN and TURN, over UDP and TCP.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// For an orderly end or a crash.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
