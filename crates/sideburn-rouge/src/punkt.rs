//! Sentences, as NLTK's Punkt finds them.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use crate::error::RougeError;

/// Finds the sentences of a text, as `nltk.sent_tokenize` of NLTK 3.10 does: Punkt (Kiss and Strunk, *Unsupervised
/// Multilingual Sentence Boundary Detection*, Computational Linguistics 32:4, 2006; `nltk/tokenize/punkt.py`).
///
/// What it knows of a language is in four files, which NLTK keeps in `tokenizers/punkt_tab/english` of its data
/// (`nltk.download("punkt_tab")`). They are no part of this crate, since nothing states their licence.
///
/// ```
/// use sideburn_rouge::Punkt;
///
/// let punkt = Punkt::new("dr\np.m\n", "", "the\n", "smith\t4\n")?;
/// let text = "Dr. Smith left at 5 p.m. The train (to York) was late! \"Again?\" Yes.";
/// let sentences: Vec<&str> = punkt.sentences(text);
/// assert_eq!(sentences, ["Dr. Smith left at 5 p.m.", "The train (to York) was late!", "\"Again?\"", "Yes."]);
/// # Ok::<(), sideburn_rouge::RougeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Punkt {
    abbreviations: HashSet<String>,
    collocations: HashSet<(String, String)>,
    sentence_starters: HashSet<String>,
    /// In which places a word was seen with a capital and without.
    contexts: HashMap<String, u32>,
}

/// Seen in the middle of a sentence with a capital.
const MID_UPPER: u32 = 1 << 2;
/// Seen with a capital anywhere.
const UPPER: u32 = (1 << 1) | MID_UPPER | (1 << 3);
/// Seen at the beginning of a sentence without one.
const BEGIN_LOWER: u32 = 1 << 4;
/// Seen without one anywhere.
const LOWER: u32 = BEGIN_LOWER | (1 << 5) | (1 << 6);

/// What numbers are called in the files.
const NUMBER: &str = "##number##";

impl Punkt {
    /// Of the texts of `abbrev_types.txt`, `collocations.tab`, `sent_starters.txt` and `ortho_context.tab`: words on a
    /// line each, and words with a second word, or with a number, behind a tab.
    ///
    /// # Errors
    /// [`RougeError::Punkt`] for a line that is neither.
    pub fn new(
        abbrev_types: &str,
        collocations: &str,
        sent_starters: &str,
        ortho_context: &str,
    ) -> Result<Self, RougeError> {
        let words = |text: &str| text.lines().map(str::to_owned).collect();
        let fail = |file: &'static str, line: usize| RougeError::Punkt { file, line: line + 1 };
        let pair = |line: &str| line.split_once('\t').map(|(first, second)| (first.to_owned(), second.to_owned()));
        let collocations = collocations
            .lines()
            .enumerate()
            .map(|(number, line)| pair(line).ok_or_else(|| fail("collocations.tab", number)));
        let contexts = ortho_context.lines().enumerate().map(|(number, line)| {
            let context = pair(line).and_then(|(word, context)| Some((word, context.trim().parse().ok()?)));
            context.ok_or_else(|| fail("ortho_context.tab", number))
        });
        Ok(Self {
            abbreviations: words(abbrev_types),
            collocations: collocations.collect::<Result<_, _>>()?,
            sentence_starters: words(sent_starters),
            contexts: contexts.collect::<Result<_, _>>()?,
        })
    }

