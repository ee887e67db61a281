//! What runs inside of the namespaces: this test program again, as a small UDP tool. Independent of the node's own code, so
//! that the two can be compared: its STUN (RFC 8489) is one request and one attribute. Only `node` and `probe` are the library.
//!
//! `helper(&["punch", "11.0.0.2:3478"])` is the command. Every helper tells its results on lines of standard output.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::process::{Command, ExitCode};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use crate::mapped;

const MAGIC_COOKIE: u32 = 0x2112_A442;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const HEADER_BYTES: usize = 20;

/// How long one round of asking or knocking waits for packets.
const ROUND: Duration = Duration::from_millis(50);
const STUN_ROUNDS: u32 = 30;
const KNOCK_ROUNDS: u32 = 40;
const TCP_PATIENCE: Duration = Duration::from_secs(3);
/// What a late answer may take after the last packet was sent.
const STRAGGLERS: Duration = Duration::from_secs(1);

/// The command that runs a helper.
pub fn helper(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
    command.arg("helper").args(arguments);
    command
}

/// The helper's main.
pub fn main(arguments: &[String]) -> ExitCode {
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["stun", server] => stun(server),
        ["stun-tcp", server] => stun_tcp(server),
        ["punch", server] => punch(server),
        ["map", gateway, port, seconds] => map(gateway, port, seconds),
        ["node", directory, "share", relay, mapping] => mapped::run_node(directory, relay, *mapping == "map", None),
        ["node", directory, "join", relay, mapping, ticket] => {
            mapped::run_node(directory, relay, *mapping == "map", Some(ticket))
        }
        ["probe"] => mapped::run_probe(),
        ["echo", port] => echo(port),
        ["beat", target] => beat(target),
        ["measure", target, packets, per_second, bytes] => measure(target, packets, per_second, bytes),
        other => Err(io::Error::other(format!("no such helper: {other:?}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed {error}");
            ExitCode::FAILURE
        }
    }
}

/// `mapped <address>`: what a STUN server sees of a new socket.
fn stun(server: &str) -> io::Result<()> {
    let socket = open()?;
    say(&format!("mapped {}", mapped_address(&socket, address(server)?)?))
}

fn stun_tcp(server: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address(server)?, TCP_PATIENCE)?;
    stream.set_read_timeout(Some(TCP_PATIENCE))?;
    stream.write_all(&binding_request(1))?;
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let mut message = header.to_vec();
    message.resize(HEADER_BYTES + usize::from(u16::from_be_bytes([header[2], header[3]])), 0);
    stream.read_exact(&mut message[HEADER_BYTES..])?;
    let mapped = mapped_in(&message, 1).ok_or_else(|| io::Error::other("no mapped address in the answer"))?;
    say(&format!("mapped {mapped}"))
}

/// Tells its `mapped <address>`, reads the peer's from a line of standard input, and knocks until both have heard each other:
/// `connected <address>`, else `not connected`. Both sides have to knock at the same time.
fn punch(server: &str) -> io::Result<()> {
    let socket = open()?;
    say(&format!("mapped {}", mapped_address(&socket, address(server)?)?))?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let mut peer = address(line.trim())?;
    let (mut heard, mut admitted) = (false, false);
    for _ in 0..KNOCK_ROUNDS {
        // A send may fail while an address resolves; the next round tries again.
        let _ = socket.send_to(b"knock", peer);
        let end = Instant::now() + ROUND;
        while let Some((packet, from)) = receive(&socket, end) {
            // From where it comes is where it can be answered, whatever was told.
            peer = from;
            match packet.as_slice() {
                b"knock" => {
                    heard = true;
                    let _ = socket.send_to(b"come in", peer);
                }
                b"come in" => admitted = true,
                _ => {}
            }
            if heard && admitted {
                return say(&format!("connected {peer}"));
            }
        }
    }
    say("not connected")
}

/// Asks the router for a mapping of a UDP port (NAT-PMP, RFC 6886, 3.3), for so long: `external <port>`.
fn map(gateway: &str, port: &str, seconds: &str) -> io::Result<()> {
    let (socket, gateway) = (open()?, address(&format!("{gateway}:5351"))?);
    let (port, seconds): (u16, u32) = (parse(port)?, parse(seconds)?);
    let (version, map_udp) = (0, 1);
    let mut request = vec![version, map_udp, 0, 0];
    request.extend(port.to_be_bytes());
    // No wish for a certain external port.
    request.extend([0, 0]);
    request.extend(seconds.to_be_bytes());
    for _ in 0..STUN_ROUNDS {
        let _ = socket.send_to(&request, gateway);
        let end = Instant::now() + ROUND;
        while let Some((answer, _)) = receive(&socket, end) {
            if let [0, 129, result0, result1, _, _, _, _, _, _, external0, external1, ..] = answer[..] {
                let (result, external) = ([result0, result1], [external0, external1]);
                if result != [0, 0] {
                    return Err(io::Error::other(format!("refused with code {}", u16::from_be_bytes(result))));
                }
                return say(&format!("external {}", u16::from_be_bytes(external)));
            }
        }
    }
    Err(io::Error::other("no answer"))
}

/// Answers every packet with its own words and the address that it came from.
fn echo(port: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(format!("0.0.0.0:{port}"))?;
    say("ready")?;
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let mut answer = buffer[..length].to_vec();
        answer.extend(format!(" {from}").into_bytes());
        // Who asked may have moved away.
        let _ = socket.send_to(&answer, from);
    }
}

