//! Files of one's own, and what can be wrong with them: columns by name, strict and lenient readings.

use std::{
    fs,
    io::{BufReader, Read},
    path::Path,
};

use sideburn_data::{Columns, DataError, Dataset, parse_csv, parse_jsonl, read_examples};

fn columns(text: &str) -> Columns {
    text.parse().unwrap()
}

#[test]
fn columns_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str, named: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        read_examples(path, &columns(named)).map(|loaded| loaded.examples).map_err(|error| error.to_string())
    };
    // As pandas writes its index; a byte order mark before it.
    let rows = "\u{feff},text,target,source\r\n0,A: Hi.,Hi,web\n1,B: Ho.,Ho,web\r\n";
    let named = "dialogue=text,summary=target";
    let examples = read("a.csv", rows, named).unwrap();
    assert_eq!((examples[1].id.as_str(), examples[1].field("dialogue")), ("1", Some("B: Ho.")));
    assert_eq!(read("b.tsv", &rows.replace(',', "\t"), named).unwrap(), examples);
    let lines =
        "{\"text\": \"A: Hi.\", \"target\": \"Hi\"}\n\n{\"target\": \"Ho\", \"text\": \"B: Ho.\", \"more\": {}}";
    for name in ["c.json", "c.jsonl", "C.NDJSON"] {
        assert_eq!(read(name, lines, named).unwrap(), examples);
    }
    let array = format!("[{}]", lines.replace("\n\n", ","));
    assert_eq!(read("d.json", &array, named).unwrap(), examples);

    let references = "{\"index\": 4, \"text\": \"d\", \"target\": [\"s\", \"t\"]}\n{\"index\": 4, \"text\": \"d\", \"target\": \"u\"}";
    let examples = read("e.jsonl", references, "id=index, dialogue=text, target").unwrap();
    assert_eq!((examples[0].id.as_str(), examples.len(), examples[0].targets.len()), ("4", 1, 3));

    let message = read("f.csv", rows, "dialogue=text,summary=target,id=index").unwrap_err();
    assert!(
        message.contains("no column named \"index\"; found , text, target, source"),
        "an id that is named must be there: {message}"
    );
    let message = read("g.txt", rows, named).unwrap_err();
    assert!(message.contains("g.txt is not read by its name; give it the ending of what it is: .csv"), "{message}");
}

#[test]
fn descriptions_of_columns_are_checked() {
    for (text, said) in [
        ("", "\"\" lacks a name"),
        ("dialogue=", "\"dialogue=\" lacks a name"),
        ("dialogue,summary,dialogue=x", "dialogue is there twice"),
        ("dialogue,summary,target=x", "target is there twice"),
        ("id=a,id=b,dialogue,summary", "id is there twice"),
        ("dialogue", "none of them is the summary"),
        ("summary,id", "none of them is a text that the prompt is made of"),
    ] {
        let message = text.parse::<Columns>().unwrap_err().to_string();
        assert!(
            message.contains(said) && message.contains("such as dialogue=text,summary=target,id=index"),
            "{message}"
        );
    }
    let question = columns("context=passage,question,target=answer");
    assert_eq!(
        (question.required.as_slice(), question.target.as_str()),
        (["context", "question"].map(String::from).as_slice(), "answer")
    );
}

/// The reasons of a lenient reading, and how many examples it has.
fn lenient(name: &str, text: impl AsRef<[u8]>) -> (usize, usize, Vec<String>) {
    let columns = Columns { lenient: true, ..Columns::new(["dialogue"], "summary") };
    let (path, text) = (Path::new(name), text.as_ref());
    let read = if name.ends_with(".csv") { parse_csv(path, text, &columns) } else { parse_jsonl(path, text, &columns) };
    let loaded = read.unwrap();
    (loaded.rows, loaded.examples.len(), loaded.skipped.iter().map(ToString::to_string).collect())
}

