//! Files as people have them. What they mean is clear, or an error names the form and says how to mend it.

use std::{fs, path::Path};

use sideburn_data::{Columns, Dataset, Example, Split, parse_csv, parse_jsonl, read_examples};

fn columns() -> Columns {
    Dataset::dialogsum().columns
}

fn csv(text: &str) -> Result<Vec<Example>, String> {
    parse_csv(Path::new("f.csv"), text.as_bytes(), &columns())
        .map(|loaded| loaded.examples)
        .map_err(|error| error.to_string())
}

fn jsonl(text: &str) -> Result<Vec<Example>, String> {
    parse_jsonl(Path::new("f.jsonl"), text.as_bytes(), &columns())
        .map(|loaded| loaded.examples)
        .map_err(|error| error.to_string())
}

/// Id, dialogue and targets of each example.
fn plain(examples: Result<Vec<Example>, String>) -> Vec<(String, String, Vec<String>)> {
    examples.unwrap().into_iter().map(|mut e| (e.id, e.fields.remove("dialogue").unwrap(), e.targets)).collect()
}

/// Two dialogues, the second with two references.
fn two() -> Vec<(String, String, Vec<String>)> {
    let of = |id: &str, dialogue: &str, targets: &[&str]| {
        (id.to_owned(), dialogue.to_owned(), targets.iter().map(|target| target.to_string()).collect())
    };
    vec![
        of("train_1", "A: Tea?\nB: Please.", &["B wants tea."]),
        of("train_2", "A: Bye; see you.", &["A leaves.", "Bye."]),
    ]
}

const JSON: [&str; 2] = [
    r#"{"id": "train_1", "dialogue": "A: Tea?\nB: Please.", "summary": "B wants tea."}"#,
    r#"{"id": "train_2", "dialogue": "A: Bye; see you.", "summary": ["A leaves.", "Bye."]}"#,
];

#[test]
fn json_lines_arrays_and_byte_order_marks_are_read() {
    let [a, b] = JSON;
    for text in [
        format!("{a}\n{b}\n"),
        format!("\u{feff}{a}\n{b}"),
        format!("[{a}, {b}]"),
        format!("[\n  {a},\n  {b}\n]\n"),
        format!("\u{feff}[\r\n{a},\r\n{b}\r\n]"),
    ] {
        assert_eq!(plain(jsonl(&text)), two(), "{text}");
    }
}

#[test]
fn semicolons_tabs_and_upper_case_headers_are_read() {
    let rows = |s: &str, dialogue: &str| {
        let row = |id: &str, dialogue: &str, summary: &str| [id, dialogue, summary].join(s);
        let header = row("ID", "Dialogue", "Summary");
        let second = "\"A: Bye; see you.\"";
        [
            &header,
            &row("train_1", dialogue, "B wants tea."),
            &row("train_2_1", second, "A leaves."),
            &row("train_2_2", second, "Bye."),
        ]
        .map(String::as_str)
        .join("\n")
    };
    for separator in [",", ";", "\t"] {
        assert_eq!(plain(csv(&rows(separator, "\"A: Tea?\nB: Please.\""))), two(), "{separator:?}");
    }
    assert_eq!(plain(csv(&rows("\t", "A: Tea?\\nB: Please."))), two(), "a line break as databases write it");
}

