//! A file in a 7z archive.

use std::{
    io::{BufReader, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use sevenz_rust2::{ArchiveEntry, ArchiveReader, EntryDecision, Error, Password};
use sideburn_files::open_regular;

use crate::error::DataError;

/// The most bytes of one file, and of all. SAMSum's are 9.7 MB and 10.8 MB.
const ENTRY_LIMIT: u64 = 256 << 20;
const TOTAL_LIMIT: u64 = 512 << 20;
/// How much larger than the archive its files may be together, but for small ones. Text becomes 3 to 10 times smaller.
const RATIO: u64 = 100;
const ALWAYS: u64 = 1 << 20;
/// The most memory that unpacking may take, in KiB: dictionaries, as large as the archive says.
const MEMORY_KIB: usize = 256 << 10;
const MAX_FILES: usize = 10_000;

/// The bytes of the file in the archive at `path` whose name, without folders, `is_wanted`, and what errors call it.
pub(crate) fn read_member(
    path: &Path,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Option<(PathBuf, Vec<u8>)>, DataError> {
    // A library that reads what strangers have written.
    catch_unwind(AssertUnwindSafe(|| unpack(path, is_wanted)))
        .unwrap_or_else(|_| Err(damaged(path, "the library panicked on it")))
}

fn damaged(path: &Path, reason: impl ToString) -> DataError {
    DataError::Container { path: path.to_path_buf(), reason: reason.to_string() }
}

fn unpack(path: &Path, is_wanted: &dyn Fn(&str) -> bool) -> Result<Option<(PathBuf, Vec<u8>)>, DataError> {
    let (file, size) = open_regular(path)?;
    let fail = |error: Error| damaged(path, error);
    let mut reader = ArchiveReader::new_with_memory_limit(BufReader::new(file), Password::empty(), MEMORY_KIB);
    let reader = reader.as_mut().map_err(|error| damaged(path, error))?;
    let limit = TOTAL_LIMIT.min(size.saturating_mul(RATIO).max(ALWAYS));
    let wanted = check(path, &reader.archive().files, limit, is_wanted)?;
    let Some(wanted) = wanted else { return Ok(None) };
    // A block is unpacked from its beginning.
    let mut bytes = Vec::new();
    reader
        .for_each_entries_with_decision(|entry, content| {
            if entry.name != wanted {
                return Ok(EntryDecision::Continue);
            }
            // To the end, where the checksum is compared; sizes have been looked at.
            content.take(ENTRY_LIMIT).read_to_end(&mut bytes)?;
            Ok(EntryDecision::Stop)
        })
        .map_err(fail)?;
    Ok(Some((path.join(wanted), bytes)))
}

/// The name of the one file that is wanted, if the archive may be unpacked at all.
fn check(
    path: &Path,
    files: &[ArchiveEntry],
    limit: u64,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Option<String>, DataError> {
    if files.len() > MAX_FILES {
        return Err(damaged(path, format!("it holds {} files, more than {MAX_FILES}", files.len())));
    }
    let (mut total, mut found) = (0u64, None);
    for entry in files {
        let name = &entry.name;
        let parts = || name.split(['/', '\\']);
        if parts().any(|part| part == "..") || name.starts_with(['/', '\\']) || name.contains([':', '\0']) {
            return Err(DataError::UnsafeName { path: path.to_path_buf(), name: name.clone() });
        }
        total = total.saturating_add(entry.size);
        if entry.size > ENTRY_LIMIT || total > limit {
            let (path, limit) = if total > limit { (path.into(), limit) } else { (path.join(name), ENTRY_LIMIT) };
            return Err(DataError::Bomb { path, limit });
        }
        if !entry.is_directory && is_wanted(parts().next_back().unwrap_or_default()) {
            if let Some(first) = found {
                let reason = format!("both {first} and {name} are the split that is asked for");
                return Err(damaged(path, reason));
            }
            found = Some(name.clone());
        }
    }
    Ok(found)
}
