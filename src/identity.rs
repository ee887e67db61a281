//! Who this node is: one Ed25519 key, made on first start, kept in a file that only its owner can read.
//!
//! The same key signs operations and authenticates connections. Losing the file means being a new peer;
//! copying it to a second device makes two peers that look like one, which the network will take for a fork.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use p2panda_core::SigningKey;
use zeroize::Zeroizing;

use crate::error::IdentityError;
use crate::ids::PeerId;

/// The signing key of this node. Clones share one key, which is wiped from memory with the last of them.
#[derive(Clone)]
pub struct Identity {
    signing_key: Arc<SigningKey>,
    peer_id: PeerId,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.peer_id.short())
    }
}

impl Identity {
    /// A new identity from the operating system's random number generator, kept in memory only.
    pub fn generate() -> Self {
        Self::from_key(SigningKey::generate())
    }

    /// The identity with this secret seed (32 bytes). For tests and for editors that keep keys elsewhere.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::from_key(SigningKey::from_bytes(seed))
    }

    /// Reads the identity from `path`, or makes one there with mode 0600 when there is none.
    ///
    /// # Errors
    /// [`IdentityError`] when the file cannot be used, is damaged, or can be read by others.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match File::open(path) {
            Ok(file) => Self::load(path, file),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::create(path),
            Err(source) => Err(IdentityError::Io { path: path.into(), source }),
        }
    }

    /// The public half: how other peers know this node.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    pub(crate) fn signing_key(&self) -> &SigningKey {
        &self.signing_key
    }

    fn from_key(signing_key: SigningKey) -> Self {
        let peer_id = signing_key.verifying_key().into();
        Self { signing_key: Arc::new(signing_key), peer_id }
    }

    fn load(path: &Path, mut file: File) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io { path: path.into(), source };
        let metadata = file.metadata().map_err(io)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(IdentityError::Exposed { path: path.into(), mode });
            }
        }
        if metadata.len() != 32 {
            return Err(IdentityError::Damaged { path: path.into(), actual: metadata.len() });
        }
        let mut seed = Zeroizing::new([0; 32]);
        file.read_exact(seed.as_mut()).map_err(io)?;
        Ok(Self::from_seed(&seed))
    }

    /// Writes the key to a temporary file, syncs it and links it to `path`: a crash leaves the whole key or none,
    /// and of two processes that start at once one wins and the other reads the winner's key.
    fn create(path: &Path) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io { path: path.into(), source };
        let identity = Self::generate();
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let mut file = options.open(&temporary).map_err(io)?;
        file.write_all(identity.signing_key.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        let linked = std::fs::hard_link(&temporary, path);
        let _ = std::fs::remove_file(&temporary);
        match linked {
            Ok(()) => {
                if let Some(directory) = path.parent().and_then(|parent| File::open(parent).ok()) {
                    directory.sync_all().map_err(io)?;
                }
                Ok(identity)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::load_or_create(path),
            Err(source) => Err(io(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_made_on_first_start_is_the_same_on_the_second() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        let first = Identity::load_or_create(&path).unwrap();
        assert_eq!(first.peer_id(), Identity::load_or_create(&path).unwrap().peer_id());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file stays behind");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_key() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        Identity::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::Exposed { mode: 0o644, .. })));
    }

    #[test]
    fn a_damaged_key_file_is_an_error_and_not_a_new_identity() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        Identity::load_or_create(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(31).unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(IdentityError::Damaged { actual: 31, .. })));
    }

    #[test]
    fn the_secret_is_not_in_the_debug_output() {
        let identity = Identity::from_seed(&[0x5A; 32]);
        assert!(!format!("{identity:?}").to_lowercase().contains("5a5a"));
    }
}
