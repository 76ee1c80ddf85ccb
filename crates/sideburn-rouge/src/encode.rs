//! From text to numbers: the tokenizer of `rouge_score` (`rouge_score/tokenize.py`), and an interner.

use std::collections::HashMap;

use crate::porter;

/// The words of a text as ROUGE counts them: lower-cased runs of `a`-`z` and `0`-`9`, everything else a gap. With
/// `stemmer`, words of more than 3 letters are cut to their Porter stem.
///
/// ```
/// use sideburn_rouge::tokenize;
///
/// assert_eq!(tokenize("#Person1# hasn't been studying.", false), ["person1", "hasn", "t", "been", "studying"]);
/// assert_eq!(tokenize("#Person1# hasn't been studying.", true), ["person1", "hasn", "t", "been", "studi"]);
/// assert_eq!(tokenize("caf\u{e9} \u{6771}\u{4eac}", false), ["caf"]); // other letters are gaps, as in the original
/// ```
pub fn tokenize(text: &str, stemmer: bool) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    // A line break ends a word, so that the words of the lines are the words of the text.
    for line in text.split('\n') {
        for_each_word(line, stemmer, &mut word, |word| words.push(word.iter().copied().map(char::from).collect()));
    }
    words
}

/// Calls `visit` with each word; `word` is scratch space.
fn for_each_word(text: &str, stemmer: bool, word: &mut Vec<u8>, mut visit: impl FnMut(&[u8])) {
    let mut finish = |word: &mut Vec<u8>| {
        if word.is_empty() {
            return;
        }
        if stemmer && word.len() > 3 {
            porter::stem(word);
        }
        visit(word);
        word.clear();
    };
    word.clear();
    for letter in text.chars() {
        match letter {
            'a'..='z' | '0'..='9' => word.push(letter as u8),
            'A'..='Z' => word.push(letter.to_ascii_lowercase() as u8),
            // Of all characters outside ASCII, Unicode's lower-casing leaves ASCII letters for just two: the Kelvin
            // sign gives "k", and a capital I with a dot gives "i" and a combining dot, which ends the word.
            '\u{212A}' => word.push(b'k'),
            '\u{130}' => {
                word.push(b'i');
                finish(word);
            }
            _ => finish(word),
        }
    }
    finish(word);
}

/// A text as numbers.
#[derive(Debug, Default)]
pub(crate) struct Document {
    /// The words, as numbers below [`Vocabulary::len`].
    pub(crate) tokens: Vec<u32>,
    /// Where each sentence (line) ends in `tokens`; sentences without words are left out, for they cannot match.
    ends: Vec<usize>,
}

impl Document {
    /// The sentences that have words.
    pub(crate) fn sentences(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.tokens[start..end])
    }
}

/// Numbers words in order of appearance.
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    ids: HashMap<Box<[u8]>, u32>,
    word: Vec<u8>,
}

impl Vocabulary {
    /// How many different words were seen.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Forgets all words.
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
    }

    /// Numbers the words of a text, or of its first lines if these have more than `limit`.
    pub(crate) fn encode(&mut self, text: &str, stemmer: bool, limit: usize) -> Document {
        let mut document = Document::default();
        for line in text.split('\n') {
            let before = document.tokens.len();
            for_each_word(line, stemmer, &mut self.word, |word| {
                let id = match self.ids.get(word) {
                    Some(&id) => id,
                    None => {
                        // 2^32 different words would take a line of more than 25 GB.
                        let id = self.ids.len() as u32;
                        self.ids.insert(word.into(), id);
                        id
                    }
                };
                document.tokens.push(id);
            });
            if document.tokens.len() > before {
                document.ends.push(document.tokens.len());
            }
            if document.tokens.len() > limit {
                break;
            }
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_characters_outside_ascii_become_ascii() {
        for character in ('\u{80}'..=char::MAX).filter(|c| !matches!(c, '\u{130}' | '\u{212A}')) {
            assert!(!character.to_lowercase().any(|c| c.is_ascii_alphanumeric()), "{character:?}");
        }
        assert_eq!(tokenize("\u{130}zmir \u{212A}elvin, x\u{130}", false), ["i", "zmir", "kelvin", "xi"]);
    }

    #[test]
    fn sentences_are_lines_with_words() {
        let mut vocabulary = Vocabulary::default();
        let document = vocabulary.encode("a b\n\n...\nb c\n", false, 100);
        assert_eq!(document.tokens, [0, 1, 1, 2]);
        assert_eq!(document.sentences().collect::<Vec<_>>(), [&[0, 1], &[1, 2]]);
        assert_eq!(vocabulary.len(), 3);
    }
}
