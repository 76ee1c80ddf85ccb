//! The tokenizer of ByT5 (Xue et al., 2022), which needs no file: a token for each byte.
//!
//! After `ByT5Tokenizer` of `transformers` (`models/byt5/tokenization_byt5.py`): ids 0, 1 and 2 are `<pad>`, `</s>` and
//! `<unk>`, a byte is its value and 3, and behind the bytes stand `<extra_id_0>` to `<extra_id_124>`.

/// What is added to a byte.
const OFFSET: u32 = 3;
const FIRST_EXTRA: u32 = OFFSET + 256;
const EXTRA: u32 = 125;

pub(crate) const PAD: u32 = 0;
pub(crate) const EOS: u32 = 1;
/// How many tokens there are.
pub(crate) const TOKENS: u32 = FIRST_EXTRA + EXTRA;

/// The ids of a text. Names of special tokens become these tokens; `<pad>`, `</s>` and `<unk>` take the blanks around
/// them.
pub(crate) fn encode(text: &str) -> Vec<u32> {
    let mut ids = Vec::with_capacity(text.len() + 1);
    let add = |ids: &mut Vec<u32>, text: &str| ids.extend(text.bytes().map(|byte| u32::from(byte) + OFFSET));
    let (mut rest, mut from) = (text, 0);
    while let Some(at) = rest[from..].find('<').map(|place| place + from) {
        let Some((id, len)) = special(&rest[at..]) else {
            from = at + 1;
            continue;
        };
        let (mut before, mut behind) = (&rest[..at], &rest[at + len..]);
        if id < OFFSET {
            (before, behind) = (before.trim_end_matches(is_blank), behind.trim_start_matches(is_blank));
        }
        add(&mut ids, before);
        ids.push(id);
        (rest, from) = (behind, 0);
    }
    add(&mut ids, rest);
    ids
}

/// The text of the bytes among `ids`; bytes that are no UTF-8 are left out, as in Python's `decode(errors="ignore")`.
pub(crate) fn decode(ids: &[u32]) -> String {
    let byte = |id: &u32| id.checked_sub(OFFSET).and_then(|byte| u8::try_from(byte).ok());
    let bytes: Vec<u8> = ids.iter().filter_map(byte).collect();
    bytes.utf8_chunks().map(|chunk| chunk.valid()).collect()
}

/// The special token that `text` begins with: its id, and the length of its name.
fn special(text: &str) -> Option<(u32, usize)> {
    for (id, name) in [(PAD, "<pad>"), (EOS, "</s>"), (2, "<unk>")] {
        if text.starts_with(name) {
            return Some((id, name.len()));
        }
    }
    let number = text.strip_prefix("<extra_id_")?;
    let (number, behind) = number.split_at(number.bytes().take(3).take_while(u8::is_ascii_digit).count());
    let extra: u32 = number.parse().ok().filter(|extra: &u32| *extra < EXTRA && extra.to_string() == number)?;
    behind.starts_with('>').then_some((FIRST_EXTRA + extra, "<extra_id_>".len() + number.len()))
}

/// What Python's `strip` takes away.
fn is_blank(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// `testdata/make_byt5_ids.py` made them.
    #[test]
    fn ids_and_texts_are_those_of_transformers() {
        let golden: Value = serde_json::from_str(include_str!("../testdata/byt5_ids.json")).unwrap();
        let number = |name: &str| golden[name].as_u64().unwrap() as u32;
        assert_eq!([number("tokens"), number("pad"), number("eos"), number("unk")], [TOKENS, PAD, EOS, 2]);
        let ids = |row: &Value| -> Vec<u32> { serde_json::from_value(row["ids"].clone()).unwrap() };
        for row in golden["texts"].as_array().unwrap() {
            let text = row["text"].as_str().unwrap();
            let mut found = encode(text);
            if found.last() != Some(&EOS) {
                found.push(EOS);
            }
            assert_eq!(found, ids(row), "{text:?}");
        }
        for row in golden["decoded"].as_array().unwrap() {
            assert_eq!(decode(&ids(row)), row["text"].as_str().unwrap(), "{:?}", row["ids"]);
        }
    }
}
