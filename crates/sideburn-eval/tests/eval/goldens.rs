//! Means and intervals against Python's `rouge_score` 0.1.2, over the made-up dialogues in `sideburn-rouge/testdata`.
//! That is not part of the published package: there, this test has nothing to do.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use sideburn_data::{Example, Fields};
use sideburn_eval::{BootstrapConfig, Evaluation, bootstrap};
use sideburn_rouge::{Metric, RougeScorer};

#[derive(Deserialize)]
struct Dialogue {
    references: Vec<String>,
    prediction: String,
}

/// Three numbers (precision, recall, F-measure) for each of the four metrics.
#[derive(Deserialize)]
struct Expected {
    mean: [f64; 12],
    /// Low, median and high: the formulas of `rouge_score` over our draws.
    intervals: [[f64; 12]; 3],
    intervals_of_rouge_score: [[f64; 12]; 3],
}

fn assert_close(found: f64, expected: f64, tolerance: f64, what: impl std::fmt::Display) {
    assert!((found - expected).abs() <= tolerance, "{what}: found {found}, expected {expected}");
}

#[test]
fn means_and_intervals_are_those_of_rouge_score() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sideburn-rouge/testdata");
    let Ok(file) = std::fs::read_to_string(testdata.join("bootstrap.json")) else { return };
    let file: Value = serde_json::from_str(&file).unwrap();
    let lines = std::fs::read_to_string(testdata.join("dialogues.jsonl")).unwrap();
    let dialogues: Vec<Dialogue> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let config = BootstrapConfig {
        samples: file["samples"].as_u64().unwrap() as usize,
        confidence: file["confidence"].as_f64().unwrap(),
        seed: file["seed"].as_u64().unwrap(),
    };
    let (references, outputs): (Vec<_>, Vec<_>) =
        dialogues.into_iter().map(|dialogue| (dialogue.references, dialogue.prediction)).unzip();
    let example = |(index, targets): (usize, &Vec<String>)| Example {
        id: index.to_string(),
        fields: Fields::new(),
        targets: targets.clone(),
    };
    let examples: Vec<Example> = references.iter().enumerate().map(example).collect();

    for (mode, stemmer) in [("nostem", false), ("stem", true)] {
        let expected = Expected::deserialize(&file[mode]).unwrap();
        let scorer = RougeScorer::all().with_stemmer(stemmer);
        let scores = scorer.score_corpus(&references, &outputs).unwrap();
        let mut evaluation = Evaluation::new(examples.clone(), config);
        let system = evaluation.add("made up", outputs.clone(), &[&scorer]).unwrap();
        for (place, metric) in Metric::STANDARD.into_iter().enumerate() {
            for number in 0..3 {
                let column = scores.iter().map(|scores| {
                    let score = scores[metric];
                    [score.precision, score.recall, score.fmeasure][number]
                });
                let found = bootstrap(&column.collect::<Vec<f64>>(), &config).unwrap();
                let (at, what) = (3 * place + number, format!("{mode}, {metric}, number {number}"));
                assert_close(found.mean, expected.mean[at], 1e-9, &what);
                for (end, found) in [found.low, found.median, found.high].into_iter().enumerate() {
                    assert_close(found, expected.intervals[end][at], 1e-9, format_args!("{what}, end {end}"));
                    // The draws of numpy are others: intervals agree as closely as two of its own runs do.
                    assert_close(
                        found,
                        expected.intervals_of_rouge_score[end][at],
                        0.01,
                        format_args!("numpy, {what}"),
                    );
                }
                if number == 2 {
                    assert_eq!(
                        system.score(metric.name()).unwrap().mean.interval,
                        found,
                        "the F-measure is what counts"
                    );
                }
            }
        }
    }
}
