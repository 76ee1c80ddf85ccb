//! Equality with Python's `rouge_score` 0.1.2 and NLTK's stemmer, from the goldens in `testdata/`.

mod random_pairs;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use sideburn_rouge::{Metric, RougeScorer, Score, Scores, tokenize};

const TOLERANCE: f64 = 1e-9;
const MODES: [(&str, bool); 2] = [("nostem", false), ("stem", true)];

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn numbers(score: &Score) -> [f64; 3] {
    [score.precision, score.recall, score.fmeasure]
}

fn assert_close(found: [f64; 3], expected: [f64; 3], tolerance: f64, what: impl std::fmt::Display) {
    let close = found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() <= tolerance);
    assert!(close, "{what}: found {found:?}, expected {expected:?}");
}

fn assert_scores(found: &Scores, expected: &[[f64; 3]; 4], what: impl std::fmt::Display) {
    for ((metric, score), expected) in found.iter().zip(expected) {
        assert_close(numbers(score), *expected, TOLERANCE, format_args!("{what}, {metric}"));
    }
}

#[derive(Deserialize)]
struct Dialogue {
    references: Vec<String>,
    prediction: String,
    nostem: [[f64; 3]; 4],
    stem: [[f64; 3]; 4],
}

fn dialogues() -> Vec<Dialogue> {
    let lines = read(&testdata("dialogues.jsonl"));
    lines.lines().map(|line| serde_json::from_str(line).expect("a line of dialogues.jsonl")).collect()
}

fn score_dialogues(dialogues: &[Dialogue], stemmer: bool) -> Vec<Scores> {
    let references: Vec<&[String]> = dialogues.iter().map(|dialogue| dialogue.references.as_slice()).collect();
    let predictions: Vec<&str> = dialogues.iter().map(|dialogue| dialogue.prediction.as_str()).collect();
    RougeScorer::all().with_stemmer(stemmer).score_corpus(&references, &predictions).expect("references for each")
}

#[test]
fn ten_thousand_random_pairs() {
    const METRICS: [(Metric, usize); 5] =
        [(Metric::Rouge1, 1), (Metric::Rouge2, 2), (Metric::Rouge3, 3), (Metric::RougeL, 1), (Metric::RougeLsum, 1)];
    let pieces: random_pairs::Pieces = serde_json::from_str(&read(&testdata("atoms.json"))).expect("atoms.json");
    let records = std::fs::read(testdata("random_pairs.bin")).expect("random_pairs.bin");
    let (records, rest) = records.as_chunks::<12>();
    assert_eq!((records.len(), rest.len()), (10_000, 0));

    let (references, predictions): (Vec<_>, Vec<_>) = (0..records.len() as u64).map(|index| pieces.pair(index)).unzip();
    for (mode, (_, stemmer)) in MODES.into_iter().enumerate() {
        let scorer = RougeScorer::new(&METRICS.map(|(metric, _)| metric)).with_stemmer(stemmer);
        let all = scorer.score_pairs(&references, &predictions).expect("lists of one length");
        for (index, (scores, record)) in all.iter().zip(records).enumerate() {
            let [of_reference, of_prediction] = [0, 1].map(|at| usize::from(record[at]));
            for (place, (metric, n)) in METRICS.into_iter().enumerate() {
                let hits = f64::from(record[2 + 5 * mode + place]);
                let units = |words: usize| (words + 1).saturating_sub(n).max(1) as f64;
                let (precision, recall) = (hits / units(of_prediction), hits / units(of_reference));
                let fmeasure = if hits > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
                let what = format_args!("pair {index}, {metric}, stemmer {stemmer}");
                assert_close(numbers(&scores[metric]), [precision, recall, fmeasure], TOLERANCE, what);
            }
            assert_eq!(tokenize(&references[index], stemmer).len(), of_reference, "words of pair {index}");
        }
    }
}

#[test]
fn dialogue_summaries_with_several_references() {
    let dialogues = dialogues();
    assert_eq!(dialogues.len(), 200);
    for stemmer in [false, true] {
        for (index, (dialogue, scores)) in dialogues.iter().zip(score_dialogues(&dialogues, stemmer)).enumerate() {
            let expected = if stemmer { &dialogue.stem } else { &dialogue.nostem };
            assert_scores(&scores, expected, format_args!("dialogue {index}, stemmer {stemmer}"));
            // One at a time gives the same, to the last digit.
            let scorer = RougeScorer::all().with_stemmer(stemmer);
            assert_eq!(scorer.score_multi(&dialogue.references, &dialogue.prediction), Ok(scores));
        }
    }
}

#[test]
fn texts_of_the_tests_of_rouge_score() {
    let (target, prediction) = (read(&testdata("google/target.txt")), read(&testdata("google/prediction.txt")));
    let expected: Value = serde_json::from_str(&read(&testdata("google.json"))).expect("google.json");
    for (mode, stemmer) in MODES {
        let expected = serde_json::from_value(expected[mode].clone()).expect("four scores");
        assert_scores(&RougeScorer::all().with_stemmer(stemmer).score(&target, &prediction).unwrap(), &expected, mode);
    }
}

#[test]
fn stems_of_nltk() {
    let stems = read(&testdata("stems.txt"));
    assert!(stems.lines().count() > 2000);
    for line in stems.lines() {
        let (word, stem) = line.split_once(' ').expect("a word and its stem");
        assert_eq!(tokenize(word, true), [stem], "stem of {word}");
    }
}

/// DialogSum may not be redistributed under this project's licence; its goldens lie outside of the repository.
#[test]
fn dialogsum_if_at_hand() {
    let Some(shared) = std::env::var_os("SIDEBURN_TEST_DATA") else {
        report("skipped: SIDEBURN_TEST_DATA does not name a directory with data/rouge");
        return;
    };
    let file = Path::new(&shared).join("data/rouge/golden_dialogsum_rouge_score_0.1.2.jsonl");
    let lines = read(&file);
    assert_eq!(lines.lines().count(), 200);
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let text = |name: &str| line[name].as_str().expect("a text");
        for (mode, stemmer) in MODES {
            let scores = RougeScorer::all().with_stemmer(stemmer).score(text("target"), text("prediction")).unwrap();
            let expected = Metric::STANDARD
                .map(|metric| <[f64; 3]>::deserialize(&line[mode][metric.name()]).expect("precision, recall, F"));
            assert_scores(&scores, &expected, text("id"));
        }
    }
}

#[allow(clippy::print_stderr)]
fn report(message: &str) {
    eprintln!("{message}");
}
