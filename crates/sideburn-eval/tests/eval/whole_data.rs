//! The whole test set of DialogSum against Python's `rouge_score` 0.1.2. Its licence keeps it out of the repository:
//! the test runs when `SIDEBURN_TEST_DATA` names a directory that holds `data/dialogsum/official`. The scores are in
//! `sideburn-rouge/testdata`.

use std::path::{Path, PathBuf};

use sideburn_data::{Dataset, Split};
use sideburn_rouge::{Metric, RougeScorer};

#[test]
fn dialogsum_is_scored_as_rouge_score_scores_it() {
    let Some(data) = std::env::var_os("SIDEBURN_TEST_DATA").map(PathBuf::from) else {
        println!("skipped: SIDEBURN_TEST_DATA does not name the directory of the whole data");
        return;
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sideburn-rouge/testdata/dialogsum_test.bin");
    let golden = std::fs::read(golden).unwrap();
    let mut golden = golden.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()));
    let test = Dataset::dialogsum().read(data.join("data/dialogsum/official"), Split::Test).unwrap().examples;
    let first_turns = |dialogue: &str| dialogue.split('\n').take(2).collect::<Vec<_>>().join("\n");
    let predictions: Vec<String> = test.iter().map(|example| first_turns(&example.fields["dialogue"])).collect();
    let references: Vec<&[String]> = test.iter().map(|example| example.targets.as_slice()).collect();
    let begin = std::time::Instant::now();
    let scores = RougeScorer::all().with_stemmer(true).score_corpus(&references, &predictions).unwrap();
    println!("{} dialogues x 3 references: {:?}", test.len(), begin.elapsed());
    for (example, scores) in test.iter().zip(&scores) {
        for metric in Metric::STANDARD {
            let score = scores[metric];
            for found in [score.precision, score.recall, score.fmeasure] {
                let expected = golden.next().unwrap();
                assert!(
                    (found - expected).abs() < 1e-9,
                    "{}, {metric}: found {found}, expected {expected}",
                    example.id
                );
            }
        }
    }
    assert_eq!((test.len(), golden.next()), (500, None));
}
