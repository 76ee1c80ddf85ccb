//! Many prompts, and one as it is written.

// How good summaries are is worth seeing.
#![allow(clippy::print_stdout)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sideburn::prelude::*;
use sideburn::{ManyConfig, ManyProgress, TextsError, generate_many, stream_text};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/t5-mini")
}

fn model() -> (AutoModel, Tokenizer) {
    (AutoModel::from_dir(directory(), &Device::flex()).unwrap(), Tokenizer::from_dir(directory()).unwrap())
}

fn prompts(tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let texts = ["Hi.", "Did it rain? All day, and I had no umbrella.", "Where is the station?", "Yes. No. Yes. No."];
    texts.iter().map(|text| tokenizer.encode_prompt(text, None).unwrap().ids).collect()
}

fn go_on(_: ManyProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn how_prompts_are_put_together_changes_nothing() {
    let (model, tokenizer) = model();
    let prompts = prompts(&tokenizer);
    let greedy = GenerationConfig { no_repeat_ngram_size: 3, ..model.generation_config(12) };
    let drawn = GenerationConfig { do_sample: true, num_return_sequences: 2, seed: 4, ..greedy.clone() };
    let beams = GenerationConfig { num_beams: 3, num_return_sequences: 2, ..greedy.clone() };
    for (generation, answers) in [(greedy, 1), (drawn, 2), (beams, 2)] {
        let write = |max_batch_tokens| {
            let config = ManyConfig { max_batch_tokens, generation: generation.clone() };
            let texts = generate_many(&model, &tokenizer, &prompts, &config, go_on);
            texts.into_iter().map(|texts| texts.unwrap()).collect::<Vec<_>>()
        };
        let together = write(8192);
        assert!(together.iter().all(|texts| texts.len() == answers));
        assert_eq!(together, write(1), "one by one");
        assert_eq!(together, write(90), "some at a time");
    }
}

#[test]
fn a_stream_is_the_text() {
    let (model, tokenizer) = model();
    let prompts = prompts(&tokenizer);
    for num_beams in [1, 2] {
        let config = GenerationConfig { num_beams, ..model.generation_config(16) };
        let whole = generate_many(&model, &tokenizer, &prompts, &ManyConfig::new(config.clone()), go_on);
        for (prompt, whole) in prompts.iter().zip(whole) {
            let pieces: Vec<String> =
                stream_text(&model, &tokenizer, prompt, &config).unwrap().map(Result::unwrap).collect();
            assert_eq!(pieces.concat(), whole.unwrap()[0]);
            assert!(num_beams > 1 || pieces.len() > 3, "{pieces:?}");
        }
    }
}

#[test]
fn a_bad_prompt_fails_alone() {
    let (model, tokenizer) = model();
    let mut prompts = prompts(&tokenizer);
    prompts[1] = Vec::new();
    prompts[2] = vec![5, 60_000];
    let mut last = None;
    let config = ManyConfig::new(model.generation_config(6));
    let texts = generate_many(&model, &tokenizer, &prompts, &config, |progress| {
        last = Some(progress);
        ControlFlow::Continue(())
    });
    assert!(texts[0].is_ok() && texts[3].is_ok());
    let error = |index: usize| texts[index].as_ref().unwrap_err().to_string();
    assert!(matches!(texts[1], Err(TextsError::Data(_))), "{}", error(1));
    assert!(error(2).starts_with("token id 60000 is outside the vocabulary"), "{}", error(2));
    assert_eq!(last.unwrap().prompts, 4);
    // What cannot be followed, no prompt can be answered with.
    let config = ManyConfig::new(GenerationConfig { num_beams: 0, ..model.generation_config(6) });
    let texts = generate_many(&model, &tokenizer, &prompts[..1], &config, go_on);
    assert_eq!(texts[0].as_ref().unwrap_err().to_string(), "`num_beams` is 0, expected a number of at least 1");
}

#[test]
fn what_was_written_before_it_was_stopped_is_given() {
    let (model, tokenizer) = model();
    let prompts = prompts(&tokenizer);
    let config = ManyConfig { max_batch_tokens: 1, generation: model.generation_config(6) };
    let stop = |progress: ManyProgress| {
        if progress.done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let texts = generate_many(&model, &tokenizer, &prompts, &config, stop);
    // The longest come first.
    let written: Vec<bool> = texts.iter().map(Result::is_ok).collect();
    assert_eq!(written.iter().filter(|written| **written).count(), 2);
    assert!(!written[0] && written[1]);
    assert!(matches!(texts[0], Err(TextsError::Stopped)));
}

/// What the embedded model writes of the embedded dialogues in integers of 8 bits is worth as much as in floats: half a point of
/// ROUGE-1 at most.
#[test]
fn summaries_in_integers_are_as_good() {
    let (floats, tokenizer) = model();
    let dialogsum = Dataset::dialogsum();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/dialogsum-sample");
    // A few hundred: with as many as the test split has, chance alone is half a point.
    let mut examples = dialogsum.read(sample, Split::Train).unwrap().examples;
    examples.truncate(400);
    let prompts: Vec<Vec<u32>> = examples
        .iter()
        .map(|example| tokenizer.encode_prompt(&dialogsum.template.render(&example.fields).unwrap(), None).unwrap().ids)
        .collect();
    let rouge = RougeScorer::all().with_stemmer(true);
    let mut evaluation = Evaluation::new(examples, BootstrapConfig::default());
    let config = ManyConfig::new(floats.generation_config(40));
    let mut rouge_1 = |name: &str, model: &AutoModel| {
        let texts = generate_many(model, &tokenizer, &prompts, &config, go_on);
        let texts = texts.into_iter().map(|texts| texts.unwrap().remove(0)).collect();
        100.0 * evaluation.add(name, texts, &[&rouge]).unwrap().score("rouge1").unwrap().mean.interval.mean
    };
    let mut integers = floats.clone();
    integers.compute_in_int8().unwrap();
    let [of_floats, of_integers] = [rouge_1("f32", &floats), rouge_1("int8", &integers)];
    println!("ROUGE-1 of {} dialogues: {of_floats:.2} in f32, {of_integers:.2} in int8", prompts.len());
    assert!((of_floats - of_integers).abs() <= 0.5, "{of_floats} in f32, {of_integers} in int8");
}
