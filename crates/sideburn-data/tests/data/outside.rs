//! Data sets that the crate does not know.

use std::{fs, path::Path};

use sideburn_data::{Columns, Dataset, Split, Template, Tokenizer, tokenize};

const QUESTIONS: &str = "Answer from the text.\n\nText: {context}\nQuestion: {question}\nAnswer: ";

/// Questions about a text, in a directory of one CSV file and one JSON Lines file.
#[test]
fn a_data_set_is_a_value() {
    let directory = tempfile::tempdir().unwrap();
    let rows = "key,question,answer,context\nq1,Who came?,Ann,\"Ann came, and Bob left.\"\n";
    fs::write(directory.path().join("questions.csv"), rows).unwrap();
    let lines =
        r#"{"key": "q2", "context": "It rained.", "question": "How was it?", "answer": "Wet", "level": "easy"}"#;
    fs::write(directory.path().join("dev.jsonl"), lines).unwrap();

    let questions = Dataset {
        name: "Questions".into(),
        columns: Columns {
            id: vec!["key".into()],
            optional: vec!["level".into()],
            ..Columns::new(["context", "question"], "answer")
        },
        train: vec!["questions.csv".into()],
        validation: vec!["dev.jsonl".into()],
        test: vec!["held_out.jsonl".into()],
        template: Template::new(QUESTIONS).unwrap(),
    };
    let train = questions.read(&directory, Split::Train).unwrap().examples;
    assert_eq!((train[0].id.as_str(), train[0].field("question")), ("q1", Some("Who came?")));
    let dev = questions.read(&directory, Split::Validation).unwrap().examples;
    assert_eq!((dev[0].field("level"), dev[0].targets[0].as_str()), (Some("easy"), "Wet"));
    let prompt = questions.template.render(&train[0].fields).unwrap();
    assert_eq!(prompt, "Answer from the text.\n\nText: Ann came, and Bob left.\nQuestion: Who came?\nAnswer: ");
    let message = questions.read(&directory, Split::Test).unwrap_err().to_string();
    assert!(message.contains("no test split of Questions: looked for held_out.jsonl;"), "{message}");

    let tokenizer = Tokenizer::from_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")).unwrap();
    let set = tokenize(&train, &tokenizer, &questions.template, Default::default()).unwrap();
    assert_eq!(set.batch(&[0]).unwrap().prompts().len(), 1);
}
