//! Text out of tokens, as they come.

use crate::{error::DataError, tokenizer::Tokenizer};

/// Turns tokens into text one after the other, and gives text at the boundaries of whole characters only: a character may
/// be made of several tokens, as every one beyond ASCII is in a model of bytes.
///
/// All that it gives, end to end, is what [`Tokenizer::decode`] makes of the tokens, if their bytes are characters.
///
/// ```no_run
/// use sideburn_data::{TextStream, Tokenizer};
///
/// let byt5 = Tokenizer::from_dir("byt5-small")?;
/// let mut stream = TextStream::new(&byt5);
/// // The two bytes of an é.
/// assert_eq!((stream.push(0xC3 + 3)?, stream.push(0xA9 + 3)?), (String::new(), "é".to_owned()));
/// assert_eq!(stream.finish()?, "");
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Where the tokens begin whose text was given last: what follows them is read behind them, since the first token of a
    /// text may lose its blank.
    from: usize,
    /// How many tokens all given text is of.
    given: usize,
}

/// What stands for bytes that are no character, or not yet.
const INCOMPLETE: char = '\u{FFFD}';

impl<'a> TextStream<'a> {
    /// A text that begins.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), from: 0, given: 0 }
    }

    /// The text that is sure with one more token: often one word, and nothing in the middle of a character.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, DataError> {
        self.ids.push(id);
        let fresh = self.fresh()?;
        if fresh.is_empty() || fresh.ends_with(INCOMPLETE) {
            return Ok(String::new());
        }
        (self.from, self.given) = (self.given, self.ids.len());
        Ok(fresh)
    }

    /// What was kept back: the beginning of a character that has not come.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(self) -> Result<String, DataError> {
        self.fresh()
    }

    /// The text behind what is given.
    fn fresh(&self) -> Result<String, DataError> {
        let given = self.tokenizer.decode(&self.ids[self.from..self.given])?;
        let whole = self.tokenizer.decode(&self.ids[self.from..])?;
        let alike =
            whole.chars().zip(given.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>();
        Ok(whole[alike..].to_owned())
    }
}
