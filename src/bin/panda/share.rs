//! `panda share`: makes a file a shared document, prints its ticket and follows it.

use std::path::PathBuf;

use clap::Args;
use panda_network::DocumentTicket;

use crate::error::CliError;
use crate::file_sync::file_text::{read_text, resolve};
use crate::file_sync::session::Session;
use crate::file_sync::state_file::StateFile;
use crate::options::NodeArgs;
use crate::reach::wait_for_relay;

/// Share a text file: prints a ticket and keeps the file in step with everyone who joins
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  panda share notes.md                 print a ticket, then keep notes.md in step until Ctrl-C
  panda share notes.md                 again: goes on with the same document and ticket
  panda share --relay relay.example.org#mzxw6... notes.md
                                       for others anywhere, behind NATs and firewalls; remembered with the file
  panda share --listen 0.0.0.0:7000 notes.md
                                       listen on a fixed port, for a firewall rule
  panda share --ticket-without-addresses notes.md
                                       a shorter ticket, for others in the same network

In one network the two sides find each other without any address (multicast DNS); others there see that somebody uses
this program, but neither who nor for what. --no-lan turns that off.

A relay introduces nodes to each other and forwards when nothing else works; it can read nothing of what they say. Your
cooperative runs one (`panda relay`). `panda doctor` says whether others will reach you.

Who has the ticket can read and write the document: send it like a password.")]
pub struct ShareArgs {
    /// The text file to share (UTF-8, at most 16 MiB)
    pub file: PathBuf,
    /// Print a ticket that names no address and no relay: for others in the same network only
    #[arg(long, conflicts_with = "no_lan")]
    pub ticket_without_addresses: bool,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Said when nobody helps through NATs.
const NO_RELAY: &str = "\
No relay is given: others can join on the same network, or if this machine has a public address. To be reached through
NATs and firewalls, share with --relay HOST, the relay of your cooperative.
";

/// Runs until Ctrl-C.
///
/// # Errors
/// When the file cannot be shared or the node fails.
pub async fn run(args: ShareArgs) -> Result<(), CliError> {
    let file = resolve(&args.file).map_err(CliError::io("find", &args.file))?;
    let data_dir = args.node.data_dir_for(&file)?;
    let last = StateFile::load(&data_dir, &file)?;
    if last.is_none() {
        read_text(&file).map_err(|problem| CliError::File { path: args.file.clone(), problem })?;
    }
    let reach = args.node.reach.or(last.as_ref().map(StateFile::reach));
    if reach.relay_only && reach.relays.is_empty() {
        return Err(CliError::RelayOnly);
    }
    if args.ticket_without_addresses && reach.relay_only {
        return Err(CliError::LeadsNowhere);
    }
    let network = args.node.start(&data_dir, last.as_ref().and_then(StateFile::port), &reach).await?;
    let events = network.events();
    let (document, state) = match StateFile::recover(&data_dir, &file)? {
        Some(state) => {
            let id = state.document().ok_or_else(|| CliError::OtherDocument { path: args.file.clone() })?;
            (network.reopen(id).await?, state)
        }
        None => {
            let document = network.create().await?;
            let mut state = StateFile::new(&data_dir, &file, document.id());
            // Nothing of the document is in the file yet, so all of the file is an edit.
            state.set_written(0)?;
            (document, state)
        }
    };
    let trouble = wait_for_relay(&network).await;
    let mut ticket = document.ticket().await?;
    if args.ticket_without_addresses {
        ticket = DocumentTicket::new(ticket.document(), ticket.key().clone());
    }
    let ticket = ticket.to_string();
    println!("{ticket}");
    eprintln!("Sharing {}. On the other side:\n\n  panda join {ticket} {}\n", args.file.display(), hint(&file));
    if reach.relays.is_empty() {
        eprintln!("{NO_RELAY}");
    }
    if let Some(reason) = trouble {
        eprintln!("No relay is up yet ({reason}). Others elsewhere can join when one is; `panda doctor` says more.\n");
    }
    Session::new(network, events, document, state, file, reach).run().await
}

/// The file's bare name, for the command that the other side types into a shell.
fn hint(file: &std::path::Path) -> String {
    let name = file.file_name().map_or_else(|| "notes.md".into(), |name| name.to_string_lossy().into_owned());
    let plain = |c: char| c.is_alphanumeric() || "._-".contains(c);
    if name.chars().all(plain) { name } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_hint_can_be_pasted_into_a_shell() {
        assert_eq!(hint(Path::new("/home/me/notes.md")), "notes.md");
        assert_eq!(hint(Path::new("/home/me/Bob's list.md")), r"'Bob'\''s list.md'");
    }
}
