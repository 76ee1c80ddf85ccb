//! Token ids kept on disk, so that the next start need not make them again.

use std::path::Path;

use sideburn_files::{FileError, read_capped, write_atomic};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::{
    error::DataError,
    example::Example,
    template::Template,
    tokenized::{Limits, TokenizedExample, TokenizedSet, tokenize_watched},
    tokenizer::Tokenizer,
};

/// What a file begins with. The number changes with whatever else of a file, or of tokenisation, does.
const MAGIC: &[u8; 16] = b"sideburn tokens1";
/// Larger than the tokens of any data set that is held in memory.
const FILE_LIMIT: u64 = 64 << 30;

/// As [`tokenize_watched`], of what an earlier call has kept in `directory`, if it was asked for the same: equal examples, tokenizer
/// files, template and limits.
///
/// `progress` is not called if there is nothing to do. The directory is made if it is not there, and holds a file for each question, named by a hash of it; what is no longer
/// needed may be deleted. Files appear whole, so that two processes may share a directory. One that is damaged is made again.
///
/// # Errors
/// Those of [`tokenize`](crate::tokenize), and [`DataError::File`] if the directory cannot be written.
pub fn tokenize_cached(
    directory: impl AsRef<Path>,
    examples: &[Example],
    tokenizer: &Tokenizer,
    template: &Template,
    limits: Limits,
    progress: impl FnMut(usize),
) -> Result<TokenizedSet, DataError> {
    let directory = directory.as_ref();
    let key = key(examples, tokenizer, template, limits);
    let path = directory.join(format!("{key:032x}.tokens"));
    // Whatever cannot be read is made again.
    let kept = read_capped(&path, FILE_LIMIT).ok().and_then(|bytes| from_bytes(&bytes, key, examples, limits));
    if let Some(set) = kept {
        return Ok(set);
    }
    let set = tokenize_watched(examples, tokenizer, template, limits, progress)?;
    std::fs::create_dir_all(directory).map_err(|source| FileError::writing(directory, source))?;
    write_atomic(&path, &to_bytes(&set, key))?;
    Ok(set)
}

/// A hash of all that token ids depend on. Each text is preceded by its length, so that none can pass for two.
fn key(examples: &[Example], tokenizer: &Tokenizer, template: &Template, limits: Limits) -> u128 {
    let mut hash = Xxh3::new();
    let mut text = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    text(concat!("sideburn-data ", env!("CARGO_PKG_VERSION")));
    text(template.as_str());
    text(&format!("{:032x} {} {}", tokenizer.hash(), limits.max_source_length, limits.max_target_length));
    for example in examples {
        text(&example.id);
        text(&example.fields.len().to_string());
        for (name, value) in &example.fields {
            text(name);
            text(value);
        }
        // The others are no part of what is tokenised.
        text(example.targets.first().map_or("", String::as_str));
    }
    hash.digest128()
}

/// Magic and key; counts; the two lengths of each example; all ids; a checksum of everything. All numbers little-endian.
fn to_bytes(set: &TokenizedSet, key: u128) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(key.to_le_bytes());
    for count in [set.len(), set.cut_prompts, set.cut_targets] {
        bytes.extend((count as u64).to_le_bytes());
    }
    for example in &set.examples {
        for ids in [&example.prompt, &example.target] {
            bytes.extend((ids.len() as u64).to_le_bytes());
        }
    }
    for example in &set.examples {
        for id in example.prompt.iter().chain(&example.target) {
            bytes.extend(id.to_le_bytes());
        }
    }
    bytes.extend(xxh3_128(&bytes).to_le_bytes());
    bytes
}

/// The same back, unless anything is wrong.
fn from_bytes(bytes: &[u8], key: u128, examples: &[Example], limits: Limits) -> Option<TokenizedSet> {
    let (bytes, checksum) = bytes.split_last_chunk::<16>()?;
    if u128::from_le_bytes(*checksum) != xxh3_128(bytes) {
        return None;
    }
    let rest = bytes.strip_prefix(MAGIC)?.strip_prefix(&key.to_le_bytes())?;
    let (counts, rest) = rest.split_first_chunk::<24>()?;
    let mut counts = numbers(counts);
    let (len, cut_prompts, cut_targets) = (counts.next()?, counts.next()?, counts.next()?);
    if len != examples.len() {
        return None;
    }
    let (lengths, mut ids) = rest.split_at_checked(len.checked_mul(16)?)?;
    let mut lengths = numbers(lengths);
    let mut next = || -> Option<Vec<u32>> {
        let (row, rest) = ids.split_at_checked(lengths.next()?.checked_mul(4)?)?;
        ids = rest;
        Some(row.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect())
    };
    let examples = examples
        .iter()
        .map(|example| Some(TokenizedExample { id: example.id.clone(), prompt: next()?, target: next()? }))
        .collect::<Option<Vec<_>>>()?;
    ids.is_empty().then_some(TokenizedSet { examples, cut_prompts, cut_targets, limits })
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = usize> {
    bytes.chunks_exact(8).map_while(|number| usize::try_from(u64::from_le_bytes(number.try_into().ok()?)).ok())
}