#[test]
fn ids_may_be_whole_numbers_or_none() {
    let ids = |examples: Result<Vec<Example>, String>| -> Vec<String> {
        examples.unwrap().into_iter().map(|example| example.id).collect()
    };
    let numbers =
        r#"{"id": 7, "dialogue": "d", "summary": "s"}"#.to_owned() + "\n" + r#"{"id":-1,"dialogue":"e","summary":"s"}"#;
    assert_eq!(ids(jsonl(&numbers)), ["7", "-1"]);
    assert_eq!(ids(csv("dialogue,summary\nd,s\nd,t\n")), ["0", "1"]);
    assert_eq!(
        ids(jsonl("{\"dialogue\":\"d\",\"summary\":\"s\"}\n{\"dialogue\":\"d\",\"summary\":\"t\"}")),
        ["0", "1"]
    );

    let message = jsonl("{\"id\":1.5,\"dialogue\":\"d\",\"summary\":\"s\"}").unwrap_err();
    assert!(message.starts_with("f.jsonl, line 1: \"id\" must be a string, found a number;"), "{message}");
    let message = jsonl("{\"id\":\"a\",\"dialogue\":\"d\",\"summary\":\"s\"}\n{\"dialogue\":\"d\",\"summary\":\"s\"}")
        .unwrap_err();
    assert!(message.starts_with("f.jsonl, line 2: no field \"fname or id\"; found dialogue, summary"), "{message}");
    let message = jsonl("{\"dialogue\":\"d\",\"summary\":\"s\"}\n{\"id\":\"a\",\"dialogue\":\"d\",\"summary\":\"s\"}")
        .unwrap_err();
    assert!(
        message.starts_with("f.jsonl, line 2: this record has an id, and the first of the file has none;"),
        "{message}"
    );
}

#[test]
fn what_is_no_text_is_named_with_what_helps() {
    let summary =
        |value: &str| jsonl(&format!("{{\"id\": \"a\", \"dialogue\": \"d\", \"summary\": {value}}}")).unwrap_err();
    for (value, said) in [
        ("null", "\"summary\" must be a string, found null; remove the record or fill it in"),
        ("[]", "\"summary\" must be a string, found an empty array; remove the record or fill it in"),
        ("[\"s\", null]", "\"summary[1]\" must be a string, found null; remove the record or fill it in"),
        ("[\"s\", \" \"]", "\"summary[1]\" is blank; remove the record or fill it in"),
        ("7", "\"summary\" must be a string, found a number; put it in quotation marks"),
        ("{\"text\": \"s\"}", "\"summary\" must be a string, found an object; put the text itself there"),
    ] {
        assert_eq!(summary(value), format!("f.jsonl, line 1: {said}"));
    }
    let turns = r#"{"id": "a", "dialogue": ["A: Hi.", "B: Ho."], "summary": "s"}"#;
    assert_eq!(
        jsonl(turns).unwrap_err(),
        "f.jsonl, line 1: \"dialogue\" must be a string, found an array; join its texts into one, with line breaks between \
         them"
    );
    let message = csv("id,dialogue,summary\na,d,\n").unwrap_err();
    assert_eq!(message, "f.csv, line 2: \"summary\" is blank; remove the record or fill it in");
    let topic = r#"{"id": "a", "dialogue": "d", "summary": "s", "topic": null}"#;
    assert_eq!(jsonl(topic).unwrap()[0].field("topic"), None, "a topic may be missing");
}

#[test]
fn references_are_counted() {
    let numbered = |numbers: &[usize]| {
        let summaries: Vec<String> = numbers.iter().map(|n| format!("\"summary{n}\": \"s{n}\"")).collect();
        jsonl(&format!("{{\"id\": \"a\", \"dialogue\": \"d\", {}}}", summaries.join(", ")))
    };
    assert_eq!(plain(numbered(&[2, 10, 1, 3, 4, 5, 6, 7, 8, 9]))[0].2[9], "s10");
    assert!(numbered(&[1, 3]).unwrap_err().starts_with("f.jsonl, line 1: no field \"summary2\";"));
    assert_eq!(plain(numbered(&[0, 1]))[0].2, ["s0", "s1"]);
    assert!(numbered(&[0, 2]).unwrap_err().starts_with("f.jsonl, line 1: no field \"summary1\";"));
    let message = csv("id,dialogue,summary1,Summary1\na,d,s,t\n").unwrap_err();
    assert!(message.starts_with("f.csv, line 1: more than one column is named \"summary1\";"), "{message}");

    let rows = |count: usize, id: &dyn Fn(usize) -> String| {
        let rows: Vec<String> = (0..count).map(|n| format!("{},d,s{n}\n", id(n))).collect();
        csv(&format!("id,dialogue,summary\n{}", rows.concat()))
    };
    for id in [&|_| "a".to_owned(), &|n| format!("a_0_{n}")] as [&dyn Fn(usize) -> String; 2] {
        assert_eq!(rows(1000, id).unwrap()[0].targets.len(), 1000);
        let message = rows(1001, id).unwrap_err();
        assert!(
            message.starts_with("f.csv, line 1002: example \"a") && message.contains("more than 1000 ref"),
            "{message}"
        );
    }
    let array = serde_json::json!({ "id": "a", "dialogue": "d", "summary": vec!["s"; 1001] }).to_string();
    assert!(jsonl(&array).unwrap_err().contains("more than 1000 references"));
}

