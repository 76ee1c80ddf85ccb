//! Tokeniser and batches, on a toy vocabulary (`testdata/make_tokenizer.py`).

use std::path::{Path, PathBuf};

use sideburn_data::{
    DataError, Encoding, Example, Fields, Limits, Template, TextStream, TokenizedExample, TokenizedSet, Tokenizer,
    TokenizerFiles, tokenize, tokenize_watched,
};
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
    let id = |text: &str| tokenizer.encode_prompt(text, None).unwrap().ids;
    let hello = id("Hello")[0];
    assert_eq!(id("Hello"), [hello, 1]);
    assert_eq!(id("Hello</s>"), [hello, 1], "a text that ends in the token does not get a second one");
    assert_eq!(id("Hello</s></s>"), [hello, 1]);
    assert_eq!(id(""), [1]);
    // More than the 6 that the file's own truncation allows, and not padded to the 12 it asks for.
    assert_eq!(id("Hello Hello Hello Hello Hello Hello Hello"), [hello, hello, hello, hello, hello, hello, hello, 1]);
}

/// The testdata's tokenizer with other special tokens, without what it puts around a text, and beside these settings.
fn with(tokens: &[(&str, &str)], post_processor: bool, files: TokenizerFiles<'_>) -> Result<Tokenizer, DataError> {
    let mut json = std::fs::read_to_string(testdata().join("tokenizer.json")).unwrap();
    for (token, other) in tokens {
        json = json.replace(token, other);
    }
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    if !post_processor {
        json["post_processor"] = serde_json::Value::Null;
    }
    let json = json.to_string();
    Tokenizer::from_files(TokenizerFiles { tokenizer: Some(json.as_bytes()), ..files })
}

#[test]
fn special_tokens_are_those_of_the_files() {
    let none = TokenizerFiles::default();
    let ids = |tokenizer: &Tokenizer| {
        [tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.decoder_start_id()]
    };
    // Whatever they are called.
    let other = with(&[("</s>", "<stop>"), ("<pad>", "<none>")], true, none).unwrap();
    assert_eq!(ids(&other), [None, Some(1), Some(0), None]);
    assert_eq!(other.encode_prompt("", None).unwrap().ids, [1]);

    // The first of the files that says something: by name, then by id.
    let config =
        br#"{"eos_token_id": 3, "pad_token_id": 3, "bos_token_id": null, "decoder_start_token_id": 0}"#.as_slice();
    let generation = br#"{"eos_token_id": [2, 1], "decoder_start_token_id": null}"#.as_slice();
    let by_id = TokenizerFiles { config: Some(config), generation_config: Some(generation), ..none };
    assert_eq!(ids(&with(&[], false, by_id).unwrap()), [None, Some(2), Some(0), Some(0)]);
    assert_eq!(ids(&with(&[], true, by_id).unwrap())[1], Some(1), "what it puts behind texts itself");
    let map = br#"{"eos_token": "<unk>", "bos_token": {"content": "<extra_id_0>", "lstrip": false}}"#.as_slice();
    let by_name = TokenizerFiles { special_tokens_map: Some(map), ..by_id };
    assert_eq!(ids(&with(&[], true, by_name).unwrap()), [Some(103), Some(2), Some(0), Some(0)]);
    let settings = br#"{"eos_token": {"content": "<pad>"}, "pad_token": null}"#.as_slice();
    let all = TokenizerFiles { tokenizer_config: Some(settings), ..by_name };
    assert_eq!(ids(&with(&[], true, all).unwrap()), [Some(103), Some(0), Some(0), Some(0)]);
}

