//! Token ids on their way into a model, and virtual tokens in front of them.

use burn::tensor::{Int, Tensor, TensorData};
use sideburn_adapters::{AdaptedTable, TokenPass};
use sideburn_batch::TokenRows;
use sideburn_kernels::{RowLayout, elements};

use crate::NnError;

/// Checks that the embedding has a row for every token.
///
/// # Errors
/// [`TokenOutsideVocabulary`](NnError::TokenOutsideVocabulary) with the first that it has none for.
pub fn check_ids(rows: &TokenRows, vocab_size: usize) -> Result<(), NnError> {
    match rows.ids().iter().find(|id| **id as usize >= vocab_size) {
        Some(id) => Err(NnError::TokenOutsideVocabulary { id: *id, vocab_size }),
        None => Ok(()),
    }
}

/// What a decoder reads to write `target`: the start token, and all tokens but the last. `[[7, 8, 1]]` from 0 makes
/// `[[0, 7, 8]]`.
pub fn shift_right(target: &TokenRows, start: u32) -> TokenRows {
    let shifted = target.iter().map(|row| {
        let mut input = vec![start];
        input.extend_from_slice(&row[..row.len() - 1]);
        input
    });
    TokenRows::from_rows(shifted).expect("rows of the same lengths as the target's")
}

/// The embedded tokens of `rows`, `[tokens, width]`, as `layout` lays them out, with the [noise](add_noise) of the pass; places
/// of no row hold the token `filler`.
///
/// # Errors
/// If a token id is outside the vocabulary.
pub fn embed(
    table: &AdaptedTable,
    rows: &TokenRows,
    layout: &RowLayout,
    filler: u32,
    pass: &TokenPass<'_>,
) -> Result<Tensor<2>, NnError> {
    check_ids(rows, table.shape()[0])?;
    Ok(add_noise(table.rows(layout.ids(rows, filler), pass), "embed_tokens", layout, pass))
}

/// The embedded tokens `x [tokens, width]` of all rows that `layout` lays out, with the noise that the pass has for `reader`, if
/// it has any (NEFTune; Jain et al., 2023, algorithm 1): to each element of a row of `n` tokens is added a number that is uniform
/// between `-alpha / sqrt(n width)` and `alpha / sqrt(n width)`.
///
/// `n` is the number of tokens of the row, as in the paper; in `transformers` it is that of the longest row of the batch, whose
/// padding counts. Element `i` of the noise, counted over the tokens of all rows, follows from the key of the pass alone.
pub fn add_noise(x: Tensor<2>, reader: &str, layout: &RowLayout, pass: &TokenPass<'_>) -> Tensor<2> {
    let Some((alpha, key)) = pass.neftune_noise(reader) else { return x };
    let [tokens, width] = x.dims();
    // The number of each token among those of all rows, and how large its noise may be.
    let mut places: Vec<Option<(u64, f64)>> = vec![None; tokens];
    let numbered = (0..layout.rows()).flat_map(|row| {
        let row = layout.row(row);
        let size = alpha / ((row.len() * width) as f64).sqrt();
        row.map(move |place| (place, size))
    });
    for (number, (place, size)) in numbered.enumerate() {
        places[place] = Some((number as u64, size));
    }
    let noise = elements(tokens * width, |element| {
        let (token, column) = (element as usize / width, element % width as u64);
        places[token]
            .map_or(0.0, |(number, size)| ((2.0 * key.uniform(number * width as u64 + column) - 1.0) * size) as f32)
    });
    let noise = Tensor::from_data(TensorData::new(noise, [tokens, width]), (&x.device(), x.dtype()));
    x + noise
}

/// The rows of `x`, which `own` lays out, each behind the same tokens `first [n, width]`: a matrix as `layout` lays it out,
/// which has room for `n` more tokens in each row.
pub fn behind(first: Tensor<2>, x: Tensor<2>, own: &RowLayout, layout: &RowLayout) -> Tensor<2> {
    let places = places_behind(first.dims()[0], own, layout);
    // Those are of an adapter, which may be in another dtype than the model.
    Tensor::cat(vec![first.cast(x.dtype()), x], 0).select(0, places)
}

/// For rows of which each begins with the same `added` tokens, and goes on with those that `own` lays out: where each
/// token of `layout` stands among the added ones and, behind them, all own ones.
///
/// With one token added to rows of two and one: the rows are `[0, 1, 2]` and `[0, 3]`.
pub fn places_behind(added: usize, own: &RowLayout, layout: &RowLayout) -> Tensor<1, Int> {
    let rows = (0..own.rows()).map(|row| {
        let own = own.row(row).map(|token| (added + token) as u32);
        (0..added as u32).chain(own).collect::<Vec<u32>>()
    });
    layout.ids(&TokenRows::from_rows(rows).expect("rows longer than those of a batch"), 0)
}
