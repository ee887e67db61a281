//! `panda join`: follows a document that somebody else shared, in a file here.

use std::path::PathBuf;

use clap::Args;
use panda_network::DocumentTicket;

use crate::error::CliError;
use crate::file_sync::file_text::{FileProblem, read_text, resolve};
use crate::file_sync::session::Session;
use crate::file_sync::state_file::StateFile;
use crate::options::NodeArgs;

/// Join a shared document: keeps a file here in step with the file that was shared
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "Examples:
  panda join panda:aeqqb... notes.md   keep notes.md in step until Ctrl-C
  panda join notes.md                  again: goes on where it stopped, with what you edited meanwhile
  panda join --relay relay.example.org panda:aeqqb... notes.md
                                       be found at this relay too; those in the ticket are used in any case
  panda join --relay-only panda:aeqqb... notes.md
                                       tell the others no address of this machine

The status line says how peers are reached. If it stays at \"no peer connected\", `panda doctor TICKET` says why.

If notes.md has other content when you join for the first time, that is kept as notes.md.before-join.")]
pub struct JoinArgs {
    /// The ticket that `panda share` printed; needed once, the document is remembered with the file
    pub ticket: Option<String>,
    /// The file to keep in step; made if it is not there
    #[arg(value_parser = file_and_no_ticket)]
    pub file: PathBuf,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `panda join TICKET`, with the file forgotten, is not to make a file of that name.
fn file_and_no_ticket(text: &str) -> Result<PathBuf, String> {
    match text.starts_with("panda:") {
        true => Err("this is a ticket; name the file to keep in step after it".into()),
        false => Ok(text.into()),
    }
}

/// Runs until Ctrl-C.
///
/// # Errors
/// When the ticket or the file cannot be used or the node fails.
pub async fn run(args: JoinArgs) -> Result<(), CliError> {
    let ticket: Option<DocumentTicket> = args.ticket.as_deref().map(str::parse).transpose()?;
    let file = resolve(&args.file).map_err(CliError::io("find the directory of", &args.file))?;
    match read_text(&file) {
        Ok(_) | Err(FileProblem::Missing) => {}
        Err(problem) => return Err(CliError::File { path: args.file, problem }),
    }
    let data_dir = args.node.data_dir_for(&file)?;
    let last = StateFile::load(&data_dir, &file)?;
    let id = match (last.as_ref().and_then(StateFile::document), &ticket) {
        (Some(id), Some(ticket)) if id != ticket.document() => {
            return Err(CliError::OtherDocument { path: args.file });
        }
        (Some(id), _) => id,
        (None, Some(ticket)) => ticket.document(),
        (None, None) => return Err(CliError::NoDocument { path: args.file }),
    };
    let reach = args.node.reach.or(last.as_ref().map(StateFile::reach));
    // Without a ticket there may be relays in what is known of the peers.
    if reach.relay_only && reach.relays.is_empty() && ticket.as_ref().is_some_and(|ticket| ticket.relays().is_empty()) {
        return Err(CliError::RelayOnly);
    }
    let network = args.node.start(&data_dir, last.as_ref().and_then(StateFile::port), &reach).await?;
    let events = network.events();
    let state = match StateFile::recover(&data_dir, &file)? {
        Some(state) => state,
        None => StateFile::new(&data_dir, &file, id),
    };
    let document = match ticket {
        Some(ticket) => network.open(ticket).await?,
        None => network.reopen(id).await?,
    };
    eprintln!("Following the shared document in {}; Ctrl-C stops.", args.file.display());
    Session::new(network, events, document, state, file, reach).run().await
}