/// Sends to an echo for ever, and tells `heard <number> <address that the echo saw>`.
fn beat(target: &str) -> io::Result<()> {
    let (socket, target) = (open()?, address(target)?);
    for number in 0u64.. {
        // Without a network it beats on.
        let _ = socket.send_to(number.to_string().as_bytes(), target);
        let end = Instant::now() + ROUND;
        while let Some((answer, _)) = receive(&socket, end) {
            say(&format!("heard {}", String::from_utf8_lossy(&answer)))?;
        }
    }
    Ok(())
}

/// Sends so many packets to an echo, evenly, and tells of the answers:
/// `received <packets> least_us <round trip> middle_us <round trip> overtaken <packets> took_ms <from first to last>`.
fn measure(target: &str, packets: &str, per_second: &str, bytes: &str) -> io::Result<()> {
    let (socket, target) = (UdpSocket::bind("0.0.0.0:0")?, address(target)?);
    // Addresses on the way are resolved before it counts; the kernel keeps few packets back for that.
    let mut ready = false;
    while !ready {
        socket.send_to(b"ready", target)?;
        ready = receive(&socket, Instant::now() + STRAGGLERS).is_some();
    }
    let [packets, per_second, bytes] = [packets, per_second, bytes].map(|word| word.parse::<u32>().unwrap_or(1));
    let start = Instant::now();
    let sender = socket.try_clone()?;
    let sending = thread::spawn(move || {
        for number in 0..packets {
            let due = start + Duration::from_secs(1) * number / per_second;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let text = format!("{number} {}", start.elapsed().as_micros());
            let _ = sender.send_to(format!("{text:<0$}", bytes as usize).as_bytes(), target);
        }
    });
    let (mut trips, mut overtaken, mut latest, mut first, mut last) = (Vec::new(), 0, 0, None, Duration::ZERO);
    let planned = Duration::from_secs(1) * packets / per_second;
    while trips.len() < packets as usize {
        let end = start + planned.max(start.elapsed()) + STRAGGLERS;
        let Some((answer, _)) = receive(&socket, end) else { break };
        let text = String::from_utf8_lossy(&answer).into_owned();
        let mut numbers = text.split_whitespace().map_while(|word| word.parse::<u64>().ok());
        let (Some(number), Some(sent_us)) = (numbers.next(), numbers.next()) else { continue };
        last = start.elapsed();
        first.get_or_insert(last);
        trips.push(last.as_micros().saturating_sub(sent_us.into()));
        overtaken += u32::from(number < latest);
        latest = latest.max(number);
    }
    let _ = sending.join();
    trips.sort_unstable();
    let (least, middle) = (trips.first().unwrap_or(&0), trips.get(trips.len() / 2).unwrap_or(&0));
    let took = last.saturating_sub(first.unwrap_or_default()).as_millis();
    let received = trips.len();
    say(&format!("received {received} least_us {least} middle_us {middle} overtaken {overtaken} took_ms {took}"))
}

fn open() -> io::Result<UdpSocket> {
    UdpSocket::bind("0.0.0.0:0")
}

/// The next packet before `end`. Errors that tell of an earlier send are none of a receiver's business.
fn receive(socket: &UdpSocket, end: Instant) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2048];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        socket.set_read_timeout(Some(left)).ok()?;
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            return Some((buffer[..length].to_vec(), from));
        }
    }
}

fn mapped_address(socket: &UdpSocket, server: SocketAddr) -> io::Result<SocketAddrV4> {
    for round in 0..STUN_ROUNDS {
        let _ = socket.send_to(&binding_request(round), server);
        let end = Instant::now() + ROUND;
        while let Some((answer, from)) = receive(socket, end) {
            // Also the answer to an earlier request will do.
            let mapped = (0..=round).rev().find_map(|asked| mapped_in(&answer, asked));
            if let Some(mapped) = mapped.filter(|_| from == server) {
                return Ok(mapped);
            }
        }
    }
    Err(io::Error::other("no answer"))
}

/// A request without attributes. The number is its transaction id: nobody forges answers here.
fn binding_request(number: u32) -> [u8; HEADER_BYTES] {
    let mut request = [0; HEADER_BYTES];
    request[..2].copy_from_slice(&BINDING_REQUEST.to_be_bytes());
    request[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    request[16..].copy_from_slice(&number.to_be_bytes());
    request
}

/// XOR-MAPPED-ADDRESS (RFC 8489, 14.2) of the answer to that request.
fn mapped_in(message: &[u8], number: u32) -> Option<SocketAddrV4> {
    let header = message.get(..HEADER_BYTES)?;
    if header[..2] != BINDING_SUCCESS.to_be_bytes() || header[4..] != binding_request(number)[4..] {
        return None;
    }
    let mut rest = &message[HEADER_BYTES..];
    while let [kind0, kind1, length0, length1, value @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*length0, *length1]));
        let value_bytes = value.get(..length)?;
        if let (XOR_MAPPED_ADDRESS, [_, 1, port @ .., a, b, c, d]) = (u16::from_be_bytes([*kind0, *kind1]), value_bytes)
        {
            let port = u16::from_be_bytes(port.try_into().ok()?) ^ (MAGIC_COOKIE >> 16) as u16;
            let ip = Ipv4Addr::from_bits(u32::from_be_bytes([*a, *b, *c, *d]) ^ MAGIC_COOKIE);
            return Some(SocketAddrV4::new(ip, port));
        }
        // Values are padded to four bytes.
        rest = value.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn address(word: &str) -> io::Result<SocketAddr> {
    parse(word)
}

fn parse<T: FromStr<Err: Display>>(word: &str) -> io::Result<T> {
    word.parse().map_err(|error| io::Error::other(format!("{word}: {error}")))
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
