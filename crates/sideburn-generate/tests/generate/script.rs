//! A decoder that gives what a script says.

use std::convert::Infallible;

use burn::tensor::{Device, Tensor};
use sideburn_generate::Decoder;

/// The logits behind what a row has read. Were it a parameter of [`Script`], every strategy would be compiled for each script.
type Logits = Box<dyn Fn(&[u32]) -> Vec<f32>>;

/// Gives each row the logits that the script has for the tokens it was fed, and fails the test if a row is fed what it did
/// not write.
pub(crate) struct Script {
    history: Vec<Vec<u32>>,
    /// What each row was fed behind what it had read.
    fed: Vec<Vec<u32>>,
    logits: Logits,
}

/// A script whose rows each begin with this history.
pub(crate) fn script(history: &[&[u32]], logits: impl Fn(&[u32]) -> Vec<f32> + 'static) -> Script {
    let history: Vec<Vec<u32>> = history.iter().map(|row| row.to_vec()).collect();
    let fed = history.iter().map(|row| row[..row.len() - 1].to_vec()).collect();
    Script { history, fed, logits: Box::new(logits) }
}

impl Decoder for Script {
    type Error = Infallible;

    fn rows(&self) -> usize {
        self.fed.len()
    }

    fn history(&self, row: usize) -> &[u32] {
        &self.history[row]
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, Infallible> {
        assert!(tokens.len().is_multiple_of(self.rows()), "as many tokens for each row");
        let (each, mut logits) = (tokens.len() / self.rows(), Vec::new());
        for (fed, tokens) in self.fed.iter_mut().zip(tokens.chunks(each)) {
            for token in tokens {
                fed.push(*token);
                logits.push((self.logits)(fed));
            }
        }
        let (rows, vocabulary) = (logits.len(), logits[0].len());
        Ok(Tensor::<1>::from_floats(logits.concat().as_slice(), &Device::flex()).reshape([rows, vocabulary]))
    }

    fn select_rows(&mut self, rows: &[usize]) {
        self.fed = rows.iter().map(|row| self.fed[*row].clone()).collect();
    }

    fn forget(&mut self, tokens: usize) {
        self.fed.iter_mut().for_each(|fed| fed.truncate(fed.len() - tokens));
    }
}

/// Logits of ten tokens that want this one.
pub(crate) fn wants(token: u32) -> Vec<f32> {
    (0..10).map(|other| f32::from(u8::from(other == token))).collect()
}

/// Tokens 2 and 3 begin two rows: 2 looks better at first, and leads to what is unlikely.
pub(crate) fn garden_path(fed: &[u32]) -> Vec<f32> {
    let probabilities: &[(usize, f32)] = match fed {
        [_] => &[(2, 0.6), (3, 0.4)],
        [.., 2] => &[(4, 0.3), (5, 0.3), (6, 0.4)],
        [.., 3] => &[(7, 1.0)],
        _ => &[(1, 1.0)],
    };
    let mut logits = vec![f32::NEG_INFINITY; 10];
    probabilities.iter().for_each(|(token, probability)| logits[*token] = probability.ln());
    logits
}
