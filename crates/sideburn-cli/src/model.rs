//! A model, of whichever family, and what commands have it compute.

use std::path::Path;

use anyhow::Context;
use sideburn::generate::Decoder;
use sideburn::prelude::*;

use crate::loading::with_progress;

/// Reads a model onto the CPU.
pub(crate) fn open(directory: &Path) -> anyhow::Result<AutoModel> {
    open_on(directory, "flex")
}

/// Reads a model onto a device, called as on the command line.
pub(crate) fn open_on(directory: &Path, device: &str) -> anyhow::Result<AutoModel> {
    let device = parse_device(device)?;
    with_progress(directory, || Ok(AutoModel::from_dir(directory, &device)?))
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

/// What `generate` of transformers returns without sampling and with this many beams, `width` tokens for each row: the start
/// token, then the row's tokens to its end, then padding. Where a row is padded with what `expected` has there, a token that
/// pads or ends rows, it is padded so: which one it is differs between releases.
pub(crate) fn write(
    model: &AutoModel,
    source: &TokenRows,
    num_beams: usize,
    width: usize,
    expected: &[i64],
) -> anyhow::Result<Vec<i64>> {
    let own = model.default_generation_config();
    let ends: Vec<i64> = own.eos_token_id.iter().chain(&own.pad_token_id).map(|id| i64::from(*id)).collect();
    let pad_token_id = own.pad_token_id.or(own.eos_token_id.first().copied()).unwrap_or_default();
    let decoding = model.start_decoding(source, Pass::evaluate())?;
    let begun: Vec<Vec<u32>> = (0..decoding.rows()).map(|row| decoding.history(row).to_vec()).collect();
    let new_tokens = width.saturating_sub(begun[0].len());
    let config = GenerationConfig {
        num_beams,
        num_beam_groups: 1,
        num_return_sequences: 1,
        penalty_alpha: None,
        do_sample: false,
        ..model.generation_config(new_tokens)
    };
    let written = generate(decoding, &config)?;
    let rows = begun.into_iter().zip(written).zip(expected.chunks(width)).flat_map(|((begun, answer), expected)| {
        let tokens = begun.into_iter().chain(answer.tokens).map(i64::from).take(width);
        let mut row: Vec<i64> = tokens.collect();
        let padding = expected[row.len()..].iter().map(|id| if ends.contains(id) { *id } else { pad_token_id.into() });
        row.extend(padding.collect::<Vec<_>>());
        row
    });
    Ok(rows.collect())
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
    let start = model.default_generation_config().decoder_start_token_id;
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
