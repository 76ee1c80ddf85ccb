//! A decoder that gives what a script says.

use std::convert::Infallible;

use burn::tensor::{Device, Tensor};
use sideburn_generate::Decoder;

/// Gives each row the logits that the script has for the tokens it was fed, and fails the test if a row is fed what it did
/// not write.
pub(crate) struct Script<F> {
    history: Vec<Vec<u32>>,
    /// What each row was fed behind what it had read.
    fed: Vec<Vec<u32>>,
    logits: F,
}

/// A script whose rows each begin with this history.
pub(crate) fn script<F: Fn(&[u32]) -> Vec<f32>>(history: &[&[u32]], logits: F) -> Script<F> {
    let history: Vec<Vec<u32>> = history.iter().map(|row| row.to_vec()).collect();
    let fed = history.iter().map(|row| row[..row.len() - 1].to_vec()).collect();
    Script { history, fed, logits }
}

impl<F: Fn(&[u32]) -> Vec<f32>> Decoder for Script<F> {
    type Error = Infallible;

    fn rows(&self) -> usize {
        self.fed.len()
    }

    fn history(&self, row: usize) -> &[u32] {
        &self.history[row]
    }

    fn next_logits(&mut self, tokens: &[u32]) -> Result<Tensor<2>, Infallible> {
        assert_eq!(tokens.len(), self.rows(), "one token for each row");
        self.fed.iter_mut().zip(tokens).for_each(|(fed, token)| fed.push(*token));
        let logits: Vec<Vec<f32>> = self.fed.iter().map(|fed| (self.logits)(fed)).collect();
        let (rows, vocabulary) = (logits.len(), logits[0].len());
        Ok(Tensor::<1>::from_floats(logits.concat().as_slice(), &Device::flex()).reshape([rows, vocabulary]))
    }

    fn select_rows(&mut self, rows: &[usize]) {
        self.fed = rows.iter().map(|row| self.fed[*row].clone()).collect();
    }
}

/// Logits of ten tokens that want this one.
pub(crate) fn wants(token: u32) -> Vec<f32> {
    (0..10).map(|other| f32::from(u8::from(other == token))).collect()
}
