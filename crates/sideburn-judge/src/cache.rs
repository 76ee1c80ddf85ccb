//! Verdicts kept on disk, so that no question is paid for twice.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use sideburn_files::{FileError, open_regular};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::{question::Question, verdict::Verdict};

/// The name of the file. The number changes with the form of its lines.
const FILE: &str = "verdicts1.jsonl";
/// The longest line that is one: an answer is shorter.
const MAX_LINE: u64 = 1 << 20;

/// What a verdict is kept under: a hash of the question, and of who was asked.
pub(crate) fn key(identity: &str, question: &Question) -> u128 {
    let mut hash = Xxh3::new();
    for text in [identity, &question.system, &question.user] {
        // Each preceded by its length, so that no two can pass for others.
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest128()
}

/// A file to which each verdict is added as a line when it is there: the checksum of what follows, a blank, JSON.
///
/// A line is written at once, and under a lock that other processes respect. Whatever is no line with its checksum, such as
/// half of one behind which a machine went down, is passed over, and the question is asked again.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    file: Mutex<File>,
    known: HashMap<u128, Verdict>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    verdict: Verdict,
}

impl Cache {
    /// The cache in `directory`, which is made if it is not there.
    pub(crate) fn open(directory: &Path) -> Result<Self, FileError> {
        fs::create_dir_all(directory).map_err(|source| FileError::writing(directory, source))?;
        let path = directory.join(FILE);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        if path.exists() {
            // No pipe, and nothing that never ends.
            open_regular(&path)?;
        }
        let file = options.open(&path).map_err(|source| FileError::writing(&path, source))?;
        let known = read(&file).map_err(|source| FileError::reading("reading", &path, source))?;
        Ok(Self { path, file: Mutex::new(file), known })
    }

    /// A verdict that was kept when the cache was opened.
    pub(crate) fn get(&self, key: u128) -> Option<&Verdict> {
        self.known.get(&key)
    }

    /// Keeps a verdict.
    pub(crate) fn put(&self, key: u128, verdict: &Verdict) -> Result<(), FileError> {
        let line = Line { key: format!("{key:032x}"), verdict: verdict.clone() };
        let json = serde_json::to_string(&line).expect("plain fields");
        let line = format!("{:016x} {json}\n", xxh3_64(json.as_bytes()));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        append(&mut file, &line).map_err(|source| FileError::writing(&self.path, source))
    }
}

/// Adds a line, behind a line break if the last one was cut off.
fn append(file: &mut File, line: &str) -> std::io::Result<()> {
    lock(file)?;
    let written = (|| {
        let end = file.seek(SeekFrom::End(0))?;
        let mut last = [b'\n'];
        if end > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        let cut = if last == [b'\n'] { "" } else { "\n" };
        file.write_all(format!("{cut}{line}").as_bytes())
    })();
    let _ = file.unlock();
    written
}

/// Waits until no other process writes. Some network file systems have no locks; a line that is mixed with another's there
/// fails its checksum.
fn lock(file: &File) -> std::io::Result<()> {
    match file.lock() {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
        locked => locked,
    }
}

/// What stands in a file, but for what is damaged.
fn read(file: &File) -> std::io::Result<HashMap<u128, Verdict>> {
    let (mut known, mut reader, mut line) = (HashMap::new(), BufReader::new(file), Vec::new());
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(known);
        }
        known.extend(parse(&line));
    }
}

fn parse(line: &[u8]) -> Option<(u128, Verdict)> {
    let (checksum, json) = str::from_utf8(line).ok()?.strip_suffix('\n')?.split_once(' ')?;
    if checksum != format!("{:016x}", xxh3_64(json.as_bytes())) {
        return None;
    }
    let Line { key, verdict } = serde_json::from_str(json).ok()?;
    (1..=5).contains(&verdict.score).then_some(())?;
    Some((u128::from_str_radix(&key, 16).ok()?, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(score: u8) -> Verdict {
        Verdict { score, reason: "line\nbreak, \"quotes\", é".to_owned() }
    }

    #[test]
    fn damage_costs_what_it_hits_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("a/b");
        let cache = Cache::open(&folder).unwrap();
        for key in 0..4 {
            cache.put(key, &verdict(key as u8 + 1)).unwrap();
        }
        assert!(cache.get(0).is_none(), "what was there when it was opened");
        let path = folder.join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        let lines: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
        // A digit of the second score, no UTF-8 in the third, and the fourth cut off.
        let score = bytes[lines[0]..].windows(8).position(|part| part == b"\"score\":").unwrap() + lines[0] + 8;
        bytes[score] = b'5';
        bytes[lines[1] + 30] = 0xFF;
        bytes.truncate(lines[3] - 5);
        fs::write(&path, &bytes).unwrap();
        let cache = Cache::open(&folder).unwrap();
        assert_eq!((0..4).map(|key| cache.get(key).is_some()).collect::<Vec<_>>(), [true, false, false, false]);
        assert_eq!(cache.get(0), Some(&verdict(1)));
        for key in 1..4 {
            cache.put(key, &verdict(2)).unwrap();
        }
        let cache = Cache::open(&folder).unwrap();
        assert!((1..4).all(|key| cache.get(key) == Some(&verdict(2))), "healed, behind the line that was cut off");
    }

    #[test]
    fn a_long_line_of_another_program_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), vec![b'x'; 3 << 20]).unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        cache.put(7, &verdict(3)).unwrap();
        assert_eq!(Cache::open(directory.path()).unwrap().get(7), Some(&verdict(3)));
    }

    #[test]
    fn two_that_write_at_once_mix_nothing() {
        let directory = tempfile::tempdir().unwrap();
        // Each has a file of its own open, as two processes have.
        std::thread::scope(|scope| {
            for writer in 0..4u128 {
                let cache = Cache::open(directory.path()).unwrap();
                scope.spawn(move || (0..50).for_each(|n| cache.put(writer * 100 + n, &verdict(4)).unwrap()));
            }
        });
        let cache = Cache::open(directory.path()).unwrap();
        assert!((0..4).all(|writer| (0..50).all(|n| cache.get(writer * 100 + n) == Some(&verdict(4)))));
    }

    #[test]
    fn what_a_question_is_made_of_is_kept_apart() {
        let question = |system: &str, user: &str| Question { system: system.to_owned(), user: user.to_owned() };
        let keys = [("a", "bc", ""), ("ab", "c", ""), ("a", "b", "c"), ("", "abc", ""), ("", "", "abc")]
            .map(|(identity, system, user)| key(identity, &question(system, user)));
        assert!((1..keys.len()).all(|at| !keys[..at].contains(&keys[at])));
    }
}
