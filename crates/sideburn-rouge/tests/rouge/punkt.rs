//! Sentences and ROUGE-Lsum over them, against NLTK and `rouge_score` (`testdata/make_punkt.py`).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sideburn_rouge::{Metric, Punkt, RougeScorer};

#[derive(Deserialize)]
struct Golden {
    text: String,
    sentences: Vec<String>,
    #[serde(rename = "rougeLsum")]
    score: [f64; 3],
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn punkt(directory: &Path) -> Punkt {
    let text = |name: &str| read(directory.join(name));
    let [abbreviations, collocations] = ["abbrev_types.txt", "collocations.tab"].map(text);
    let [starters, contexts] = ["sent_starters.txt", "ortho_context.tab"].map(text);
    Punkt::new(&abbreviations, &collocations, &starters, &contexts).unwrap()
}

#[test]
fn sentences_are_those_of_nltk() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/punkt");
    let punkt = punkt(&directory);
    let scorer = RougeScorer::new(&[Metric::RougeLsum]).with_stemmer(true).with_sentences(punkt.clone());
    let lines = read(directory.join("texts.jsonl"));
    let mut before = String::new();
    for (number, line) in lines.lines().enumerate() {
        let Golden { text, sentences, score } = serde_json::from_str(line).unwrap();
        assert_eq!(punkt.sentences(&text), sentences, "line {}: {text:?}", number + 1);
        let found = scorer.score(&before, &text).unwrap()[Metric::RougeLsum];
        for (found, expected) in [found.precision, found.recall, found.fmeasure].into_iter().zip(score) {
            assert!((found - expected).abs() < 1e-12, "line {}: found {found}, expected {expected}", number + 1);
        }
        before = text;
    }
    assert_eq!(lines.lines().count(), 1000);
}

#[test]
fn files_that_are_none_are_refused() {
    let message = |collocations, contexts| Punkt::new("", collocations, "", contexts).unwrap_err().to_string();
    assert_eq!(message("a\tb\nc\n", ""), "line 2 of collocations.tab is no entry of NLTK's punkt_tab; fetch it again");
    assert!(message("", "word\tmany\n").starts_with("line 1 of ortho_context.tab is no entry"));
}
