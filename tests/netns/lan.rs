//! Real `panda` processes in one network, with tickets that name nobody: they find each other by multicast DNS.

use std::fs;
use std::time::Instant;

use libtest_mimic::Trial;
use panda_network::DocumentTicket;

use crate::nat::Nat;
use crate::nodes::{PANDA, arrives, file, panda};
use crate::process::Process;
use crate::scene;
use crate::shell::PATIENCE;
use crate::site::Host;
use crate::world::World;

pub fn trials() -> Vec<Trial> {
    let needs = PANDA.map(|_| ()).ok_or("needs the feature `cli`");
    vec![
        scene("lan::two_in_one_network".into(), needs, two_in_one_network_find_each_other),
        scene("lan::after_a_move".into(), needs, one_who_comes_into_the_network_is_found),
        scene("lan::who_does_not_look".into(), needs, who_does_not_look_is_not_found),
    ]
}

fn two_in_one_network_find_each_other(world: &World) {
    let site = world.site(Nat::PortRestricted);
    let (left, right) = (site.host(), site.host());
    let (mut sharing, ticket) = share(&left);
    let start = Instant::now();
    let mut joined = panda(&right, &["join", &ticket], &file(&right));
    joined.wait_for("a connection", PATIENCE, |line| line.starts_with("1 peer").then_some(()));
    eprintln!("connected {:?} after `panda join` was started", start.elapsed());
    finds_a_peer(&mut joined);
    finds_a_peer(&mut sharing);
    arrives(&file(&right), "from the left\n");
    fs::write(file(&right), "from the left\nfrom the right\n").expect("the right file");
    arrives(&file(&left), "from the left\nfrom the right\n");
}

/// No ticket could name the address: it is from after the ticket was made.
fn one_who_comes_into_the_network_is_found(world: &World) {
    let (site, elsewhere) = (world.site(Nat::PortRestricted), world.site(Nat::PortRestricted));
    let (left, right) = (elsewhere.host(), site.host());
    let (_sharing, ticket) = share(&left);
    let _joined = panda(&right, &["join", &ticket], &file(&right));
    let start = Instant::now();
    left.move_to(&site);
    arrives(&file(&right), "from the left\n");
    eprintln!("the document arrived {:?} after the move", start.elapsed());
}

fn who_does_not_look_is_not_found(world: &World) {
    let site = world.site(Nat::PortRestricted);
    let (left, right, third) = (site.host(), site.host(), site.host());
    let (sharing, ticket) = share(&left);
    drop(sharing);
    let mut sharing = panda(&left, &["share", "--no-lan"], &file(&left));
    sharing.wait_for("a ticket", PATIENCE, |line| line.starts_with("panda:").then_some(()));
    let mut joined = [&right, &third].map(|host| panda(host, &["join", &ticket], &file(host)));
    // By the time that the others are connected, they would be with it, too.
    for process in &mut joined {
        finds_a_peer(process);
        process.wait_for("a connection", PATIENCE, |line| line.starts_with("1 peer").then_some(()));
    }
    assert!(!sharing.log().contains("1 peer"), "it was found");
    assert!(joined.iter().all(|process| !process.log().contains("2 peers")), "it was found");
    assert!(!file(&right).exists() && !file(&third).exists(), "the document came from somewhere");
}

/// Starts `panda share` with a ticket that names nobody; returns the ticket.
fn share(host: &Host) -> (Process, String) {
    fs::write(file(host), "from the left\n").expect("the left file");
    let mut sharing = panda(host, &["share", "--ticket-without-addresses"], &file(host));
    let ticket = sharing.wait_for("a ticket", PATIENCE, |line| line.starts_with("panda:").then(|| line.to_owned()));
    let parsed: DocumentTicket = ticket.parse().expect("a ticket");
    assert!(parsed.peers().is_empty() && parsed.relays().is_empty());
    (sharing, ticket)
}

fn finds_a_peer(process: &mut Process) {
    process.wait_for("a peer", PATIENCE, |line| line.starts_with("Found a peer in the local").then_some(()));
}
