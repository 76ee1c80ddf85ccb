//! The DialogSum sample in `assets/`. It is not part of the published package: there, these tests have nothing to do.

use std::{collections::HashSet, path::Path};

use sideburn_data::{Dataset, Example, Split};

/// Training, validation and test split.
fn sample() -> Option<[Vec<Example>; 3]> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/dialogsum-sample");
    let read = |split| Dataset::dialogsum().read(&directory, split).unwrap().examples;
    directory.exists().then(|| [Split::Train, Split::Validation, Split::Test].map(read))
}

#[test]
fn the_sample_has_its_counts() {
    let Some(splits) = sample() else { return };
    assert_eq!(splits.each_ref().map(Vec::len), [1200, 60, 120]);
    assert!(splits[..2].iter().flatten().all(|example| example.targets.len() == 1));
    assert!(splits[2].iter().all(|example| example.targets.len() == 3), "three people summarised each");
    let all = || splits.iter().flatten();
    assert!(all().all(|example| example.field("topic").is_some()));
    assert!(all().all(|example| example.fields["dialogue"].chars().count() <= 1000));
}

#[test]
fn no_dialogue_is_in_two_splits() {
    let Some(splits) = sample() else { return };
    let plain = |example: &Example| example.fields["dialogue"].to_lowercase().split_whitespace().collect::<String>();
    let all: Vec<String> = splits.iter().flatten().map(plain).collect();
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
}
