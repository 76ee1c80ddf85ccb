//! What must hold for any texts.

use proptest::prelude::*;
use sideburn_rouge::{Metric, RougeScorer, Score, tokenize};

/// Texts of few words, so that they share some, with line breaks; or any characters at all.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::collection::vec(
            prop::sample::select(vec!["a", "b", "c", "running", "runs", "skies", "\n", "\u{130}x", "#Person1#", "\u{e9}"]),
            0..40,
        ).prop_map(|words| words.join(" ")),
        1 => any::<String>(),
    ]
}

fn many() -> RougeScorer {
    RougeScorer::new(&[Metric::Rouge1, Metric::Rouge2, Metric::Rouge5, Metric::RougeL, Metric::RougeLsum])
}

proptest! {
    #[test]
    fn scores_lie_between_0_and_1(reference in text(), prediction in text(), stemmer: bool) {
        for (metric, score) in &many().with_stemmer(stemmer).score(&reference, &prediction).unwrap() {
            let Score { precision, recall, fmeasure } = *score;
            for number in [precision, recall, fmeasure] {
                prop_assert!((0.0..=1.0).contains(&number), "{} {:?}", metric, score);
            }
            prop_assert!(fmeasure <= precision.max(recall) + 1e-12 && fmeasure >= precision.min(recall) - 1e-12);
        }
    }

    #[test]
    fn a_text_matches_itself(text in text(), stemmer: bool) {
        let words = tokenize(&text, stemmer).len();
        let scores = many().with_stemmer(stemmer).score(&text, &text).unwrap();
        for (metric, needed) in [(Metric::Rouge1, 1), (Metric::Rouge2, 2), (Metric::Rouge5, 5), (Metric::RougeL, 1)] {
            prop_assert_eq!(scores[metric].fmeasure, if words >= needed { 1.0 } else { 0.0 });
        }
        prop_assert_eq!(scores[Metric::RougeLsum].fmeasure, scores[Metric::RougeL].fmeasure);
    }

    #[test]
    fn swapping_the_texts_swaps_precision_and_recall(a in text(), b in text()) {
        let (there, back) = (many().score(&a, &b).unwrap(), many().score(&b, &a).unwrap());
        // Not so for ROUGE-Lsum, where only the reference is looked at sentence by sentence.
        for metric in [Metric::Rouge1, Metric::Rouge2, Metric::Rouge5, Metric::RougeL] {
            prop_assert_eq!(there[metric].precision, back[metric].recall);
            prop_assert_eq!(there[metric].recall, back[metric].precision);
            prop_assert!((there[metric].fmeasure - back[metric].fmeasure).abs() < 1e-12);
        }
    }

    #[test]
    fn metrics_are_ordered(a in text(), b in text()) {
        let scores = many().score(&a, &b).unwrap();
        prop_assert!(scores[Metric::RougeL].recall <= scores[Metric::Rouge1].recall);
        prop_assert!(scores[Metric::RougeLsum].recall <= scores[Metric::Rouge1].recall);
    }

    #[test]
    fn several_references_give_the_best_of_each(references in prop::collection::vec(text(), 1..4), prediction in text()) {
        let best = many().score_multi(&references, &prediction).unwrap();
        let each: Vec<_> = references.iter().map(|reference| many().score(reference, &prediction).unwrap()).collect();
        for (metric, score) in &best {
            let first = each.iter().rev().map(|scores| scores[metric]).max_by(|a, b| a.fmeasure.total_cmp(&b.fmeasure));
            prop_assert_eq!(Some(*score), first);
        }
    }

    #[test]
    fn words_are_lower_case_ascii(text in any::<String>(), stemmer: bool) {
        for word in tokenize(&text, stemmer) {
            prop_assert!(!word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        }
    }

    #[test]
    fn any_word_has_a_stem(word in "[aeiouylsztdgn]{1,12}(s|ed|ing|ies|ied|eed|logi|alli|ion|ational|ll|e|y)*") {
        prop_assert_eq!(tokenize(&word, true).len(), 1);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let texts: Vec<String> = (0..500).map(|i| format!("w{} w{}\nw{} runs", i % 7, i % 5, i % 3)).collect();
    let references: Vec<[String; 2]> =
        (0..500).map(|i| [texts[i * 3 % 500].clone(), texts[i * 7 % 500].clone()]).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| RougeScorer::all().with_stemmer(true).score_corpus(&references, &texts).unwrap())
    };
    assert_eq!(run(1), run(4));
}
