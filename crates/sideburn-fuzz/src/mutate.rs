//! Changes to known files, drawn from a key.

use sideburn_batch::Key;

/// Numbers at which sizes and offsets go wrong.
const NUMBERS: [u64; 12] =
    [0, 1, 7, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];

/// The longest file that is made, in bytes. A fault that needs more than this needs a test of its own.
const MAX_LEN: usize = 1 << 16;

/// One of `seeds`, changed in one to eight places; `words` are what the format is made of.
///
/// The result is a function of the arguments alone.
///
/// # Panics
/// If there are no seeds.
pub fn mutate(seeds: &[Vec<u8>], words: &[&[u8]], key: Key) -> Vec<u8> {
    let mut draws = Draws { key, next: 0 };
    let mut bytes = seeds[draws.below(seeds.len())].clone();
    for _ in 0..=draws.below(8) {
        change(&mut bytes, seeds, words, &mut draws);
        bytes.truncate(MAX_LEN);
    }
    bytes
}

/// The numbers of a stream, one after the other.
struct Draws {
    key: Key,
    next: u64,
}

impl Draws {
    /// A number below `bound`; 0 if there is none.
    fn below(&mut self, bound: usize) -> usize {
        self.next += 1;
        self.key.below(self.next, bound.max(1) as u64) as usize
    }

    /// A short range within `len` bytes.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let most = (len - start).min(1 << self.below(10));
        start..start + self.below(most + 1)
    }
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&[u8]], draws: &mut Draws) {
    let at = draws.below(bytes.len() + 1);
    match draws.below(10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << draws.below(8),
        1 if at < bytes.len() => bytes[at] = draws.below(256) as u8,
        2 => drop(bytes.drain(draws.range(bytes.len()))),
        3 => {
            let copy = bytes[draws.range(bytes.len())].to_vec();
            bytes.splice(at..at, copy);
        }
        4 => {
            let other = &seeds[draws.below(seeds.len())];
            let part = other[draws.range(other.len())].to_vec();
            let replaced = at..(at + draws.below(part.len() + 1)).min(bytes.len());
            bytes.splice(replaced, part);
        }
        5 | 6 if !words.is_empty() => {
            let word = words[draws.below(words.len())];
            let replaced = at..(at + draws.below(2) * word.len()).min(bytes.len());
            bytes.splice(replaced, word.iter().copied());
        }
        // A number over what is there, in 1 to 8 bytes of either order.
        7 => {
            let width = 1 << draws.below(4);
            let mut number = NUMBERS[draws.below(NUMBERS.len())].to_le_bytes()[..width].to_vec();
            if draws.below(2) == 0 {
                number.reverse();
            }
            bytes.splice(at..(at + width).min(bytes.len()), number);
        }
        // A number as digits over digits.
        8 => {
            let digits = |byte: &u8| byte.is_ascii_digit();
            if let Some(start) = bytes[at..].iter().position(digits).map(|offset| at + offset) {
                let len = bytes[start..].iter().take_while(|byte| digits(byte)).count();
                let number = NUMBERS[draws.below(NUMBERS.len())].to_string();
                bytes.splice(start..start + len, number.into_bytes());
            }
        }
        9 => bytes.truncate(at),
        _ => bytes.insert(at, draws.below(256) as u8),
    }
}
