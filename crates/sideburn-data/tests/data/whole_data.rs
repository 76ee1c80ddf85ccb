//! The whole of DialogSum and SAMSum, and T5's own tokenizer. None can be part of the repository: these tests run when
//! `SIDEBURN_TEST_DATA` names a directory that holds `data/dialogsum/{hf-csv,official}` and
//! `data/samsum/{csv-knkarthick,jsonl-hf}` (the data sets in two layouts each)
//! and `data/tokenizer` (FLAN-T5's `tokenizer.json`, and ids that the `tokenizers` library for Python made with it).

#![allow(clippy::print_stderr)]

use std::{collections::BTreeMap, path::PathBuf};

use sideburn_data::{Dataset, GroupedSampler, Limits, Split, Tokenizer, tokenize, tokenize_cached};

fn data() -> Option<PathBuf> {
    let data = std::env::var_os("SIDEBURN_TEST_DATA").map(|shared| PathBuf::from(shared).join("data"));
    if data.is_none() {
        eprintln!("skipped: SIDEBURN_TEST_DATA does not name the directory of the whole data");
    }
    data
}

const SPLITS: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

#[test]
fn both_layouts_of_dialogsum_are_equal() {
    let Some(data) = data() else { return };
    let read = |layout: &str| SPLITS.map(|split| Dataset::dialogsum().read(data.join(layout), split).unwrap().examples);
    let (hub, original) = (read("dialogsum/hf-csv"), read("dialogsum/official"));
    assert_eq!(hub.each_ref().map(Vec::len), [12_460, 500, 500]);
    assert!(hub[2].iter().all(|example| example.targets.len() == 3));
    assert!(hub == original, "the two layouts must give the same examples in the same order");
}

#[test]
fn both_layouts_of_samsum_are_equal() {
    let Some(data) = data() else { return };
    let read = |layout: &str| SPLITS.map(|split| Dataset::samsum().read(data.join(layout), split).unwrap());
    let (csv, jsonl) = (read("samsum/csv-knkarthick"), read("samsum/jsonl-hf"));
    // Whoever made the CSV has left out the record whose dialogue is empty.
    assert_eq!(csv.each_ref().map(|split| split.rows), [14_731, 818, 819]);
    assert_eq!(jsonl.each_ref().map(|split| split.rows), [14_732, 818, 819]);
    let [skipped] = jsonl[0].skipped.as_slice() else { panic!("{}", jsonl[0]) };
    assert_eq!(skipped.reason, "\"13828807\" has an empty dialogue, a known fault of the published data");
    assert!(csv.iter().chain(&jsonl[1..]).all(|split| split.skipped.is_empty()));
    let examples = |splits: [sideburn_data::Loaded; 3]| splits.map(|split| split.examples);
    assert!(examples(csv) == examples(jsonl), "the two layouts must give the same examples in the same order");
}

#[test]
fn the_ids_are_those_of_hugging_face() {
    let Some(data) = data() else { return };
    let tokenizer = Tokenizer::from_dir(data.join("tokenizer/flan-t5-small-official")).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.max_token_id()), (32_100, 32_099));
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (Some(1), Some(0)));
    assert!(tokenizer.check_fits(32_128).is_ok() && tokenizer.check_fits(32_000).is_err());

    let golden = std::fs::read_to_string(data.join("tokenizer/golden_t5_ids.jsonl")).unwrap();
    let mut texts = 0;
    for line in golden.lines() {
        let row: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let text = row["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(row["ids_hf_fast"].clone()).unwrap();
        assert_eq!(tokenizer.encode_prompt(text, None).unwrap().ids, ids, "{text:?}");
        assert_eq!(tokenizer.encode_target(text, None).unwrap().ids, ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), row["decoded"].as_str().unwrap(), "{text:?}");
        texts += 1;
    }
    assert_eq!(texts, 208);
    eprintln!("{texts} texts: all ids and decoded texts equal");
}

/// Exports of several versions of `transformers`.
#[test]
fn special_tokens_are_found_in_published_files() {
    let Some(data) = data() else { return };
    for directory in ["flan-t5-small-official", "flan-t5-small-xenova", "t5-small-hf4.x"] {
        let tokenizer = Tokenizer::from_dir(data.join("tokenizer").join(directory)).unwrap();
        let ids = [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()];
        assert_eq!(ids, [None, Some(1), Some(0)], "{directory}");
        assert_eq!(tokenizer.encode_prompt("Hello", None).unwrap().ids, [8774, 1], "{directory}");
        let alone = Tokenizer::from_file(data.join("tokenizer").join(directory).join("tokenizer.json")).unwrap();
        assert_eq!(alone.encode_target("Hello", None).unwrap().ids, [8774, 1], "{directory}");
    }
}

#[test]
fn little_of_a_batch_is_padding() {
    let Some(data) = data() else { return };
    let tokenizer = Tokenizer::from_dir(data.join("tokenizer/flan-t5-small-official")).unwrap();
    let dialogsum = Dataset::dialogsum();
    let train = dialogsum.read(data.join("dialogsum/hf-csv"), Split::Train).unwrap().examples;
    let directory = tempfile::tempdir().unwrap();
    let tokens = || tokenize_cached(&directory, &train, &tokenizer, &dialogsum.template, Limits::default(), |_| ());
    let set = tokens().unwrap();
    assert!(tokens().unwrap() == set, "what is kept is the same");
    for budget in [2048, 4096, 8192] {
        let padding = set.padding(&GroupedSampler::by_padded_tokens(&set.lengths(), budget, 42).unwrap());
        let shuffled = set.padding(&GroupedSampler::by_tokens(&set.token_counts(), budget, 42).unwrap());
        eprintln!("{budget} tokens: {:.1} % padding, {:.1} % shuffled", 100.0 * padding, 100.0 * shuffled);
        assert!(padding < 0.08, "{padding}");
    }
}

#[test]
fn few_dialogues_are_cut() {
    let Some(data) = data() else { return };
    let tokenizer = Tokenizer::from_dir(data.join("tokenizer/flan-t5-small-official")).unwrap();
    let dialogsum = Dataset::dialogsum();
    let test = dialogsum.read(data.join("dialogsum/hf-csv"), Split::Test).unwrap().examples;
    let set = tokenize(&test, &tokenizer, &dialogsum.template, Limits::default()).unwrap();
    eprintln!("{set}");
    assert!(set.cut_prompts > 0 && set.cut_prompts < 50, "{set}");
    assert!(set.examples.iter().all(|example| example.prompt.len() <= 512 && example.prompt.ends_with(&[1])));
}
