//! Parquet files and 7z archives; `testdata/make_containers.py` made them.

#![cfg(any(feature = "parquet", feature = "7z"))]

use std::{fs, path::PathBuf};

use sideburn_data::{DataError, Dataset, Split};

fn containers() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/containers")
}

#[cfg(feature = "parquet")]
mod parquet {
    use proptest::prelude::*;
    use sideburn_data::{Columns, read_examples};

    use super::*;

    fn message(file: &str, columns: &Columns) -> String {
        read_examples(containers().join(file), columns).unwrap_err().to_string()
    }

    #[test]
    fn a_split_in_parts_is_read_as_one() {
        let test = Dataset::dialogsum().read(containers(), Split::Test).unwrap();
        assert_eq!(test.to_string(), "9 records, 3 examples, 0 skipped");
        assert_eq!((test.examples[1].id.as_str(), test.examples[2].field("topic")), ("test_1", Some("hi")));
        assert_eq!(test.examples[2].targets, ["Greeting 2, 1.", "Greeting 2, 2.", "Greeting 2, 3."]);
        assert_eq!(test.examples[0].field("dialogue"), Some("#Person1#: Hello 0.\n#Person2#: Ünd you?"));

        let directory = tempfile::tempdir().unwrap();
        let part = "test-00001-of-00002.parquet";
        fs::copy(containers().join(part), directory.path().join(part)).unwrap();
        let one = Dataset::dialogsum().read(&directory, Split::Test).unwrap();
        assert_eq!(one.examples.len(), 1, "the part that was fetched");
        fs::write(directory.path().join("test.csv"), "id,dialogue,summary\na,d,s\n").unwrap();
        let message = Dataset::dialogsum().read(&directory, Split::Test).unwrap_err().to_string();
        assert!(message.contains("more than once, as test-00001-of-00002.parquet and test.csv;"), "{message}");
    }

    #[test]
    fn lists_are_references_and_numbers_are_ids() {
        let columns: Columns = "dialogue=text,summary=gists,id=index".parse().unwrap();
        let examples = read_examples(containers().join("lists.parquet"), &columns).unwrap().examples;
        assert_eq!((examples[0].id.as_str(), examples[1].field("dialogue")), ("7", Some("B: No.")));
        assert_eq!((examples[0].targets.len(), examples[1].targets.as_slice()), (2, ["No.".to_owned()].as_slice()));
    }

    #[test]
    fn what_does_not_fit_is_placed() {
        let columns = Dataset::samsum().columns;
        let said = message("numbers.parquet", &columns);
        assert!(
            said.ends_with(
                "numbers.parquet, row 1: \"summary\" must be a string, found a number; put it in quotation marks"
            ),
            "{said}"
        );
        let said = message("lists.parquet", &columns);
        assert!(said.contains("no column named \"summary\"; found index, text, gists, topic, turns"), "{said}");
        let said = message("lists.parquet", &"dialogue=turns,summary=text".parse().unwrap());
        assert!(said.ends_with("row 1: \"turns\" must be a string, found an array; join its texts into one, with line breaks between them"), "{said}");
        let said = message("zstd.parquet", &columns);
        assert!(said.contains("zstd.parquet cannot be read: ") && said.contains("zstd"), "{said}");
        let error = read_examples(containers().join("bomb.parquet"), &columns).unwrap_err();
        assert!(matches!(error, DataError::Bomb { .. }), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damage_is_an_error_or_harmless(at in 0usize..1403, byte: u8, cut in 0usize..1403) {
            let mut bytes = fs::read(containers().join("test-00001-of-00002.parquet")).unwrap();
            bytes[at] = byte;
            let directory = tempfile::tempdir().unwrap();
            let (damaged, short) = (directory.path().join("damaged.parquet"), directory.path().join("short.parquet"));
            fs::write(&damaged, &bytes).unwrap();
            fs::write(&short, &bytes[..cut]).unwrap();
            let columns = Dataset::dialogsum().columns;
            let _ = read_examples(damaged, &columns);
            prop_assert!(read_examples(short, &columns).is_err());
        }
    }
}

#[cfg(feature = "7z")]
mod archives {
    use super::*;

    #[test]
    fn samsum_is_read_as_it_was_published() {
        let (directory, samsum) = (tempfile::tempdir().unwrap(), Dataset::samsum());
        let archive = directory.path().join("corpus.7z");
        fs::copy(containers().join("corpus.7z"), &archive).unwrap();
        for place in [directory.path(), &archive] {
            let train = samsum.read(place, Split::Train).unwrap();
            assert_eq!((train.rows, train.examples.len()), (2, 1));
            assert!(
                train.skipped[0]
                    .to_string()
                    .ends_with("corpus.7z/train.json, line 1: \"13828807\" has an empty dialogue, a known fault of the published data"),
                "{train}"
            );
            assert_eq!(train.examples[0].field("dialogue"), Some("Ann: I bake.\nBob: Nice!"));
            assert_eq!(samsum.read(place, Split::Validation).unwrap().rows, 1);
        }
        let text = "[{\"id\": \"9\", \"summary\": \"s\", \"dialogue\": \"d\"}]";
        fs::write(directory.path().join("train.json"), text).unwrap();
        assert_eq!(samsum.read(&directory, Split::Train).unwrap().examples[0].id, "9", "what was unpacked comes first");
    }

    #[test]
    fn archives_that_are_not_to_be_trusted_are_refused() {
        let read = |name: &str| Dataset::samsum().read(containers().join(name), Split::Train).unwrap_err();
        for (name, member) in [("parent.7z", "../train.json"), ("absolute.7z", "//train.json")] {
            let error = read(name);
            assert!(matches!(&error, DataError::UnsafeName { name, .. } if name == member), "{error}");
        }
        let error = read("bomb.7z");
        assert!(matches!(error, DataError::Bomb { limit: 1_048_576, .. }), "{error}");
    }

    #[test]
    fn damage_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("corpus.7z");
        let good = fs::read(containers().join("corpus.7z")).unwrap();
        let read = || Dataset::samsum().read(&path, Split::Train);
        for cut in (0..good.len()).step_by(7) {
            fs::write(&path, &good[..cut]).unwrap();
            assert!(read().is_err(), "{cut} bytes");
        }
        for at in (0..good.len()).step_by(3) {
            let mut bytes = good.clone();
            bytes[at] ^= 0x55;
            fs::write(&path, &bytes).unwrap();
            // The fields that no checksum covers may be anything.
            if let Ok(train) = read() {
                assert_eq!(train.examples[0].targets, ["Ann bakes."], "byte {at}");
            }
        }
    }
}
