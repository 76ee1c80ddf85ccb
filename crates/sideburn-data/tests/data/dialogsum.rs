//! Reading DialogSum's layouts, on small made-up files.

use std::{fs, path::Path};

use sideburn_data::{DataError, DialogSum, Sample, read_csv, read_jsonl};
use sideburn_files::FileError;

const TEST_CSV: &str = "id,dialogue,summary,topic
test_0_1,\"#Person1#: Is it \"\"late\"\"?
#Person2#: Yes, very.\",It is late.,time
test_0_2,\"#Person1#: Is it \"\"late\"\"?
#Person2#: Yes, very.\",\"They agree, it is late.\",hour
test_0_3,\"#Person1#: Is it \"\"late\"\"?
#Person2#: Yes, very.\",Late.,clock
test_1_1,#Person1#: Bye.,Somebody leaves.,leave
";

const TEST_JSONL: &str = r##"{"fname": "test_0", "dialogue": "#Person1#: Is it \"late\"?\n#Person2#: Yes, very.", "summary1": "It is late.", "topic1": "time", "summary2": "They agree, it is late.", "topic2": "hour", "summary3": "Late.", "topic3": "clock"}
{"fname": "test_1", "dialogue": "#Person1#: Bye.", "summary": "Somebody leaves.", "topic": "leave"}"##;

/// Writes `text` to a file, reads it, and gives the samples or the message with the directory taken out.
fn read_as(name: &str, text: impl AsRef<[u8]>) -> Result<Vec<Sample>, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    let read = if name.ends_with(".csv") { read_csv(&path) } else { read_jsonl(&path) };
    read.map_err(|error| error.to_string().replace(&path.display().to_string(), name))
}

fn csv_message(text: impl AsRef<[u8]>) -> String {
    read_as("f.csv", text).unwrap_err()
}

fn jsonl_message(text: impl AsRef<[u8]>) -> String {
    read_as("f.jsonl", text).unwrap_err()
}

#[test]
fn rows_of_one_dialogue_become_one_sample() {
    let samples = read_as("test.csv", TEST_CSV).unwrap();
    assert_eq!(samples.len(), 2, "four rows, two dialogues");
    assert_eq!(samples[0].id, "test_0");
    assert_eq!(samples[0].dialogue, "#Person1#: Is it \"late\"?\n#Person2#: Yes, very.");
    assert_eq!(samples[0].summary(), "It is late.");
    assert_eq!(samples[0].references(), ["It is late.", "They agree, it is late.", "Late."]);
    assert_eq!(samples[0].topic.as_deref(), Some("time"));
    assert_eq!((samples[1].id.as_str(), samples[1].references().len()), ("test_1", 1));
}

#[test]
fn both_layouts_say_the_same() {
    assert_eq!(read_as("test.csv", TEST_CSV), read_as("test.jsonl", TEST_JSONL));
}

#[test]
fn windows_files_say_the_same() {
    let windows = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(read_as("test.csv", windows(TEST_CSV)), read_as("test.csv", TEST_CSV));
    let jsonl = windows(TEST_JSONL).replace("\\n", "\\r\\n");
    assert_eq!(read_as("test.jsonl", jsonl), read_as("test.jsonl", TEST_JSONL));
}

#[test]
fn columns_may_stand_in_any_order_and_topic_is_optional() {
    let samples = read_as("f.csv", "summary,extra,dialogue,id\ns,x,d,train_1\nt,x,e,train_2\n").unwrap();
    assert_eq!(samples[1].id, "train_2");
    assert_eq!((samples[1].dialogue.as_str(), samples[1].summary(), &samples[1].topic), ("e", "t", &None));
}

