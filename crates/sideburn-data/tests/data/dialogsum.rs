//! Reading DialogSum's layouts, on small made-up files.

use std::{fs, path::Path};

use sideburn_data::{DataError, Dataset, Example, Split, parse_csv, parse_jsonl, read_examples};
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

/// The examples in a file of this name, or the message.
fn read_as(name: &str, text: impl AsRef<[u8]>) -> Result<Vec<Example>, String> {
    let (path, text, columns) = (Path::new(name), text.as_ref(), &Dataset::dialogsum().columns);
    let read = if name.ends_with(".csv") { parse_csv(path, text, columns) } else { parse_jsonl(path, text, columns) };
    read.map(|loaded| loaded.examples).map_err(|error| error.to_string())
}

fn csv_message(text: impl AsRef<[u8]>) -> String {
    read_as("f.csv", text).unwrap_err()
}

fn jsonl_message(text: impl AsRef<[u8]>) -> String {
    read_as("f.jsonl", text).unwrap_err()
}

#[test]
fn rows_of_one_dialogue_become_one_example() {
    let examples = read_as("test.csv", TEST_CSV).unwrap();
    assert_eq!(examples.len(), 2, "four rows, two dialogues");
    assert_eq!(examples[0].id, "test_0");
    assert_eq!(examples[0].field("dialogue"), Some("#Person1#: Is it \"late\"?\n#Person2#: Yes, very."));
    assert_eq!(examples[0].targets, ["It is late.", "They agree, it is late.", "Late."]);
    assert_eq!(examples[0].field("topic"), Some("time"));
    assert_eq!((examples[1].id.as_str(), examples[1].targets.len()), ("test_1", 1));
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
    let examples = read_as("f.csv", "summary,extra,dialogue,id\ns,x,d,train_1\nt,x,e,train_2\n").unwrap();
    assert_eq!((examples[1].id.as_str(), examples[1].field("dialogue")), ("train_2", Some("e")));
    assert_eq!((examples[1].targets[0].as_str(), examples[1].field("topic")), ("t", None));
}

#[test]
fn damaged_csv_is_named_by_line_and_field() {
    let header = "id,dialogue,summary,topic\n";
    let of = |rows: &str| csv_message(format!("{header}{rows}"));
    assert!(of("").starts_with("f.csv holds no example; expected at least one record after the header"));
    assert!(csv_message("").starts_with("f.csv holds no example"));
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
    assert!(jsonl_message("\n\n").starts_with("f.jsonl holds no example; expected at least one record"));
    assert!(second("\"text\"").starts_with("f.jsonl, line 2: expected an object, found a string;"));
    assert!(second("{\"fname\":").starts_with("f.jsonl, line 2: not JSON at column 9: EOF while parsing a value;"));
    assert!(second(r#"{"fname":"b","dialogue":"d"}"#).starts_with("f.jsonl, line 2: no field \"summary\"; found dial"));
    let number = r#"{"fname":"b","dialogue":"d","summary":7}"#;
    assert!(
        second(number).starts_with("f.jsonl, line 2: \"summary\" must be a string, found a number; put it in quot")
    );
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

/// A file of 2 GiB whose text never ends: no more of it is read than a record may have.
#[test]
fn two_gib_on_one_line_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (name, start) in
        [("lines.jsonl", "{\"id\": \"a"), ("array.json", "[{\"id\": \"a\"}, {\"id\": \"b"), ("f.csv", "id")]
    {
        let path = directory.path().join(name);
        fs::write(&path, start).unwrap();
        // The rest takes no room on the disk.
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2 << 30).unwrap();
        let columns = sideburn_data::Columns { lenient: true, ..Dataset::dialogsum().columns };
        let error = read_examples(&path, &columns).unwrap_err();
        assert!(matches!(&error, DataError::RecordTooLong { at, limit: 16_777_216 } if at.number == 1), "{error}");
    }
}

#[test]
fn a_directory_is_searched_for_known_names() {
    let (directory, dialogsum) = (tempfile::tempdir().unwrap(), Dataset::dialogsum());
    let directory = directory.path();
    let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
    let message = |split| dialogsum.read(directory, split).unwrap_err().to_string();
    assert!(message(Split::Test).ends_with(
        "holds no test split of DialogSum: looked for test.*, dialogsum_test.*, dialogsum-test.*, dialogsum.test.* (* is csv, \
         tsv, json, jsonl, ndjson or parquet); rename the file, or give another directory"
    ));

    write("dialogsum_test.csv", TEST_CSV);
    write("dialogsum.dev.jsonl", TEST_JSONL);
    write("notes.csv", "not ours");
    let len = |split| dialogsum.read(directory, split).unwrap().examples.len();
    assert_eq!((len(Split::Validation), len(Split::Test)), (2, 2));
    assert!(message(Split::Train).contains("holds no train split"));

    write("dialogsum.test.jsonl", TEST_JSONL);
    assert!(message(Split::Test).ends_with(
        "the test split of DialogSum more than once, as dialogsum.test.jsonl and dialogsum_test.csv; keep one of them"
    ));
    write("train.csv", "id,dialogue,summary\n");
    assert!(
        message(Split::Train).ends_with("train.csv holds no example; expected at least one record after the header")
    );
}

#[test]
fn missing_files_are_named() {
    let (missing, dialogsum) = (Path::new("no/such/directory"), Dataset::dialogsum());
    let not_found = |error: DataError, named: &Path| {
        assert!(matches!(&error, DataError::File(FileError::NotFound { path }) if path == named), "{error}");
    };
    not_found(dialogsum.read(missing, Split::Test).unwrap_err(), missing);
    not_found(read_examples("no.csv", &dialogsum.columns).unwrap_err(), Path::new("no.csv"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("train.csv");
    fs::create_dir(&path).unwrap();
    let read = read_examples(path, &dialogsum.columns);
    assert!(matches!(read, Err(DataError::File(FileError::NotAFile { .. }))));
}
