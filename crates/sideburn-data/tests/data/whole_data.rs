//! The whole of DialogSum, and T5's own tokenizer. Neither can be part of the repository: these tests run when
//! `SIDEBURN_TEST_DATA` names a directory that holds `data/dialogsum/{hf-csv,official}` (the data set in both layouts)
//! and `data/tokenizer` (FLAN-T5's `tokenizer.json`, and ids that the `tokenizers` library for Python made with it).

#![allow(clippy::print_stderr)]

use std::{collections::BTreeMap, path::PathBuf};

use sideburn_data::{DialogSum, Limits, PromptTemplate, Tokenizer, tokenize};

fn data() -> Option<PathBuf> {
    let data = std::env::var_os("SIDEBURN_TEST_DATA").map(|shared| PathBuf::from(shared).join("data"));
    if data.is_none() {
        eprintln!("skipped: SIDEBURN_TEST_DATA does not name the directory of the whole data");
    }
    data
}

#[test]
fn both_layouts_of_dialogsum_are_equal() {
    let Some(data) = data() else { return };
    let hub = DialogSum::open(data.join("dialogsum/hf-csv")).unwrap();
    let original = DialogSum::open(data.join("dialogsum/official")).unwrap();
    assert_eq!((hub.train.len(), hub.validation.len(), hub.test.len()), (12_460, 500, 500));
    assert_eq!(hub.test.iter().map(|sample| sample.references().len()).sum::<usize>(), 1500);
    assert!(hub.test.iter().all(|sample| sample.references().len() == 3));
    assert!(hub == original, "the two layouts must give the same samples in the same order");
}

#[test]
fn the_ids_are_those_of_hugging_face() {
    let Some(data) = data() else { return };
    let tokenizer = Tokenizer::from_dir(data.join("tokenizer/flan-t5-small-official")).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.max_token_id()), (32_100, 32_099));
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (1, 0));
    assert!(tokenizer.check_fits(32_128).is_ok() && tokenizer.check_fits(32_000).is_err());

    let golden = std::fs::read_to_string(data.join("tokenizer/golden_t5_ids.jsonl")).unwrap();
    let mut texts = 0;
    for line in golden.lines() {
        let row: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let text = row["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(row["ids_hf_fast"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, None).unwrap().ids, ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), row["decoded"].as_str().unwrap(), "{text:?}");
        texts += 1;
    }
    assert_eq!(texts, 208);
    eprintln!("{texts} texts: all ids and decoded texts equal");
}

#[test]
fn few_dialogues_are_cut() {
    let Some(data) = data() else { return };
    let tokenizer = Tokenizer::from_dir(data.join("tokenizer/flan-t5-small-official")).unwrap();
    let test = DialogSum::open(data.join("dialogsum/hf-csv")).unwrap().test;
    let set = tokenize(&test, &tokenizer, &PromptTemplate::default(), Limits::default()).unwrap();
    eprintln!("{set}");
    assert!(set.cut_sources > 0 && set.cut_sources < 50, "{set}");
    assert!(set.samples.iter().all(|sample| sample.source.len() <= 512 && sample.source.ends_with(&[1])));
}