    /// The sentences of a text, without the spaces between them.
    pub fn sentences<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let chars: Vec<char> = text.chars().collect();
        // Where each character begins.
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let slices = realigned(&chars, &self.slices(&chars));
        slices.into_iter().map(|slice| &text[starts[slice.start]..starts[slice.end]]).collect()
    }

    /// The sentences as lines.
    pub(crate) fn lines(&self, text: &str) -> String {
        self.sentences(text).iter().map(|sentence| sentence.replace('\n', " ")).collect::<Vec<_>>().join("\n")
    }

    fn slices(&self, text: &[char]) -> Vec<Range<usize>> {
        let (mut slices, mut begin) = (Vec::new(), 0);
        for End { at, word, after, next } in ends(text) {
            let context = [&text[word], &text[at..=at], &text[after]].concat();
            if self.has_break(&context) {
                slices.push(begin..at + 1);
                begin = next.unwrap_or(at + 1);
            }
        }
        let end = text.iter().rposition(|c| !is_space(*c)).map_or(0, |last| last + 1);
        slices.push(begin.min(end)..end);
        slices
    }

    /// Whether a sentence ends in a text before its last token.
    fn has_break(&self, text: &[char]) -> bool {
        let mut tokens: Vec<Token> = text.split(|c| *c == '\n').flat_map(words).map(|word| self.token(word)).collect();
        for place in 1..tokens.len() {
            let (before, behind) = tokens.split_at_mut(place);
            self.reconsider(&mut before[place - 1], &behind[0]);
            if before[place - 1].ends_sentence {
                return true;
            }
        }
        false
    }

    /// What a word by itself is (`_first_pass_annotation`).
    fn token(&self, word: &[char]) -> Token {
        let text: String = word.iter().collect();
        let lower = text.to_lowercase();
        let kind = if is_number(&lower) { NUMBER.to_owned() } else { lower.clone() };
        let mut token = Token { text, kind, ends_sentence: false, is_abbreviation: false, is_ellipsis: false };
        let is_dotted = token.text.ends_with('.');
        if let "." | "?" | "!" = token.text.as_str() {
            token.ends_sentence = true;
        } else if word.len() > 1 && word.iter().all(|c| *c == '.') {
            token.is_ellipsis = true;
        } else if is_dotted && !token.text.ends_with("..") {
            let stem = &lower[..lower.len() - 1];
            let last = stem.rsplit('-').next().unwrap_or(stem);
            token.is_abbreviation = self.abbreviations.contains(stem) || self.abbreviations.contains(last);
            token.ends_sentence = !token.is_abbreviation;
        }
        token
    }

    /// What the next word says of one (`_second_pass_annotation`; the numbers are of sections of the paper).
    fn reconsider(&self, token: &mut Token, next: &Token) {
        if !token.text.ends_with('.') {
            return;
        }
        let kind = without_dot(&token.kind).to_owned();
        let next_kind = if next.ends_sentence { without_dot(&next.kind) } else { &next.kind };
        // 4.1.2: a collocation.
        if self.collocations.contains(&(kind.clone(), next_kind.to_owned())) {
            (token.ends_sentence, token.is_abbreviation) = (false, true);
            return;
        }
        let is_initial = token.is_initial();
        let starts = self.starts_sentence(next, next_kind);
        // 4.2: an abbreviation or an ellipsis that ends a sentence, too.
        if (token.is_abbreviation || token.is_ellipsis) && !is_initial {
            let is_starter = next.has_capital() && self.sentence_starters.contains(next_kind);
            if starts == Some(true) || is_starter {
                token.ends_sentence = true;
                return;
            }
        }
        // 4.3: an initial or a number that ends none.
        if is_initial || kind == NUMBER {
            let is_name = is_initial && next.has_capital() && self.context(next_kind) & LOWER == 0;
            if starts == Some(false) || (starts.is_none() && is_name) {
                (token.ends_sentence, token.is_abbreviation) = (false, true);
            }
        }
    }

    /// Whether a word is the first of a sentence, if its spelling says so (4.1.1).
    fn starts_sentence(&self, token: &Token, kind: &str) -> Option<bool> {
        if matches!(token.text.as_str(), ";" | ":" | "," | "." | "!" | "?") {
            return Some(false);
        }
        let context = self.context(kind);
        if token.has_capital() && context & LOWER != 0 && context & MID_UPPER == 0 {
            return Some(true);
        }
        let is_lower = token.text.starts_with(char::is_lowercase);
        if is_lower && (context & UPPER != 0 || context & BEGIN_LOWER == 0) {
            return Some(false);
        }
        None
    }

    fn context(&self, kind: &str) -> u32 {
        self.contexts.get(kind).copied().unwrap_or_default()
    }
}

struct Token {
    text: String,
    /// The text in lower case, or what numbers are called.
    kind: String,
    ends_sentence: bool,
    is_abbreviation: bool,
    is_ellipsis: bool,
}

impl Token {
    fn has_capital(&self) -> bool {
        self.text.starts_with(char::is_uppercase)
    }

    /// A letter and a full stop.
    fn is_initial(&self) -> bool {
        let mut chars = self.text.chars();
        let is_letter = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
        is_letter && chars.next() == Some('.') && chars.next().is_none()
    }
}

fn without_dot(kind: &str) -> &str {
    if kind.len() > 1 { kind.strip_suffix('.').unwrap_or(kind) } else { kind }
}

/// `-?[.,]?\d[\d,.-]*\.?`
fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let text = text.strip_prefix(['.', ',']).unwrap_or(text);
    text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(|c| c.is_ascii_digit() || ",.-".contains(c))
}

/// As Python's `\s` has it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// What closes a sentence behind its full stop.
fn is_closing(c: char) -> bool {
    "\"')]}\u{2018}\u{2019}\u{201c}\u{201d}\u{ab}\u{bb}".contains(c)
}

/// What is in no word.
fn is_outside_words(c: char) -> bool {
    is_closing(c) || ";*:@({[?!".contains(c)
}