#[test]
fn damaged_csv_is_named_by_line_and_field() {
    let header = "id,dialogue,summary,topic\n";
    let of = |rows: &str| csv_message(format!("{header}{rows}"));
    assert!(of("").starts_with("f.csv holds no sample; expected at least one record after the header"));
    assert!(csv_message("").starts_with("f.csv holds no sample"));
    assert_eq!(
        csv_message("id,dialog,summary\na,b,c\n"),
        "f.csv, line 1: no column named \"dialogue\"; found id, dialog, summary"
    );
    assert!(csv_message("id,dialogue,summary,id\n").starts_with("f.csv, line 1: more than one column is named \"id\""));
    assert!(of("a,\"d\nd\",s,t\nb,d,s\n").starts_with("f.csv, line 4: expected 4 fields as in the header, found 3;"));
    assert!(of("a,d,s,t\nb,\"d,s,t\n\n").starts_with("f.csv, line 3: the quotation mark opened on line 3 is never"));
    assert!(of("a,d,\"s\" x,t\n").starts_with("f.csv, line 2: stray quotation mark in field 3 on line 2;"));
    assert!(of("a,\" \n\",s,t\n").starts_with("f.csv, line 2: \"dialogue\" is blank;"));
    assert!(of("a,d,,t\n").starts_with("f.csv, line 2: \"summary\" is blank;"));
    assert!(of(",d,s,t\n").starts_with("f.csv, line 2: \"id\" is blank;"));
    assert!(of("a,d,s,t\na,e,s,t\n").starts_with("f.csv, line 3: the id \"a\" is already that of line 2;"));
    assert!(of("a_1_1,d,s,t\na_1_2,e,s,t\n").starts_with("f.csv, line 3: \"a_1_2\" is numbered as a reference to"));
    assert!(csv_message([header.as_bytes(), b"a,\"d\n\xE9\",s,t\n"].concat()).starts_with("f.csv, line 3: byte 1 of"));
}

#[test]
fn damaged_jsonl_is_named_by_line_and_field() {
    let good = r#"{"fname":"a","dialogue":"d","summary":"s"}"#;
    let second = |line: &str| jsonl_message(format!("{good}\n{line}\n"));
    assert!(jsonl_message("\n\n").starts_with("f.jsonl holds no sample; expected at least one record"));
    assert!(second("\"text\"").starts_with("f.jsonl, line 2: expected an object, found a string;"));
    assert!(second("{\"fname\":").starts_with("f.jsonl, line 2: not JSON at column 9: EOF while parsing a value;"));
    assert!(second(r#"{"fname":"b","dialogue":"d"}"#).starts_with("f.jsonl, line 2: no field \"summary\"; found dial"));
    let number = r#"{"fname":"b","dialogue":"d","summary":["s"]}"#;
    assert!(second(number).starts_with("f.jsonl, line 2: field \"summary\" must be a string, found an array;"));
    let blank = r#"{"fname":"b","dialogue":"d","summary1":"s","summary2":"\n"}"#;
    assert!(second(blank).starts_with("f.jsonl, line 2: \"summary2\" is blank;"));
    assert!(second(good).starts_with("f.jsonl, line 2: the id \"a\" is already that of line 1;"));
    assert!(jsonl_message(b"{\"\xFF\":1}").starts_with("f.jsonl, line 1: byte 3 of the line is not UTF-8;"));
}

#[test]
fn a_record_of_17_mib_is_refused() {
    let huge = format!("id,dialogue,summary\na,{},s\n", "x".repeat(17 << 20));
    assert!(csv_message(huge).starts_with("f.csv, line 2: the record that starts here is longer than 16777216 bytes;"));
}

#[test]
fn a_directory_is_searched_for_known_names() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    let message = DialogSum::open(directory.path()).unwrap_err().to_string();
    assert!(message.contains("looked for train.csv, dialogsum_train.csv, dialogsum.train.jsonl, val"), "{message}");

    write("dialogsum_test.csv", TEST_CSV);
    write("dialogsum.dev.jsonl", TEST_JSONL);
    write("notes.csv", "not ours");
    let splits = DialogSum::open(directory.path()).unwrap();
    assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (0, 2, 2));

    write("dialogsum.test.jsonl", TEST_JSONL);
    let message = DialogSum::open(directory.path()).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "the test split more than once, as dialogsum_test.csv and dialogsum.test.jsonl; keep one of them"
        )
    );
}

#[test]
fn missing_files_are_named() {
    let missing = Path::new("no/such/directory");
    assert!(matches!(DialogSum::open(missing), Err(DataError::File(FileError::NotFound { path })) if path == missing));
    assert!(matches!(read_csv("no.csv"), Err(DataError::File(FileError::NotFound { .. }))));
    assert!(matches!(read_jsonl("no.jsonl"), Err(DataError::File(FileError::NotFound { .. }))));
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(read_csv(directory.path()), Err(DataError::File(FileError::NotAFile { .. }))));
}
