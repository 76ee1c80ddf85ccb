//! The DialogSum sample in `assets/`. It is not part of the published package: there, these tests have nothing to do.

use std::{collections::HashSet, path::Path};

use sideburn_data::{DialogSum, Sample, Splits};

fn sample() -> Option<Splits> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/dialogsum-sample");
    directory.exists().then(|| DialogSum::open(directory).unwrap())
}

#[test]
fn the_sample_has_its_counts() {
    let Some(splits) = sample() else { return };
    assert_eq!((splits.train.len(), splits.validation.len(), splits.test.len()), (1200, 60, 120));
    assert!(splits.train.iter().chain(&splits.validation).all(|sample| sample.references().len() == 1));
    assert!(splits.test.iter().all(|sample| sample.references().len() == 3), "three people summarised each");
    let all = || splits.train.iter().chain(&splits.validation).chain(&splits.test);
    assert!(all().all(|sample| sample.topic.is_some()));
    assert!(all().all(|sample| sample.dialogue.chars().count() <= 1000));
}

#[test]
fn no_dialogue_is_in_two_splits() {
    let Some(splits) = sample() else { return };
    let plain = |sample: &Sample| sample.dialogue.to_lowercase().split_whitespace().collect::<String>();
    let all: Vec<String> = [&splits.train, &splits.validation, &splits.test].into_iter().flatten().map(plain).collect();
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
}
