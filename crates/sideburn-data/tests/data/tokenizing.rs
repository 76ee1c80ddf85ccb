//! Tokeniser and batches, on a toy vocabulary (`testdata/make_tokenizer.py`).

use std::path::{Path, PathBuf};

use sideburn_data::{DataError, Example, Fields, Limits, Template, TokenizedSet, Tokenizer, tokenize};
use sideburn_files::FileError;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(testdata()).unwrap()
}

fn example(id: &str, dialogue: &str, targets: &[&str]) -> Example {
    Example {
        id: id.into(),
        fields: Fields::from([("dialogue".to_owned(), dialogue.to_owned())]),
        targets: targets.iter().map(|target| target.to_string()).collect(),
    }
}

fn template() -> Template {
    Template::new("{dialogue}!").unwrap()
}

fn set(limits: Limits) -> Result<TokenizedSet, DataError> {
    let examples =
        [example("a", "Hello", &["abc", "x"]), example("b", "the Hello the", &["a"]), example("c", "z", &["bc"])];
    tokenize(&examples, &tokenizer(), &template(), limits)
}

#[test]
fn ids_end_with_one_end_of_sequence_token() {
    let tokenizer = tokenizer();
    let id = |text: &str| tokenizer.encode(text, None).unwrap().ids;
    let hello = id("Hello")[0];
    assert_eq!(id("Hello"), [hello, 1]);
    assert_eq!(id("Hello</s>"), [hello, 1], "a text that ends in the token does not get a second one");
    assert_eq!(id("Hello</s></s>"), [hello, 1]);
    assert_eq!(id(""), [1]);
    // More than the 6 that the file's own truncation allows, and not padded to the 12 it asks for.
    assert_eq!(id("Hello Hello Hello Hello Hello Hello Hello"), [hello, hello, hello, hello, hello, hello, hello, 1]);
}

#[test]
fn truncation_keeps_the_end_of_sequence_token() {
    let tokenizer = tokenizer();
    let whole = tokenizer.encode("Hello the Hello", None).unwrap();
    assert_eq!((whole.ids.len(), whole.cut), (4, 0));
    assert_eq!(tokenizer.encode("Hello the Hello", Some(4)).unwrap(), whole);
    let cut = tokenizer.encode("Hello the Hello", Some(3)).unwrap();
    assert_eq!(cut.ids, [whole.ids[0], whole.ids[1], 1]);
    assert_eq!(cut.cut, 1);
    for max_length in [0, 1] {
        assert!(matches!(tokenizer.encode("x", Some(max_length)), Err(DataError::Limit { .. })));
    }
}

#[test]
fn decoding_leaves_special_and_unknown_ids_out() {
    let tokenizer = tokenizer();
    let mut ids = vec![tokenizer.pad_id()];
    ids.extend(tokenizer.encode("Hello <extra_id_0>#Person1#: the end", None).unwrap().ids);
    ids.push(1_000_000);
    assert_eq!(tokenizer.decode(&ids).unwrap().replace("  ", " "), "Hello #Person1#: the end");
    assert_eq!(tokenizer.decode(&[]).unwrap(), "");
}

#[test]
fn a_vocabulary_must_fit_the_embedding() {
    let tokenizer = tokenizer();
    let (largest, size) = (tokenizer.max_token_id(), tokenizer.vocab_size());
    assert_eq!(size, 104);
    assert_eq!(largest, 103, "the added token behind the pieces counts");
    assert!(tokenizer.check_fits(104).is_ok());
    let message = tokenizer.check_fits(103).unwrap_err().to_string();
    assert!(message.starts_with("the tokenizer's largest id is 103, but the model embeds ids below 103;"), "{message}");
}

#[test]
fn broken_tokenizers_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    assert!(matches!(Tokenizer::from_file(&path), Err(DataError::File(FileError::NotFound { path: p })) if p == path));
    let error = Tokenizer::from_dir(directory.path()).unwrap_err().to_string();
    let remedy = r#"AutoTokenizer.from_pretrained("MODEL").save_pretrained("FOLDER")"#;
    assert!(error.contains("has no tokenizer.json") && error.contains(remedy), "{error}");
    assert!(matches!(Tokenizer::from_dir("no folder"), Err(DataError::File(FileError::NotFound { .. }))));
    std::fs::write(&path, "{\"version\"").unwrap();
    assert!(matches!(Tokenizer::from_file(&path), Err(DataError::TokenizerFile { .. })));
    let good = std::fs::read_to_string(testdata().join("tokenizer.json")).unwrap();
    // The library itself panics on these two.
    for (part, other) in [
        ("\"normalizer\":null", "\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"}"),
        ("\"SpecialToken\":{\"id\":\"</s>\"", "\"SpecialToken\":{\"id\":\"nowhere\""),
    ] {
        assert!(good.contains(part), "{part}");
        std::fs::write(&path, good.replace(part, other)).unwrap();
        assert!(matches!(Tokenizer::from_file(&path), Err(DataError::TokenizerFile { .. })), "{part}");
    }
    for (token, other) in [("</s>", "<stop>"), ("<pad>", "<none>")] {
        std::fs::write(&path, good.replace(token, other)).unwrap();
        let message = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("tokenizer.json has no token \"{token}\"")), "{message}");
    }
}

#[test]
fn a_set_keeps_the_order_and_reports_what_was_cut() {
    let set = set(Limits { max_source_length: 4, max_target_length: 4 }).unwrap();
    assert_eq!(set.examples.iter().map(|example| example.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    // Hello ! </s>; the Hello the </s> (the exclamation mark is cut); ▁ z ! </s>
    assert_eq!(set.examples.iter().map(|example| example.source.len()).collect::<Vec<_>>(), [3, 4, 4]);
    assert!(set.examples.iter().all(|example| example.source.ends_with(&[1]) && example.target.ends_with(&[1])));
    assert_eq!((set.cut_sources, set.cut_targets), (1, 1));
    assert_eq!(
        set.to_string(),
        "1 of 3 prompts were longer than 4 tokens and were cut; 1 of 3 targets were longer than 4 tokens and were cut"
    );
}

#[test]
fn limits_are_checked_even_without_examples() {
    let limits = Limits { max_source_length: 512, max_target_length: 1 };
    let error = tokenize(&[], &tokenizer(), &template(), limits).unwrap_err();
    assert!(matches!(error, DataError::Limit { max_length: 1 }), "{error}");
}

#[test]
fn an_example_that_cannot_be_tokenised_is_named() {
    let message = |example| tokenize(&[example], &tokenizer(), &template(), Limits::default()).unwrap_err().to_string();
    assert_eq!(message(example("a", "Hello", &[])), "example \"a\": it has no target; give it at least one");
    let other = Example { fields: Fields::new(), ..example("b", "", &["x"]) };
    assert!(message(other).starts_with("example \"b\": the template has a place {dialogue}, which is no field"));
}

#[test]
fn batches_hold_real_tokens_with_their_lengths() {
    let set = set(Limits::default()).unwrap();
    let batch = set.batch(&[2, 0]).unwrap();
    assert_eq!(batch.prompts().lengths(), [4, 3]);
    assert_eq!(batch.prompts().iter().next().unwrap(), set.examples[2].source);
    assert_eq!(batch.targets().iter().nth(1).unwrap(), set.examples[0].target);
    let message = set.batch(&[0, 3]).unwrap_err().to_string();
    assert_eq!(message, "there is no example 3; the set has 3 examples, numbered from 0");
    assert!(matches!(set.batch(&[]), Err(DataError::Batch(_))));
}
