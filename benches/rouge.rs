//! ROUGE over a synthetic test set of the size of DialogSum's: 1,500 pairs of about 25 words.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sideburn_eval::{BootstrapConfig, bootstrap};
use sideburn_rouge::{Metric, RougeScorer};
use std::hint::black_box;

const PAIRS: usize = 1500;

const WORDS: [&str; 32] = [
    "#Person1#",
    "#Person2#",
    "asks",
    "asking",
    "tells",
    "suggests",
    "recommended",
    "complains",
    "the",
    "a",
    "to",
    "of",
    "and",
    "because",
    "traffic",
    "transportation",
    "meeting",
    "meetings",
    "studying",
    "studies",
    "restaurant",
    "happily",
    "organization",
    "interviews",
    "buying",
    "tickets",
    "apartment",
    "Ms. Dawson",
    "hasn't",
    "healthy",
    "friends",
    "children",
];

/// Sentences of pseudo-random words; the prediction repeats parts of the reference.
fn pairs() -> (Vec<String>, Vec<String>) {
    let mut state = 1u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % bound
    };
    (0..PAIRS)
        .map(|_| {
            let reference: Vec<&str> = (0..20 + below(10)).map(|_| WORDS[below(WORDS.len())]).collect();
            let prediction: Vec<&str> =
                reference.iter().map(|word| if below(2) == 0 { *word } else { WORDS[below(WORDS.len())] }).collect();
            (reference.join(" ") + ".", prediction.join(" ") + ".")
        })
        .unzip()
}

fn rouge(criterion: &mut Criterion) {
    let (references, predictions) = pairs();
    let mut group = criterion.benchmark_group("rouge");
    group.throughput(Throughput::Elements(PAIRS as u64));
    for (name, stemmer) in [("score_1500_pairs", false), ("score_1500_pairs_stemmed", true)] {
        let scorer = RougeScorer::all().with_stemmer(stemmer);
        group.bench_function(name, |bencher| {
            bencher
                .iter(|| scorer.score_pairs(black_box(&references), black_box(&predictions)).expect("equal lengths"));
        });
    }
    let scores = RougeScorer::all().score_pairs(&references, &predictions).expect("equal lengths");
    let values: Vec<f64> = scores.iter().map(|scores| scores[Metric::RougeL].fmeasure).collect();
    group.bench_function("bootstrap_1000_of_1500", |bencher| {
        bencher.iter(|| bootstrap(black_box(&values), &BootstrapConfig::default()).expect("values"));
    });
    group.finish();

    // The longest common subsequence of texts that say the same few words again and again.
    let repetitive = |words: &[&str]| words.iter().cycle().take(20_000).copied().collect::<Vec<_>>().join(" ");
    let (reference, prediction) = (repetitive(&["the", "the", "cat"]), repetitive(&["the", "cat", "sat", "the"]));
    let scorer = RougeScorer::all();
    criterion.bench_function("rouge/repetitive_100_kB", |bencher| {
        bencher.iter(|| scorer.score(black_box(&reference), black_box(&prediction)));
    });
}

criterion_group!(benches, rouge);
criterion_main!(benches);
