//! The vocabulary.

use std::path::Path;

use sideburn::prelude::*;
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::{sequence::Sequence, whitespace::WhitespaceSplit};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, TokenizerBuilder, normalizers::unicode::NFKC};

use crate::SENTINELS;

/// A Unigram model over words (Kudo, 2018), with `</s>` behind every text, in the form that T5's tokenizer has.
pub(crate) fn train(texts: &[Example], size: usize, path: &Path) -> tokenizers::Result<()> {
    let special = |text: &str| AddedToken::from(text, true);
    let metaspace = || Metaspace::new('▁', PrependScheme::Always, true);
    let processor = TemplateProcessing::builder()
        .try_single("$A </s>")?
        .special_tokens(vec![("</s>", 1)])
        .build()
        .map_err(|error| error.to_string())?;
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(Unigram::default())
        .with_normalizer(Some(NFKC))
        .with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), metaspace().into()])))
        .with_post_processor(Some(processor))
        .with_decoder(Some(metaspace()))
        .build()?;
    let mut trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size((size - SENTINELS) as u32)
        .special_tokens(["<pad>", "</s>", "<unk>"].map(special).to_vec())
        .unk_token(Some("<unk>".to_owned()))
        .build()
        .map_err(|error| error.to_string())?;
    tokenizer.train(&mut trainer, texts.iter().flat_map(|text| [&text.fields["dialogue"], &text.targets[0]]))?;
    let sentinels: Vec<_> = (0..SENTINELS).rev().map(|index| special(&format!("<extra_id_{index}>"))).collect();
    tokenizer.add_special_tokens(sentinels)?;
    tokenizer.save(path, false)?;
    Ok(())
}
