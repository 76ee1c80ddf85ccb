//! How far two agree.

use serde::Deserialize;
use sideburn_judge::{JudgeError, Rating, agreement, compare_ratings};

/// `testdata/make_agreement.py` made them.
#[test]
fn agreement_is_that_of_scikit_learn_and_scipy() {
    #[derive(Deserialize)]
    struct Row {
        first: Vec<f64>,
        second: Vec<f64>,
        kappa: Option<f64>,
        kappa_linear: Option<f64>,
        spearman: Option<f64>,
    }
    let rows: Vec<Row> = serde_json::from_str(include_str!("../../testdata/agreement.json")).unwrap();
    assert_eq!(rows.len(), 14);
    for Row { first, second, kappa, kappa_linear, spearman } in rows {
        let found = agreement(&first, &second);
        for (name, found, expected) in [
            ("kappa", found.kappa, kappa),
            ("kappa_linear", found.kappa_linear, kappa_linear),
            ("spearman", found.spearman, spearman),
        ] {
            let is_close = match (found, expected) {
                (Some(found), Some(expected)) => (found - expected).abs() <= 1e-12,
                _ => found == expected,
            };
            assert!(is_close, "{name} of {first:?} and {second:?} is {found:?}, not {expected:?}");
        }
    }
    let nothing = agreement(&[], &[]);
    assert_eq!((nothing.n, nothing.equal, nothing.kappa, nothing.spearman), (0, 0.0, None, None));
}

fn ratings(lines: &str) -> Result<Vec<Rating>, JudgeError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ratings.jsonl");
    std::fs::write(&path, lines).unwrap();
    Rating::read(path)
}

#[test]
fn texts_are_found_by_id_and_system() {
    let judge = ratings(
        r#"{"id": "1", "system": "a", "scores": {"fluency": 5, "relevance": 1}, "reasons": {"fluency": "<b>"}}
{"id": "2", "system": "a", "scores": {"fluency": 3}, "failed": {"relevance": "slow"}}
{"id": "1", "system": "b", "scores": {"fluency": 1, "relevance": 2}}

{"system": "a", "means": {"fluency": {"mean": 4.0}}}
"#,
    )
    .unwrap();
    assert_eq!((judge.len(), judge[0].reasons["fluency"].as_str()), (3, "<b>"));
    let people = ratings(
        r#"{"id": "2", "system": "a", "scores": {"fluency": 3.5, "tone": 2}}
{"id": "1", "system": "b", "scores": {"fluency": 2}}
{"id": "1", "system": "a", "scores": {"fluency": 5, "relevance": 1}}
{"id": "9", "system": "a", "scores": {"fluency": 5}}"#,
    )
    .unwrap();
    let found = compare_ratings(&judge, &people).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["fluency", "relevance"]);
    assert_eq!((found["fluency"].n, found["fluency"].spearman, found["fluency"].kappa), (3, Some(1.0), None));
    assert_eq!((found["relevance"].n, found["relevance"].equal), (1, 1.0));

    let unnamed = ratings(r#"{"id": "1", "scores": {"fluency": 5}}"#).unwrap();
    let one = ratings(r#"{"id": "1", "system": "a", "scores": {"fluency": 4}}"#).unwrap();
    assert_eq!(compare_ratings(&one, &unnamed).unwrap()["fluency"].n, 1);
    for (first, second) in [(&judge, &unnamed), (&unnamed, &judge)] {
        let message = compare_ratings(first, second).unwrap_err().to_string();
        assert!(message.contains("one side names no system, and the other has several"), "{message}");
    }
    let message = compare_ratings(&unnamed, &[]).unwrap_err().to_string();
    assert!(message.contains("no text has a criterion that both have rated"), "{message}");
}

#[test]
fn lines_that_are_no_ratings_are_named() {
    let good = r#"{"id": "1", "scores": {"fluency": 5}}"#;
    for (line, said) in [
        ("{'id': 1}", "line 2: not JSON"),
        ("3", "line 2: no rating such as {\"id\": \"test_0\""),
        (r#"{"id": 1, "scores": {}}"#, "line 2: no rating"),
        (r#"{"id": "2", "scores": {"fluency": 6}}"#, "line 2: fluency is 6; scores are from 1 to 5"),
        (r#"{"id": "2", "scores": {"fluency": 0}}"#, "line 2: fluency is 0;"),
        (r#"{"id": "2", "scores": {"fluency": "5"}}"#, "line 2: no rating"),
        (good, "line 2: \"1\" is rated already on line 1"),
    ] {
        let message = ratings(&format!("{good}\n{line}\n")).unwrap_err().to_string();
        assert!(message.contains("ratings.jsonl, ") && message.contains(said), "{line}: {message}");
    }
}
