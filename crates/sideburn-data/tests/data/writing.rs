//! What is written is read again.

use proptest::prelude::*;
use sideburn_data::{
    Columns, DataError, Dataset, Example, Fields, Split, read_examples, split_examples, write_examples,
};

fn columns() -> Columns {
    Columns { optional: vec!["topic".into()], ..Columns::new(["dialogue"], "summary") }
}

/// Texts that a form could stumble over; none of them blank.
fn text() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a",
        "ü",
        "\"",
        "\"\"",
        ",",
        ";",
        "\t",
        "\n",
        "\\n",
        "\\",
        "\\N",
        "'",
        "{'x'",
        "[",
        "<b>",
        " ",
        "\u{feff}",
        "\u{202e}",
        "\u{1f600}",
        "null",
        "NA",
    ]);
    (prop::collection::vec(part, 0..8), 0usize..3).prop_map(|(parts, at)| {
        let mut parts = parts;
        parts.insert(at.min(parts.len()), "x");
        parts.concat()
    })
}

fn examples() -> impl Strategy<Value = Vec<Example>> {
    let example = (text(), prop::option::of(text()), prop::collection::btree_set(text(), 1..4));
    prop::collection::vec(example, 1..6).prop_map(|examples| {
        let made = examples.into_iter().enumerate().map(|(at, (dialogue, topic, targets))| {
            let mut fields = Fields::from([("dialogue".to_owned(), dialogue)]);
            fields.extend(topic.map(|topic| ("topic".to_owned(), topic)));
            Example { id: format!("{at}"), fields, targets: targets.into_iter().collect() }
        });
        made.collect()
    })
}

const FORMS: &[&str] = &[
    "csv",
    "tsv",
    "json",
    "jsonl",
    "ndjson",
    #[cfg(feature = "parquet")]
    "parquet",
];

proptest! {
    #[test]
    fn examples_come_back_from_every_form(examples in examples()) {
        let directory = tempfile::tempdir().unwrap();
        for form in FORMS {
            let path = directory.path().join(format!("file.{form}"));
            write_examples(&path, &examples, "summary").unwrap();
            prop_assert_eq!(&read_examples(&path, &columns()).unwrap().examples, &examples, "{}", form);
        }
    }

    #[test]
    fn no_dialogue_is_in_two_parts(sources in prop::collection::vec(0usize..30, 12..60), seed: u64) {
        let spelt = |at: usize, source: &usize| if at.is_multiple_of(2) { format!("A: line {source}") } else { format!("a:  LINE {source}\n") };
        let example = |(at, source): (usize, &usize)| Example {
            id: at.to_string(),
            fields: Fields::from([("dialogue".to_owned(), spelt(at, source))]),
            targets: vec!["x".to_owned()],
        };
        let all: Vec<Example> = sources.iter().enumerate().map(example).collect();
        let Ok(parts) = split_examples(all.clone(), &[0.6, 0.2, 0.2], seed) else { return Ok(()) };
        let of = |part: &[Example]| part.iter().map(|example| sources[example.id.parse::<usize>().unwrap()]).collect::<std::collections::BTreeSet<_>>();
        let [train, validation, test] = [0, 1, 2].map(|part| of(&parts[part]));
        prop_assert!(train.is_disjoint(&validation) && train.is_disjoint(&test) && validation.is_disjoint(&test));
        prop_assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), all.len());
        prop_assert!(parts.iter().all(|part| part.windows(2).all(|pair| pair[0].id.parse::<usize>().unwrap() < pair[1].id.parse::<usize>().unwrap())));
        prop_assert_eq!(split_examples(all, &[0.6, 0.2, 0.2], seed).unwrap(), parts);
    }
}

#[test]
fn the_sample_comes_back_from_every_form() {
    let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/dialogsum-sample");
    let directory = tempfile::tempdir().unwrap();
    let dialogsum = Dataset::dialogsum();
    for split in [Split::Train, Split::Validation, Split::Test] {
        let examples = dialogsum.read(&sample, split).unwrap().examples;
        for form in FORMS {
            let path = directory.path().join(format!("file.{form}"));
            write_examples(&path, &examples, "summary").unwrap();
            assert_eq!(read_examples(&path, &dialogsum.columns).unwrap().examples, examples, "{split}, {form}");
        }
    }
}

#[test]
fn parts_have_the_sizes_they_were_asked_for() {
    let example = |at: usize| Example {
        id: at.to_string(),
        fields: Fields::from([("dialogue".to_owned(), format!("A: {at}"))]),
        targets: vec!["x".to_owned()],
    };
    let all: Vec<Example> = (0..1000).map(example).collect();
    let sizes = |fractions: &[f64], seed| {
        let parts = split_examples(all.clone(), fractions, seed).unwrap();
        parts.iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&[0.8, 0.1, 0.1], 1), [800, 100, 100]);
    assert_eq!(sizes(&[0.333, 0.2], 1), [333, 200], "the rest is left out");
    let of = |seed| split_examples(all.clone(), &[0.5], seed).unwrap();
    assert_ne!(of(1), of(2));
}

#[test]
fn what_cannot_be_written_or_split_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let example = |id: &str, targets: &[&str]| Example {
        id: id.to_owned(),
        fields: Fields::from([("dialogue".to_owned(), "A: hi".to_owned())]),
        targets: targets.iter().map(|target| (*target).to_owned()).collect(),
    };
    let examples = [example("a", &["x", "x"]), example("b", &["y"])];
    let error = write_examples(directory.path().join("f.csv"), &examples, "summary").unwrap_err();
    assert!(
        error.to_string().starts_with("example \"a\" has the same reference twice, and not all examples"),
        "{error}"
    );
    assert!(!directory.path().join("f.csv").exists());
    write_examples(directory.path().join("f.jsonl"), &examples, "summary").unwrap();
    let error = write_examples(directory.path().join("f.txt"), &examples, "summary").unwrap_err();
    assert!(matches!(error, DataError::UnknownFormat { .. }), "{error}");
    #[cfg(not(feature = "parquet"))]
    assert!(matches!(
        write_examples(directory.path().join("f.parquet"), &examples, "summary"),
        Err(DataError::NotBuilt { feature: "parquet", .. })
    ));
    for (fractions, said) in [
        (&[][..], "parts of : give numbers above 0"),
        (&[0.5, 0.0], "parts of 0.5, 0: give numbers above 0"),
        (&[0.5, 0.6], "at most 1 together"),
        (&[f64::NAN], "give numbers above 0"),
        (&[0.5, 0.5], "2 examples with 1 dialogues leave none for part 2"),
    ] {
        let message = split_examples(examples.to_vec(), fractions, 1).unwrap_err().to_string();
        assert!(message.contains(said), "{message}");
    }
}
