//! What a Falcon says of the inputs of a golden.

use sideburn_adapters::Pass;
use sideburn_batch::TokenRows;
use sideburn_falcon::{Falcon, LanguageModel};
use sideburn_generate::Decoder;
use sideburn_testing::{Golden, values};

/// The rows of a golden, each without its padding.
pub(crate) fn rows(io: &Golden) -> TokenRows {
    let batch = io.prompts_and_answers("");
    TokenRows::from_rows(
        batch.prompts().iter().zip(batch.targets().iter()).map(|(prompt, answer)| [prompt, answer].concat()),
    )
    .unwrap()
}

/// The logits of every token of a golden's inputs, row after row.
pub(crate) fn logits_in(model: &Falcon, io: &Golden, mut pass: Pass) -> Vec<f32> {
    let rows = rows(io);
    let first = TokenRows::from_rows(rows.iter().map(|row| &row[..1])).unwrap();
    let then = TokenRows::from_rows(rows.iter().map(|row| &row[1..])).unwrap();
    let of_then = values(model.logits(&first, &then, &mut pass).unwrap());
    let of_first = values(model.start_decoding(&first, pass).unwrap().next_logits(first.ids()).unwrap());
    let vocabulary = model.vocab_size();
    let mut of_then = of_then.chunks(vocabulary);
    let row = |(first, length): (&[f32], &usize)| {
        [first.to_vec(), of_then.by_ref().take(*length).flatten().copied().collect()].concat()
    };
    of_first.chunks(vocabulary).zip(then.lengths()).flat_map(row).collect()
}
