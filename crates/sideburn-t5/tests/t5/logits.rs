//! What a model says of the inputs of a golden.

use sideburn_adapters::Pass;
use sideburn_t5::{LanguageModel, T5};
use sideburn_testing::{Golden, values};

/// The logits of a golden's inputs and of its decoder inputs at their full width, row after row.
pub(crate) fn logits_in(model: &T5, io: &Golden, mut pass: Pass) -> Vec<f32> {
    values(model.logits(&io.source(), &io.full_rows("decoder_input_ids"), &mut pass).unwrap())
}

/// The same in evaluation, with the active adapters.
pub(crate) fn logits(model: &T5, io: &Golden) -> Vec<f32> {
    logits_in(model, io, Pass::evaluate())
}

/// The same of the inputs that all adapters share.
pub(crate) fn common_logits(model: &T5) -> Vec<f32> {
    logits(model, &Golden::open("lora/t5_gated_untied/io.safetensors"))
}