#[test]
fn a_lenient_reading_skips_records_and_says_why() {
    let (rows, examples, skipped) =
        lenient("f.csv", "id,dialogue,summary\na,d,s\nb,d\nc,,s\na,e,s\nd,d,s\ne,\"x\0\",s\n");
    assert_eq!((rows, examples), (6, 2));
    let said = [
        "f.csv, line 3: expected 3 fields as in the header, found 2;",
        "f.csv, line 4: \"dialogue\" is blank;",
        "f.csv, line 5: the id \"a\" is already that of line 2;",
        "f.csv, line 7: \"dialogue\" holds a NUL character,",
    ];
    assert!(
        skipped.len() == 4 && skipped.iter().zip(said).all(|(reason, said)| reason.starts_with(said)),
        "{skipped:#?}"
    );

    let lines = [
        b"{\"summary\": \"the first has no id\"}\n{'id': 'b'}\n[1]\n{\"id\": \"\xFF\"}\n".as_slice(),
        b"{\"id\": \"c\", \"dialogue\": \"\\ud800\", \"summary\": \"s\"}\n{\"id\": \"d\", \"dialogue\": 1, \"summary\": \"s\"}\n",
        b"{\"id\": \"e\", \"dialogue\": \"d\", \"summary\": \"s\"}\n{\"dialogue\": \"d\", \"summary\": \"s\"}\n",
    ]
    .concat();
    let (rows, examples, skipped) = lenient("f.jsonl", lines);
    assert_eq!((rows, examples), (8, 1));
    let said = [
        "line 1: no field \"dialogue\"; found summary",
        "line 2: a Python dictionary, not JSON",
        "line 3: not JSON",
        "line 4: byte 9 of the line is not UTF-8;",
        "line 5: not JSON at column 32: unexpected end of hex escape",
        "line 6: \"dialogue\" must be a string, found a number;",
        "line 8: no field \"id\"; found",
    ];
    for (reason, said) in skipped.iter().zip(said) {
        assert!(reason.starts_with(&format!("f.jsonl, {said}")) || said == "line 3: not JSON", "{reason}");
    }
    assert_eq!(skipped.len(), said.len(), "{skipped:#?}");

    let (rows, examples, skipped) =
        lenient("f.json", "[{\"id\": \"a\"}, {\"id\": \"b\", \"dialogue\": \"d\", \"summary\": \"s\"}]");
    assert_eq!((rows, examples, skipped.len()), (2, 1, 1));

    let columns = Columns { lenient: true, ..Columns::new(["dialogue"], "summary") };
    let message = parse_csv(Path::new("f.csv"), b"id,dialogue,summary\na,,s\nb,,s\n".as_slice(), &columns).unwrap_err();
    assert_eq!(
        message.to_string(),
        "all 2 records of f.csv were skipped; the first, f.csv, line 2: \"dialogue\" is blank; remove the record or fill it in"
    );
    // Where records begin is doubtful.
    for damage in ["id,dialogue,summary\na,d,s\nb,\"d\"x,s\n", "id,dialogue,summary\na,d,s\nb,\"d,s\n"] {
        assert!(parse_csv(Path::new("f.csv"), damage.as_bytes(), &columns).is_err());
    }
    assert!(parse_jsonl(Path::new("f.json"), b"[{\"id\": \"a\"}, 3]".as_slice(), &columns).is_err());
}

#[test]
fn nul_surrogates_and_mixed_line_ends() {
    let csv = |text: &[u8]| parse_csv(Path::new("f.csv"), text, &Dataset::samsum().columns);
    let message = csv(b"id,dialogue,summary\na,d\0,s\n").unwrap_err().to_string();
    assert_eq!(
        message,
        "f.csv, line 2: \"dialogue\" holds a NUL character, as damaged files and UTF-16 do; remove it, or convert the file to \
         UTF-8"
    );
    assert!(matches!(csv(b"id,dialogue,summary\na,\xED\xA0\x80,s\n").unwrap_err(), DataError::NotUtf8 { byte: 3, .. }));
    let utf16: Vec<u8> = "\u{feff}id,dialogue".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(matches!(csv(&utf16).unwrap_err(), DataError::NotUtf8 { byte: 1, .. }));
    let mixed = csv(b"id,dialogue,summary\r\na,\"x\r\ny\nz\rw\",s\nb,d,t\r\n").unwrap().examples;
    assert_eq!((mixed[0].field("dialogue"), mixed.len()), (Some("x\ny\nz\nw"), 2));
}

/// Two GiB on one line: what is read of it is bounded by the longest record.
#[test]
fn one_endless_line_is_refused() {
    let columns = Dataset::samsum().columns;
    for (begins, fills) in
        [("{\"id\": \"", b'x'), ("[{\"id\": \"", b'x'), ("id,dialogue,summary\na,", b'x'), ("", b' ')]
    {
        let endless = begins.as_bytes().chain(std::io::repeat(fills).take(2 << 30));
        let reader = BufReader::with_capacity(1 << 16, endless);
        let read = match begins.starts_with("id") {
            true => parse_csv(Path::new("f"), reader, &columns),
            false => parse_jsonl(Path::new("f"), reader, &columns),
        };
        assert!(matches!(read, Err(DataError::RecordTooLong { limit: 16_777_216, .. })), "{begins}: {read:?}");
    }
}
