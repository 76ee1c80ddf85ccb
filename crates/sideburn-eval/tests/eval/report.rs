//! What follows from an evaluation, and its page.

use sideburn_data::{Example, Fields};
use sideburn_eval::{BootstrapConfig, EvalError, Evaluation, Report, Score, ScoreError, Values};
use sideburn_rouge::RougeScorer;

pub(crate) const HOSTILE: &str =
    "</td><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u{202e}&lt;b&gt;";

/// Scores from elsewhere, some of them missing.
struct Given(Vec<Option<f64>>);

impl Score for Given {
    fn score(&self, _: &[Example], _: &[String]) -> Result<Vec<Values>, ScoreError> {
        Ok(vec![Values { name: "coherence".into(), is_share: false, values: self.0.clone() }])
    }
}

/// An evaluation of `dialogues` in which every text is some of the words of its dialogue.
pub(crate) fn report(dialogues: usize, samples: usize) -> Report {
    const NAMES: [&str; 5] = ["Ann", "Bob", "Cleo", "#Person1#", "Đorđe"];
    let word =
        |number: usize| ["tea", "train", "the", "station", "leaves", "Ünal", "at", "nine", "please", "a"][number % 10];
    let line = |at: usize, turn: usize| {
        let words: Vec<&str> = (0..8).map(|place| word(at * 7 + turn * 3 + place * place)).collect();
        format!("{}: {}.", NAMES[(at + turn % (2 + at % 3)) % 5], words.join(" "))
    };
    let text = |at: usize, from: usize, len: usize| -> String {
        (0..len).map(|place| word(at * 7 + from * 3 + place * place)).collect::<Vec<_>>().join(" ")
    };
    let example = |at: usize| {
        let dialogue: Vec<String> = (0..4 + at % 14).map(|turn| line(at, turn)).collect();
        let dialogue = if at == 3 { format!("Ann: {HOSTILE}\nBob: What?") } else { dialogue.join("\n") };
        let fields = [("dialogue".to_owned(), dialogue), ("topic".to_owned(), format!("topic {}", at % 40))];
        Example {
            id: format!("test_{at}"),
            fields: Fields::from(fields),
            targets: (0..3).map(|from| text(at, from, 18)).collect(),
        }
    };
    let examples: Vec<Example> = (0..dialogues).map(example).collect();
    let config = BootstrapConfig { samples, ..BootstrapConfig::default() };
    let mut evaluation = Evaluation::new(examples, config);
    evaluation.config = serde_json::json!({ "adapter": "<b>news</b>" });
    let rouge = RougeScorer::all().with_stemmer(true);
    for (place, name) in ["base", "lora <r 32>", "prompt tuning"].into_iter().enumerate() {
        let output = |at: usize| match at {
            3 => HOSTILE.to_owned(),
            4 if place == 0 => String::new(),
            at => text(at, place + at % (5 - place), 14 + at % 7),
        };
        let judged = |at: usize| (at % 11 != place).then(|| (1 + (at + place) % 5) as f64);
        let judged = Given((0..dialogues).map(judged).collect());
        evaluation.add(name, (0..dialogues).map(output).collect(), &[&rouge, &judged]).unwrap();
    }
    Report::new("Made up, <test>", evaluation).unwrap()
}

#[test]
fn every_number_says_of_how_many_it_is() {
    let report = report(44, 20);
    assert_eq!(report.differences.len(), 3 * 5, "three pairs of systems, five scores");
    let coherence = report.differences.iter().find(|difference| difference.score == "coherence").unwrap();
    assert_eq!((coherence.first.as_str(), coherence.second.as_str()), ("lora <r 32>", "base"));
    assert_eq!(coherence.comparison.difference.n, 44 - 4 - 4, "what only one was given is not compared");
    assert_eq!(report.differences[0].comparison.difference.n, 44);

    let names: Vec<&str> = report.statistics.iter().map(|statistics| statistics.name.as_str()).collect();
    assert_eq!(names, ["references", "base", "lora <r 32>", "prompt tuning"]);
    let base = &report.statistics[1];
    let n = |name: &str| base.measures.iter().find(|mean| mean.name == name).unwrap().interval.n;
    assert_eq!((base.empty, n("words"), n("novel 1-grams"), n("novel 3-grams")), (1, 44, 43, 43));
    assert_eq!(report.statistics[0].measures[0].interval.mean, 18.0);

    for slicing in &report.slicings {
        assert_eq!(slicing.slices.iter().map(|slice| slice.n).sum::<usize>(), 44, "{}", slicing.by);
        assert!(slicing.slices.len() > 2);
        for slice in &slicing.slices {
            assert!(slice.systems.iter().all(|system| system.scores[0].interval.n == slice.n));
        }
    }
    let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    // Not equal to the last digit: serde_json reads floats faster than exactly.
    assert_eq!(
        (again.differences.len(), again.statistics.len(), again.evaluation.examples),
        (15, 4, report.evaluation.examples.clone())
    );
    assert_eq!(again.slicings[1].slices[0].systems[2].scores[3].name, "rougeLsum");
    let text = report.to_string();
    assert!(text.starts_with("Made up, <test>\n\nmean [95 %], n 44  rouge1"), "{text}");
    for part in ["rouge1, lora <r 32> less base: ", "base: words ", ", 1 empty\n"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_page_shows_what_it_is_given_and_obeys_none_of_it() {
    let page = report(44, 20).to_html();
    assert!(page.contains("<title>Made up, &lt;test&gt;</title>"));
    assert!(
        page.contains("lora &lt;r 32&gt;") && page.contains("&quot;adapter&quot;: &quot;&lt;b&gt;news&lt;/b&gt;&quot;")
    );
    assert!(page.contains("&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;"));
    assert_eq!(page.matches("<script").count(), 1, "its own");
    assert!(!page.contains("<img") && !page.contains("<r 32>"));
    for outside in ["http:", "https:", "src=", "url(", "@import"] {
        // The hostile text names a source, escaped.
        let found = page.replace("&lt;img src=x", "");
        assert!(!found.contains(outside), "the page asks for {outside}");
    }
    assert!(page.contains("<p class=\"m\">(empty)</p>"));
    assert_eq!(page.matches("<tr data-w=").count(), 44);
}

#[test]
fn a_report_of_one_system_or_none_is_a_page_too() {
    let example = Example { id: "7".into(), fields: Fields::new(), targets: vec!["a b".into()] };
    let mut evaluation = Evaluation::new([example], BootstrapConfig::default());
    let page = Report::new("None", evaluation.clone()).unwrap().to_html();
    assert!(page.contains("Nothing was scored") && !page.contains("id=\"differences\""));
    evaluation.add("only", vec!["".into()], &[]).unwrap();
    let report = Report::new("One", evaluation).unwrap();
    let names: Vec<&str> = report.statistics[1].measures.iter().map(|mean| mean.name.as_str()).collect();
    assert_eq!(names, ["words"], "an empty text has no n-grams, and nothing is a part of no dialogue");
    assert!(report.to_html().contains("0 words"));
    let none = Report::new("", Evaluation::new([], BootstrapConfig::default()));
    assert!(matches!(none, Err(EvalError::NoValues)));
}
