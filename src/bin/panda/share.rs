//! `panda share`: makes a file a shared document, prints its ticket and follows it.

use std::path::PathBuf;

use clap::Args;

use crate::error::CliError;
use crate::file_sync::file_text::{read_text, resolve};
use crate::file_sync::session::Session;
use crate::file_sync::state_file::StateFile;
use crate::options::NodeArgs;

/// Share a text file: prints a ticket and keeps the file in step with everyone who joins
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  panda share notes.md                 print a ticket, then keep notes.md in step until Ctrl-C
  panda share notes.md                 again: goes on with the same document and ticket
  panda share --listen 0.0.0.0:7000 notes.md
                                       listen on a fixed port, for a firewall rule

Who has the ticket can read and write the document: send it like a password.")]
pub struct ShareArgs {
    /// The text file to share (UTF-8, at most 16 MiB)
    pub file: PathBuf,
    #[command(flatten)]
    pub node: NodeArgs,
}

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
    let network = args.node.start(&data_dir, last.as_ref().and_then(StateFile::port)).await?;
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
    let ticket = document.ticket().await?.to_string();
    println!("{ticket}");
    eprintln!("Sharing {}. On the other side:\n\n  panda join {ticket} {}\n", args.file.display(), hint(&file));
    Session::new(network, document, state, file).run().await
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
