//! `compare_methods`, `dialogsum_compare`, `samsum_falcon_qlora`, `samsum_int8_lora` and `pretrain_mini`.

use sideburn::data::{Dataset, Split};

use super::*;

#[test]
fn methods_are_compared_in_a_table() {
    let directory = tempdir().unwrap();
    let run = |more: Vec<OsString>| {
        let mut command = program("compare_methods");
        command.args(args!["--max-steps", "1", "--max-eval-samples", "2", "--output", directory.path()]);
        command.args(more).output().unwrap()
    };
    let output = run(args!["--methods", "lora,prompt tuning"]);
    assert_ended(&output, 0, &[]);
    let table = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<&str> = table.lines().map(|line| line[..18].trim()).collect();
    assert_eq!(rows, ["", "zero-shot", "lora", "prompt tuning"], "{table}");
    assert!(["lora", "prompt tuning"].iter().all(|method| is_adapter(&directory.path().join(method))));
    assert_ended(&run(args!["--methods", "laura"]), 1, &["no method \"laura\"", "\"lora\""]);
}

#[test]
fn three_ways_are_compared_as_a_page() {
    let directory = tempdir().unwrap();
    let mut command = program("dialogsum_compare");
    command.args(args!["--max-steps", "1", "--max-eval-samples", "3", "--output", directory.path()]);
    let output = command.output().unwrap();
    assert_ended(&output, 0, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let page = fs::read_to_string(directory.path().join("report.html")).unwrap();
    for name in ["zero-shot", "full fine-tuning", "LoRA", "prompt tuning"] {
        assert!(text.contains(name) && page.contains(name), "{name}: {text}");
    }
    // Twelve and two dialogues of the sample's training split, in batches of eight: two steps, and ten.
    for (notebook, others) in [("002", ["full_fine-tuning", "LoRA"].as_slice()), ("003", &["prompt_tuning"])] {
        let output = directory.path().join(notebook);
        let mut command = program("dialogsum_compare");
        command.args(args!["--notebook", notebook, "--max-eval-samples", "2", "--output", &output]);
        assert_ended(&command.output().unwrap(), 0, &[]);
        assert!(others.iter().all(|name| is_adapter(&output.join(name))));
        assert_eq!(output.join("prompt_tuning").exists(), notebook == "003");
    }
    // What full fine-tuning and LoRA train, and the tests.
    assert!(text.contains("2,558,464") && text.contains("147,456") && text.contains("p "), "{text}");
    assert!(["full_fine-tuning", "LoRA", "prompt_tuning"].iter().all(|name| is_adapter(&directory.path().join(name))));
}

#[test]
fn a_decoder_alone_is_trained_on_answers() {
    let directory = tempdir().unwrap();
    let run = |more: Vec<OsString>| {
        let mut command = program("samsum_falcon_qlora");
        command.args(args!["--max-steps", "3", "--max-new-tokens", "8", "--output", directory.path()]);
        command.args(more).output().unwrap()
    };
    let output = run(args![]);
    assert_ended(&output, 0, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("0 of 10 prompts were longer") && text.contains("reference  Ivo runs ten"), "{text}");
    assert!(is_adapter(&directory.path().join("adapter")));
    assert_eq!(fs::read_to_string(directory.path().join("training.jsonl")).unwrap().lines().count(), 3);
    // A T5 has no weights of a Falcon.
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/t5-mini");
    assert_ended(&run(args!["--model", &other]), 1, &["`model_type` is t5", "expected falcon"]);
}

#[test]
fn a_base_in_8_bits_is_taught_and_scored() {
    let directory = tempdir().unwrap();
    let mut command = program("samsum_int8_lora");
    command.args(args!["--num-train-epochs", "2", "--output", directory.path()]);
    let output = command.output().unwrap();
    assert_ended(&output, 0, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("0 of 10 prompts were longer") && text.contains("rouge1"), "{text}");
    assert!(["zero_shot", "lora"].iter().all(|name| text.contains(&format!("{name}: "))), "{text}");
    assert!(is_adapter(&directory.path().join("adapter")));
    // Ten chats in batches of eight, twice.
    assert_eq!(fs::read_to_string(directory.path().join("training.jsonl")).unwrap().lines().count(), 4);
}

#[test]
fn a_small_model_is_made_of_text() {
    let directory = tempdir().unwrap();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/dialogsum-sample");
    let mut lines = String::new();
    let train = Dataset::dialogsum().read(sample, Split::Train).unwrap().examples;
    for example in train.iter().take(100) {
        let (dialogue, summary) = (&example.fields["dialogue"], &example.targets[0]);
        lines += &format!("{}\n", serde_json::json!({ "dialogue": dialogue, "summary": summary }));
    }
    let (text, output) = (directory.path().join("text.jsonl"), directory.path().join("model"));
    fs::write(&text, lines).unwrap();
    let make = |more: Vec<OsString>| {
        let mut command = program("pretrain_mini");
        command.args(args!["--text", &text, "--output", &output, "--max-steps", "1", "--batch-size", "2"]);
        command.args(more).output().unwrap()
    };
    let small = args!["--vocab-size", "1000"];
    assert_ended(&make(small.clone()), 0, &[]);
    let files = ["config.json", "model.safetensors", "tokenizer.json", "pretraining.jsonl"];
    assert!(files.iter().all(|file| output.join(file).is_file()));

    fs::write(&text, "{\"dialogue\": 3}").unwrap();
    assert_ended(&make(small), 1, &["text.jsonl, line 1"]);
}
