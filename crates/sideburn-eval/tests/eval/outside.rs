//! A score that the crate does not know, and results that cannot be.

use sideburn_data::{Example, Fields};
use sideburn_eval::{BootstrapConfig, EvalError, Evaluation, Score, ScoreError, Values};
use sideburn_rouge::{Metric, RougeScorer};

/// Gives from 1 to 5 points for how many of the speakers an output names, and whether that is all of them.
struct Speakers;

impl Score for Speakers {
    fn score(&self, examples: &[Example], outputs: &[String]) -> Result<Vec<Values>, ScoreError> {
        let mut named = Vec::new();
        for (example, output) in examples.iter().zip(outputs) {
            let dialogue =
                example.field("dialogue").ok_or_else(|| format!("example {} has no dialogue", example.id))?;
            let speakers: Vec<&str> = dialogue.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
            let count = speakers.iter().filter(|speaker| output.contains(*speaker)).count();
            named.push((1 + 4 * count / speakers.len().max(1), count == speakers.len()));
        }
        let points = named.iter().map(|(points, _)| Some(*points as f64)).collect();
        let all = named.iter().map(|(_, all)| Some(f64::from(u8::from(*all)))).collect();
        Ok(vec![
            Values { name: "speakers".into(), is_share: false, values: points },
            Values { name: "all named".into(), is_share: true, values: all },
        ])
    }
}

fn examples() -> Vec<Example> {
    let example = |id: &str, dialogue: &str, target: &str| Example {
        id: id.into(),
        fields: Fields::from([("dialogue".into(), dialogue.into())]),
        targets: vec![target.into()],
    };
    vec![
        example("0", "Ann: Tea?\nBob: Please.", "Ann makes tea for Bob."),
        example("1", "Ann: Bye.\nCleo: See you.", "Ann leaves Cleo."),
    ]
}

fn outputs(of: [&str; 2]) -> Vec<String> {
    of.map(String::from).to_vec()
}

#[test]
fn a_score_from_outside_stands_beside_rouge() {
    let mut evaluation = Evaluation::new(examples(), BootstrapConfig::default());
    let scores: [&dyn Score; 2] = [&Speakers, &RougeScorer::new(&[Metric::Rouge1, Metric::RougeL])];
    let system = evaluation.add("short", outputs(["Bob wants tea.", "Ann leaves Cleo."]), &scores).unwrap();
    assert_eq!(system.score("speakers").unwrap().values, [Some(3.0), Some(5.0)]);
    assert_eq!(system.score("all named").unwrap().mean.interval.mean, 0.5);
    assert_eq!(system.score("rougeL").unwrap().values[1], Some(1.0));
    evaluation.add("none", outputs(["", ""]), &[&Speakers]).unwrap();
    assert_eq!(
        evaluation.to_string(),
        "mean [95 %], n 2  speakers           all named             rouge1                 rougeL\n\
         short             4.00 [3.00, 5.00]  50.00 [0.00, 100.00]  75.00 [50.00, 100.00]  62.50 [25.00, 100.00]\n\
         none              1.00 [1.00, 1.00]  0.00 [0.00, 0.00]     -                      -\n"
    );
}

/// As a judge does that has not understood every output.
#[test]
fn what_cannot_be_told_is_left_out_of_means_and_differences() {
    struct Given(Vec<Option<f64>>);
    impl Score for Given {
        fn score(&self, _: &[Example], _: &[String]) -> Result<Vec<Values>, ScoreError> {
            Ok(vec![Values { name: "given".into(), is_share: false, values: self.0.clone() }])
        }
    }
    let mut evaluation = Evaluation::new([examples(), examples()].concat(), BootstrapConfig::default());
    let of = || ["a", "b", "c", "d"].map(String::from).to_vec();
    evaluation.add("first", of(), &[&Given(vec![Some(1.0), None, Some(2.0), Some(4.0)])]).unwrap();
    evaluation.add("second", of(), &[&Given(vec![Some(0.5), Some(3.0), None, Some(2.5)])]).unwrap();
    let mean = evaluation.systems[0].score("given").unwrap().mean.interval;
    assert_eq!((mean.n, mean.mean), (3, 7.0 / 3.0));
    let difference = evaluation.compare("first", "second", "given").unwrap();
    assert_eq!((difference.comparison.difference.n, difference.comparison.difference.mean), (2, 1.0));
    assert!(evaluation.to_string().contains("first             2.33 [1.00, 4.00] (n 3)"), "{evaluation}");
    let none = evaluation.add("third", of(), &[&Given(vec![None; 4])]).map(|_| ());
    assert!(matches!(none, Err(EvalError::NoValues)));
}