/// What would take time in the square of its length.
#[test]
fn long_heads_and_many_columns_take_no_time() {
    let blanks = format!("{}[]", " ".repeat(4 << 20));
    assert!(jsonl(&blanks).unwrap_err().starts_with("f.jsonl holds no example"));
    let columns: Vec<String> = (1..200_000).map(|n| format!("\"summary{n}\": \"s\"")).collect();
    let message = jsonl(&format!("{{\"id\": \"a\", \"dialogue\": \"d\", {}}}", columns.join(", "))).unwrap_err();
    assert!(message.contains("more than 1000 references"), "{message}");
}

#[test]
fn forms_that_are_not_read_are_named() {
    let message = jsonl("{'fname': 'test_0', 'dialogue': \"d\", 'summary': \"s\"}").unwrap_err();
    assert_eq!(
        message,
        "f.jsonl, line 1: a Python dictionary, not JSON, whose quotation marks are double; Python turns a line into \
         JSON with `json.dumps(ast.literal_eval(line))`"
    );
    let message = csv("id,dialogue,summary\na,\"A: \\\"Tea?\\\"\",s\n").unwrap_err();
    assert!(message.contains("stray quotation mark in field 2 on line 2; it is escaped with a backslash"), "{message}");
    let message =
        csv("id,dialogue,summary,Dialogue,DIALOGUE\na,d,s,e,f\n").map(|examples| plain(Ok(examples))).unwrap();
    assert_eq!(message[0].1, "d", "the exact name counts");
    let message = csv("id,DIALOGUE,Dialogue,summary\na,d,e,s\n").unwrap_err();
    assert_eq!(message, "f.csv, line 1: more than one column is named \"dialogue\"; rename all but one");
}

#[test]
fn a_git_lfs_pointer_is_not_taken_for_data() {
    let directory = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 11\n";
    for name in ["train.csv", "dialogsum.dev.jsonl"] {
        let path = directory.path().join(name);
        fs::write(&path, pointer).unwrap();
        let message = read_examples(&path, &columns()).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("run `git lfs pull`"), "{message}");
    }
}

/// In the layout of the original: arrays, and an empty dialogue that is known.
#[test]
fn samsum_is_an_array_in_a_file() {
    let (directory, samsum) = (tempfile::tempdir().unwrap(), Dataset::samsum());
    let train = r#"[
        {"id": "1", "summary": "Ann bakes.", "dialogue": "Ann: I bake.\r\nBob: Nice!"},
        {"id": "13828807", "summary": "", "dialogue": ""}
    ]"#;
    fs::write(directory.path().join("train.json"), train).unwrap();
    fs::write(directory.path().join("val.json"), "[{\"id\": \"2\", \"summary\": \"s\", \"dialogue\": \"\"}]").unwrap();
    let train = samsum.read(&directory, Split::Train).unwrap();
    assert_eq!(
        train.to_string(),
        format!(
            "2 records, 1 examples, 1 skipped\n{}, line 3: \"13828807\" has an empty dialogue, a known fault of the published data",
            directory.path().join("train.json").display()
        )
    );
    let examples = train.examples;
    assert_eq!(examples[0].field("dialogue"), Some("Ann: I bake.\nBob: Nice!"));
    let message = samsum.read(&directory, Split::Validation).unwrap_err().to_string();
    assert!(message.ends_with("val.json, line 1: \"dialogue\" is blank; remove the record or fill it in"), "{message}");
    let message = samsum.read(&directory, Split::Test).unwrap_err().to_string();
    let names = "looked for test.*, samsum_test.*, samsum-test.*, samsum.test.* (* is csv, tsv, json, jsonl, ndjson or parquet);";
    assert!(message.contains("no test split of SAMSum: ") && message.contains(names), "{message}");
}