/// A place where a sentence may end.
struct End {
    /// The full stop, question or exclamation mark.
    at: usize,
    /// The word before it.
    word: Range<usize>,
    /// What follows: a sign, or spaces and a word.
    after: Range<usize>,
    /// Where that word begins.
    next: Option<usize>,
}

/// The places where sentences may end (`_match_potential_end_contexts`), the last of those that share a word.
fn ends(text: &[char]) -> Vec<End> {
    let mut ends: Vec<End> = Vec::new();
    let mut before: Option<End> = None;
    for at in (0..text.len()).filter(|at| matches!(text[*at], '.' | '?' | '!')) {
        let Some((after, next)) = followed(text, at + 1) else { continue };
        let previous = before.as_ref().map_or(0..0, |end| end.word.clone());
        let between = &text[previous.end..at];
        let is_ascii_space = |c: &char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}');
        let start = match between.iter().rposition(is_ascii_space) {
            None | Some(0) => previous.start,
            Some(space) => previous.end + space + 1,
        };
        if let Some(end) = before.take().filter(|end| end.word.end <= start) {
            ends.push(end);
        }
        before = Some(End { at, word: start..at, after, next });
    }
    ends.extend(before);
    ends
}

/// What makes a mark before `at` a candidate.
fn followed(text: &[char], at: usize) -> Option<(Range<usize>, Option<usize>)> {
    let next = *text.get(at)?;
    if is_outside_words(next) {
        return Some((at..at + 1, None));
    }
    let word = at + text[at..].iter().position(|c| !is_space(*c))?;
    let end = text[word..].iter().position(|c| is_space(*c)).map_or(text.len(), |len| word + len);
    (word > at).then_some((at..end, Some(word)))
}

/// The words of a line (`_word_tokenize_fmt`): with their full stops, without other punctuation.
fn words(line: &[char]) -> Vec<&[char]> {
    let (mut words, mut at) = (Vec::new(), 0);
    while at < line.len() {
        if is_space(line[at]) {
            at += 1;
            continue;
        }
        let begins_word = !"(\"`{[:;&#*@)}]-,".contains(line[at]);
        let len = match (several(line, at), begins_word) {
            (0, true) => (1..line.len() - at).find(|len| ends_word(line, at + len)).unwrap_or(line.len() - at),
            (0, false) => 1,
            (len, _) => len,
        };
        words.push(&line[at..at + len]);
        at += len;
    }
    words
}

/// Whether a word ends before `at`.
fn ends_word(line: &[char], at: usize) -> bool {
    let is_end = |at: usize| line.get(at).is_none_or(|c| is_space(*c) || is_outside_words(*c)) || several(line, at) > 0;
    is_end(at) || (line[at] == ',' && is_end(at + 1))
}

/// How many signs at `at` are one: hyphens, or full stops with spaces between them or without. 0 if they are not.
fn several(line: &[char], at: usize) -> usize {
    let run = |sign| line[at..].iter().take_while(|c| **c == sign).count();
    if let hyphens @ 2.. = run('-') {
        return hyphens;
    }
    match line.get(at) {
        Some('.') => {}
        _ => return 0,
    }
    if let stops @ 2.. = run('.') {
        return stops;
    }
    let spaced = line[at..].chunks_exact(2).take_while(|pair| pair[0] == '.' && is_space(pair[1])).count();
    let ends = |pairs: usize| pairs >= 2 && line.get(at + 2 * pairs) == Some(&'.');
    [spaced, spaced.saturating_sub(1)].into_iter().find(|pairs| ends(*pairs)).map_or(0, |pairs| 2 * pairs + 1)
}

/// Gives quotation marks and brackets behind a sentence to it (`_realign_boundaries`).
fn realigned(text: &[char], slices: &[Range<usize>]) -> Vec<Range<usize>> {
    let (mut sentences, mut shift) = (Vec::new(), 0);
    for (place, slice) in slices.iter().enumerate() {
        let start = slice.start + shift;
        shift = 0;
        let mut end = slice.end;
        if let Some(next) = slices.get(place + 1) {
            let behind = &text[next.clone()];
            let closing = behind.iter().take_while(|c| is_closing(**c)).count();
            let is_closed = |len: &usize| {
                let rest = &behind[*len..];
                rest.first().is_none_or(|c| is_space(*c)) || rest.starts_with(&['-', '-'])
            };
            if let Some(len) = (1..=closing).find(is_closed) {
                end = next.start + len;
                shift = len + behind[len..].iter().take_while(|c| is_space(**c)).count();
            }
        }
        if start < end {
            sentences.push(start..end);
        }
    }
    sentences
}