#[test]
fn results_are_kept_as_json() {
    let mut evaluation = Evaluation::new(examples(), BootstrapConfig { samples: 10, ..BootstrapConfig::default() });
    evaluation.config = serde_json::json!({ "max_steps": 2 });
    evaluation.add("a", outputs(["Ann", "Bob"]), &[&Speakers, &RougeScorer::all()]).unwrap();
    let json = serde_json::to_value(&evaluation).unwrap();
    assert_eq!(json["config"]["max_steps"], 2);
    assert_eq!(json["examples"][1]["fields"]["dialogue"], "Ann: Bye.\nCleo: See you.");
    let scored = &json["systems"][0]["scores"][0];
    assert_eq!(
        (&scored["name"], &scored["mean"], &scored["values"][0]),
        (&"speakers".into(), &2.0.into(), &3.0.into())
    );
    assert!(["low", "median", "high", "n"].iter().all(|end| scored[*end].is_number()), "{scored}");
    assert_eq!(serde_json::from_value::<Evaluation>(json).unwrap(), evaluation);
}

#[test]
fn results_that_do_not_fit_are_named() {
    struct Broken(Vec<Option<f64>>);
    impl Score for Broken {
        fn score(&self, _: &[Example], _: &[String]) -> Result<Vec<Values>, ScoreError> {
            Ok(vec![Values { name: "broken".into(), is_share: false, values: self.0.clone() }])
        }
    }
    let mut evaluation = Evaluation::new(examples(), BootstrapConfig::default());
    let mut message = |name: &str, outputs: &[&str], score: &dyn Score| {
        let outputs = outputs.iter().map(|output| (*output).to_owned()).collect();
        evaluation.add(name, outputs, &[score]).map(|_| ()).unwrap_err().to_string()
    };
    let of = ["x", "y"];
    assert_eq!(
        message("a", &["x"], &Speakers),
        "system \"a\" has 1 outputs for 2 examples; give one for each, in their order"
    );
    assert_eq!(
        message("a", &of, &Broken(vec![Some(1.0)])),
        "score \"broken\" has 1 values for 2 outputs; a score gives one for each, in their order"
    );
    assert_eq!(
        message("a", &of, &Broken(vec![None, Some(f64::NAN)])),
        "score \"broken\" of example \"1\" is NaN; a score gives finite numbers only"
    );
    assert!(evaluation.systems.is_empty(), "what cannot be scored is not kept");
    evaluation.add("a", outputs(of), &[&Speakers]).unwrap();
    assert!(matches!(evaluation.add("a", outputs(of), &[]), Err(EvalError::SameName { .. })));

    let without = Example { fields: Fields::new(), ..examples().remove(0) };
    let mut evaluation = Evaluation::new([without], BootstrapConfig::default());
    let message = evaluation.add("a", vec!["x".into()], &[&Speakers]).unwrap_err().to_string();
    assert_eq!(message, "the outputs of \"a\" cannot be scored: example 0 has no dialogue");
    let none = Evaluation::new(vec![], BootstrapConfig::default()).add("a", vec![], &[&Speakers]).map(|_| ());
    assert!(matches!(none, Err(EvalError::NoValues)));
}
