//! Hashes by which the hub calls files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// What a file is called on the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    /// SHA-256 of a file in Git LFS.
    Sha256,
    /// What git calls any other: SHA-1 of `blob`, its length and the file.
    Git,
}

impl Hash {
    /// The one that a name of the hub is of; none for a name that is no hash, as mirrors may give.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let is_hex = name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match name.len() {
            64 if is_hex => Some(Self::Sha256),
            40 if is_hex => Some(Self::Git),
            _ => None,
        }
    }

    /// The hash of a file, in hexadecimal digits.
    pub(crate) fn of_file(self, path: &Path) -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut context = match self {
            Self::Sha256 => Context::new(&SHA256),
            Self::Git => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {}\0", file.metadata()?.len()).as_bytes());
                context
            }
        };
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => context.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