#[test]
fn a_prompt_without_an_encoder_has_no_end() {
    let names_eos = TokenizerFiles { tokenizer_config: Some(br#"{"eos_token": "</s>"}"#), ..TokenizerFiles::default() };
    let causal = with(&[], false, names_eos).unwrap();
    let hello = tokenizer().encode_prompt("Hello", None).unwrap().ids[0];
    assert_eq!(causal.encode_prompt("Hello", None).unwrap().ids, [hello]);
    assert_eq!(causal.encode_target("Hello", None).unwrap().ids, [hello, 1]);
    assert_eq!(causal.encode_prompt("Hello Hello Hello", Some(2)).unwrap(), Encoding { ids: vec![hello; 2], cut: 1 });
    assert_eq!(causal.encode_target("Hello Hello Hello", Some(2)).unwrap(), Encoding { ids: vec![hello, 1], cut: 2 });

    // Those that end it although the file does not say so.
    let t5 = TokenizerFiles {
        tokenizer_config: Some(br#"{"eos_token": "</s>", "tokenizer_class": "T5Tokenizer"}"#),
        ..names_eos
    };
    let encoder = TokenizerFiles { config: Some(br#"{"is_encoder_decoder": true}"#), ..names_eos };
    for files in [t5, encoder] {
        assert_eq!(with(&[], false, files).unwrap().encode_prompt("Hello", None).unwrap().ids, [hello, 1]);
    }

    // A token before the prompt stands before no target.
    let [a, eos] = [r#"{"Sequence":{"id":"A","type_id":0}}"#, r#"{"SpecialToken":{"id":"</s>","type_id":0}}"#];
    let (behind, before) = (format!(r#""single":[{a},{eos}]"#), format!(r#""single":[{eos},{a}]"#));
    let names_unk =
        TokenizerFiles { tokenizer_config: Some(br#"{"eos_token": "<unk>"}"#), ..TokenizerFiles::default() };
    let llama = with(&[(&behind, &before)], true, names_unk).unwrap();
    assert_eq!(llama.encode_prompt("Hello", None).unwrap().ids, [1, hello]);
    assert_eq!(llama.encode_target("Hello", None).unwrap().ids, [hello, 2]);
    assert_eq!(llama.bos_id(), Some(1));

    let message =
        with(&[], false, TokenizerFiles::default()).unwrap().encode_target("x", None).unwrap_err().to_string();
    assert_eq!(
        message,
        "no file of the model names its end-of-sequence token; add \"eos_token\" to tokenizer_config.json"
    );
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let message = |files| with(&[], true, files).unwrap_err().to_string();
    let none = TokenizerFiles::default();
    assert_eq!(
        message(TokenizerFiles { tokenizer_config: Some(br#"{"eos_token": "<|end|>"}"#), ..none }),
        "tokenizer.json has no token \"<|end|>\", which is the end-of-sequence token of the model; fetch all files from one \
         place"
    );
    let unused =
        TokenizerFiles { special_tokens_map: Some(br#"{"bos_token": "<s>", "pad_token": "<|pad|>"}"#), ..none };
    let tokenizer = with(&[], true, unused).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.pad_id(), tokenizer.eos_id()), (None, None, Some(1)));
    let said = message(TokenizerFiles { generation_config: Some(br#"{"decoder_start_token_id": "x"}"#), ..none });
    assert!(
        said.starts_with(
            "generation_config.json is not what it should be: `decoder_start_token_id` is \"x\", expected"
        ),
        "{said}"
    );
    let said = message(TokenizerFiles { config: Some(b"[]"), ..none });
    assert!(said.starts_with("config.json is not what it should be: invalid type: sequence, expected a map"), "{said}");
}

#[test]
fn byt5_needs_no_file_but_its_settings() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("config.json", r#"{"model_type": "t5", "decoder_start_token_id": 0, "vocab_size": 384}"#);
    assert!(matches!(Tokenizer::from_dir(&directory), Err(DataError::NoTokenizer { .. })));
    write("tokenizer_config.json", r#"{"tokenizer_class": "ByT5Tokenizer", "eos_token": "</s>", "extra_ids": 125}"#);
    let tokenizer = Tokenizer::from_dir(&directory).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.max_token_id()), (384, 383));
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.decoder_start_id()), (Some(1), Some(0), Some(0)));
    // 195 and 164 are the bytes of ä.
    assert_eq!(tokenizer.encode_prompt("aä</s>", None).unwrap().ids, [100, 198, 167, 1]);
    assert_eq!(tokenizer.encode_target("abc", Some(3)).unwrap(), Encoding { ids: vec![100, 101, 1], cut: 1 });
    assert_eq!(tokenizer.decode(&[0, 100, 198, 167, 259, 1, 9999]).unwrap(), "aä");
    let config = Some(br#"{"tokenizer_class": "ByT5Tokenizer"}"#.as_slice());
    let from_config = Tokenizer::from_files(TokenizerFiles { config, ..TokenizerFiles::default() }).unwrap();
    assert_eq!(from_config.encode_prompt("a", None).unwrap().ids, [100, 1]);
}

#[test]
fn truncation_keeps_the_end_of_sequence_token() {
    let tokenizer = tokenizer();
    let whole = tokenizer.encode_prompt("Hello the Hello", None).unwrap();
    assert_eq!((whole.ids.len(), whole.cut), (4, 0));
    assert_eq!(tokenizer.encode_prompt("Hello the Hello", Some(4)).unwrap(), whole);
    let cut = tokenizer.encode_prompt("Hello the Hello", Some(3)).unwrap();
    assert_eq!(cut.ids, [whole.ids[0], whole.ids[1], 1]);
    assert_eq!(cut.cut, 1);
    for max_length in [0, 1] {
        assert!(matches!(tokenizer.encode_prompt("x", Some(max_length)), Err(DataError::Limit { .. })));
    }
}

#[test]
fn decoding_leaves_special_and_unknown_ids_out() {
    let tokenizer = tokenizer();
    let mut ids = vec![tokenizer.pad_id().unwrap()];
    ids.extend(tokenizer.encode_prompt("Hello <extra_id_0>#Person1#: the end", None).unwrap().ids);
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
}

#[test]
fn a_set_keeps_the_order_and_reports_what_was_cut() {
    let set = set(Limits { max_source_length: 4, max_target_length: 4 }).unwrap();
    assert_eq!(set.examples.iter().map(|example| example.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    // Hello ! </s>; the Hello the </s> (the exclamation mark is cut); ▁ z ! </s>
    assert_eq!(set.examples.iter().map(|example| example.prompt.len()).collect::<Vec<_>>(), [3, 4, 4]);
    assert!(set.examples.iter().all(|example| example.prompt.ends_with(&[1]) && example.target.ends_with(&[1])));
    assert_eq!((set.cut_prompts, set.cut_targets), (1, 1));
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
    assert_eq!(batch.prompts().iter().next().unwrap(), set.examples[2].prompt);
    assert_eq!(batch.targets().iter().nth(1).unwrap(), set.examples[0].target);
    assert_eq!(set.token_counts(), [3 + 5, 5 + 3, 4 + 4]);
    let message = set.batch(&[0, 3]).unwrap_err().to_string();
    assert_eq!(message, "there is no example 3; the set has 3 examples, numbered from 0");
    assert!(matches!(set.batch(&[]), Err(DataError::Batch(_))));
}

/// Falcon's kind of tokenizer (`testdata/make_bpe_tokenizer.py`).
fn byte_level() -> Tokenizer {
    Tokenizer::from_dir(testdata().join("bpe")).unwrap()
}

#[test]
fn byte_level_pieces_are_those_of_the_library() {
    let text = std::fs::read_to_string(testdata().join("bpe/ids.json")).unwrap();
    let tokenizer = byte_level();
    for (text, ids, decoded) in serde_json::from_str::<Vec<(String, Vec<u32>, String)>>(&text).unwrap() {
        assert_eq!(tokenizer.encode_prompt(&text, None).unwrap().ids, ids, "{text:?}: nothing behind a prompt");
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{text:?}");
        let target = tokenizer.encode_target(&text, None).unwrap().ids;
        assert_eq!(target, [&ids[..], &[2]].concat(), "{text:?}: the end of the text behind an answer");
    }
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id(), tokenizer.decoder_start_id()), (320, Some(2), None));
}

/// Prompt and answer are the tokens of the whole text, since the blank between them is the answer's.
#[test]
fn prompt_and_answer_are_the_tokens_of_the_whole_text() {
    let (tokenizer, template) = (byte_level(), Template::completion("{dialogue}\nSummary: {summary}").unwrap());
    let set = tokenize(&[example("a", "Ben: Yes.", &["Anna meets Ben."])], &tokenizer, &template, Limits::default());
    let TokenizedExample { prompt, target, .. } = &set.unwrap().examples[0];
    let whole = tokenizer.encode_target("Ben: Yes.\nSummary: Anna meets Ben.", None).unwrap().ids;
    assert_eq!([&prompt[..], target].concat(), whole);
    assert_eq!(tokenizer.decode(target).unwrap(), " Anna meets Ben.");
}

#[test]
fn a_prompt_that_is_cut_still_ends_with_what_asks_for_the_answer() {
    let (tokenizer, template) = (byte_level(), Template::completion("{dialogue}\nSummary: {summary}").unwrap());
    let examples = [example("a", "Anna: Are we still on for dinner?", &["Anna asks.", "x"])];
    for (max_source_length, max_target_length) in [(9, 2), (2, 3), (512, 128)] {
        let limits = Limits { max_source_length, max_target_length };
        let set = tokenize(&examples, &tokenizer, &template, limits).unwrap();
        let TokenizedExample { prompt, target, .. } = &set.examples[0];
        let text = tokenizer.decode(prompt).unwrap();
        let begins = if max_source_length > 2 { "Anna:" } else { "Anna" };
        assert!(text.starts_with(begins) && text.ends_with(':'), "{text:?}");
        assert_eq!(text.contains("dinner"), max_source_length == 512, "{text:?}");
        assert_eq!(text.ends_with("\nSummary:"), max_source_length > 2, "{text:?}");
        assert!(prompt.len() <= max_source_length && (2..=max_target_length).contains(&target.len()));
        assert_eq!(target.last(), Some(&2), "the end of the text is a label");
        assert_eq!((set.cut_prompts, set.cut_targets), if max_source_length == 512 { (0, 0) } else { (1, 1) });
    }
}

/// Characters of one to four bytes, a real replacement character and joined emoji among them.
const TEXTS: [&str; 4] = ["Hello the abc", "é, naïve", "日本語 and 🙂👩\u{200D}🔬", "a\u{FFFD}b \u{FFFD}"];

/// Holds what a stream gives against the whole text, and says how many pieces there were.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    let whole = tokenizer.decode(ids).unwrap();
    let (mut stream, mut text, mut pieces) = (TextStream::new(tokenizer), String::new(), 0);
    for id in ids {
        let piece = stream.push(*id).unwrap();
        pieces += usize::from(!piece.is_empty());
        text += &piece;
        assert!(whole.starts_with(&text), "{text:?} does not begin {whole:?}");
    }
    text += &stream.finish().unwrap();
    assert_eq!(text, whole);
    pieces
}

#[test]
fn a_stream_gives_whole_characters_and_the_whole_text() {
    let byt5 = TokenizerFiles { config: Some(br#"{"tokenizer_class": "ByT5Tokenizer"}"#), ..TokenizerFiles::default() };
    let bytes = Tokenizer::from_files(byt5).unwrap();
    for text in TEXTS {
        let ids = bytes.encode_prompt(text, None).unwrap().ids;
        assert_eq!(bytes.decode(&ids).unwrap(), text);
        // A piece for each character, but that a replacement character waits for what follows.
        assert!(streamed(&bytes, &ids) >= text.chars().filter(|c| *c != '\u{FFFD}').count(), "{text}");
    }
    // Half a character at the end is no text.
    let ids = bytes.encode_prompt("aé", None).unwrap().ids;
    assert_eq!(streamed(&bytes, &ids[..2]), 1);
    let toy = tokenizer();
    let ids = toy.encode_prompt("Hello the Hello abc", None).unwrap().ids;
    assert!(streamed(&toy, &ids) > 1, "{ids:?}");
}

/// Tokens that are bytes, as those of Llama for characters that it has no token for, and those of GPT-2 and Falcon.
#[test]
fn a_stream_joins_the_bytes_of_a_character() {
    let bytes = |decoder: &str, pieces: &[&str]| {
        let vocab: serde_json::Map<_, _> =
            pieces.iter().zip(0..).map(|(piece, id)| ((*piece).to_owned(), id.into())).collect();
        let decoder: serde_json::Value = serde_json::from_str(decoder).unwrap();
        let model = serde_json::json!({"type": "WordLevel", "vocab": vocab, "unk_token": pieces[0]});
        let file = serde_json::json!({"version": "1.0", "added_tokens": [], "decoder": decoder, "model": model});
        Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    };
    let fallback = r#"{"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}"#;
    let fallback = bytes(fallback, &["x", "<0xE6>", "<0x97>", "<0xA5>", "y"]);
    let level = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}"#;
    let level = bytes(level, &["x", "æ", "Ĺ", "¥", "y"]);
    for tokenizer in [fallback, level] {
        assert_eq!(tokenizer.decode(&[0, 1, 2, 3, 4]).unwrap(), "x日y");
        assert_eq!(streamed(&tokenizer, &[0, 1, 2, 3, 4]), 3);
        // What never becomes a character is given in the end.
        let cut = tokenizer.decode(&[0, 1, 2]).unwrap();
        assert!(cut.ends_with('\u{FFFD}'), "{cut}");
        assert_eq!(streamed(&tokenizer, &[0, 1, 2]), 1);
    }
}

#[test]
fn progress_is_told_and_ends_with_all() {
    let examples: Vec<Example> = (0..1300).map(|at| example(&at.to_string(), "Hello", &["the"])).collect();
    let mut told = Vec::new();
    let watch = |done| told.push(done);
    let set = tokenize_watched(&examples, &tokenizer(), &template(), Limits::default(), watch).unwrap();
    assert_eq!((set.len(), told.last(), told.len()), (1300, Some(&1300), 3));
    assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "{told:?}");
}

#[test]
fn templates_are_read_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        Template::from_file(path).map(String::from).map_err(|error| error.to_string())
    };
    let prompt = "Summarize:\n\n{dialogue}\n\nSummary: ";
    assert_eq!(read("a.txt", &format!("{prompt}\n")).unwrap(), prompt, "a line break at the end is the editor's");
    assert_eq!(read("a.txt", &format!("\u{feff}{}", prompt.replace('\n', "\r\n"))).unwrap(), prompt);
    assert_eq!(read("a.toml", "# For T5.\ntemplate = \"summarize: {dialogue}\"\n").unwrap(), "summarize: {dialogue}");
    assert_eq!(read("a.TOML", &format!("template = \"\"\"\n{prompt}\"\"\"\n")).unwrap(), prompt);
    for (name, text, said) in [
        ("b.txt", "no place", "it has no place for a field, such as {dialogue}"),
        ("b.txt", "", "it has no place"),
        ("b.toml", "template = 3", "invalid type: integer `3`, expected a string"),
        ("b.toml", "prompt = \"{dialogue}\"", "unknown field `prompt`, expected `template`"),
        ("b.toml", "{dialogue}", "TOML parse error at line 1"),
        ("b.toml", "template = \"{dialogue\"", "begins no place"),
    ] {
        let message = read(name, text).unwrap_err();
        assert!(message.contains(&format!("{name} holds no prompt template: ")) && message.contains(said), "{message}");
    }
    assert!(matches!(Template::from_file(directory.path()), Err(DataError::File(FileError::NotAFile { .. }))));
}
