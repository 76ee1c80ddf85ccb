//! A model, of whichever family, and what commands have it compute.

use std::path::Path;

use anyhow::Context;
use sideburn::generate::Decoder;
use sideburn::prelude::*;

/// Reads a model onto the CPU.
pub(crate) fn open(directory: &Path) -> anyhow::Result<AutoModel> {
    open_on(directory, "flex")
}

/// Reads a model onto a device, called as on the command line.
pub(crate) fn open_on(directory: &Path, device: &str) -> anyhow::Result<AutoModel> {
    Ok(AutoModel::from_dir(directory, &parse_device(device)?)?)
}

/// The logits of every token of `input`, row after row, `[tokens, vocabulary]` in row-major order.
pub(crate) fn logits(model: &AutoModel, source: &TokenRows, input: &TokenRows) -> anyhow::Result<Vec<f32>> {
    values(model.logits(source, input, &mut Pass::evaluate())?)
}

/// The mean negative log-likelihood of the tokens of `target`.
pub(crate) fn mean_loss(model: &AutoModel, source: TokenRows, target: TokenRows) -> anyhow::Result<f32> {
    let batch = PromptBatch::new(source, target)?;
    let losses = values(model.token_losses(&batch, &mut Pass::evaluate())?)?;
    Ok((losses.iter().copied().map(f64::from).sum::<f64>() / losses.len() as f64) as f32)
}

fn values<const D: usize>(tensor: Tensor<D>) -> anyhow::Result<Vec<f32>> {
    tensor.into_data().try_into_vec().ok().context("the device does not compute in f32")
}

/// What `generate` of transformers returns without sampling and beams, `width` tokens for each row: the start token, then the
/// row's tokens to its end, then padding.
pub(crate) fn write_greedily(model: &AutoModel, source: &TokenRows, width: usize) -> anyhow::Result<Vec<i64>> {
    let tokens = model.special_tokens();
    // Where there is no padding, `generate` pads with what ends a row; where nothing ends one, nothing is padded.
    let pad_token_id = tokens.pad.or(tokens.end.first().copied()).unwrap_or_default();
    let padding = std::iter::repeat(pad_token_id);
    let decoding = model.start_decoding(source, Pass::evaluate())?;
    let begun: Vec<Vec<u32>> = (0..decoding.rows()).map(|row| decoding.history(row).to_vec()).collect();
    let written = greedy(decoding, &model.generation_config(width.saturating_sub(begun[0].len())))?;
    let whole = begun
        .into_iter()
        .zip(written)
        .flat_map(|(begun, row)| begun.into_iter().chain(row).chain(padding.clone()).take(width).collect::<Vec<_>>());
    Ok(whole.map(i64::from).collect())
}

/// Rows of random tokens, always the same for a model: what the encoder and what the decoder reads.
pub(crate) fn probe(model: &AutoModel) -> (TokenRows, TokenRows) {
    let key = Key::from_seed(0).fold_in_name("probe");
    let rows = |part, lengths: [usize; 4], first: Option<u32>| {
        let key = key.fold_in_name(part);
        let token = |row, column: usize| match first {
            Some(first) if column == 0 => first,
            _ => key.fold_in(row).below(column as u64, model.vocab_size() as u64) as u32,
        };
        let row = |(row, length)| (0..length).map(|column| token(row, column)).collect::<Vec<_>>();
        TokenRows::from_rows((0..).zip(lengths).map(row)).expect("rows of at least one token")
    };
    let start = model.special_tokens().start;
    (rows("source", [24, 17, 9, 3], None), rows("target", [8, 8, 5, 2], start))
}

/// The largest absolute difference; not a number if any is.
pub(crate) fn max_difference(found: &[f32], expected: &[f32]) -> f32 {
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, x| if max.is_nan() || max > x { max } else { x })
}
