//! Many questions at once, to models that are functions.

use std::{
    collections::HashSet,
    ops::ControlFlow,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use sideburn_data::{Example, Fields};
use sideburn_eval::{BootstrapConfig, Evaluation};
use sideburn_judge::{Answer, Chat, Item, Judge, JudgeConfig, JudgeError, Judged, Progress, Question, Verdict};

/// A model that answers as a function says.
#[derive(Debug)]
struct Model<F> {
    answer: F,
    calls: AtomicUsize,
    /// How many are under way, and how many were at most.
    under_way: Mutex<[usize; 2]>,
}

impl<F: Fn(&Question) -> Result<String, JudgeError> + Sync> Model<F> {
    fn new(answer: F) -> Self {
        Self { answer, calls: AtomicUsize::new(0), under_way: Mutex::default() }
    }

    /// How many there were since it was asked last.
    fn calls(&self) -> usize {
        self.calls.swap(0, Ordering::Relaxed)
    }
}

impl<F: Fn(&Question) -> Result<String, JudgeError> + Sync> Chat for Model<F> {
    fn model(&self) -> &str {
        "model"
    }

    fn identity(&self) -> String {
        "model".to_owned()
    }

    fn ask(&self, question: &Question) -> Result<Answer, JudgeError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        {
            let [now, most] = &mut *self.under_way.lock().unwrap();
            *now += 1;
            *most = (*most).max(*now);
        }
        let text = (self.answer)(question);
        self.under_way.lock().unwrap()[0] -= 1;
        Ok(Answer { text: text?, prompt_tokens: 100, completion_tokens: 10 })
    }
}

/// A score that depends on a summary.
fn score_of(summary: &str) -> u8 {
    (summary.bytes().map(u64::from).sum::<u64>() % 5) as u8 + 1
}

fn honest(question: &Question) -> Result<String, JudgeError> {
    let texts: Value = serde_json::from_str(&question.user).unwrap();
    Ok(format!("{{\"reason\": \"because\", \"score\": {}}}", score_of(texts["summary"].as_str().unwrap())))
}

fn config(cache: Option<&Path>) -> JudgeConfig {
    JudgeConfig { cache: cache.map(Path::to_owned), ..JudgeConfig::default() }
}

fn texts(count: usize) -> Vec<(String, String)> {
    (0..count).map(|at| (format!("A: dialogue {at}."), format!("summary {at}"))).collect()
}

fn items(texts: &[(String, String)]) -> Vec<Item<'_>> {
    texts.iter().map(|(dialogue, summary)| Item { dialogue, summary }).collect()
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn scores(judged: &Judged) -> Vec<Vec<Option<u8>>> {
    let score = |verdict: &Result<Verdict, String>| verdict.as_ref().ok().map(|verdict| verdict.score);
    judged.verdicts.iter().map(|of| of.iter().map(score).collect()).collect()
}

#[test]
fn scores_stand_where_they_belong() {
    let slow = |question: &Question| {
        std::thread::sleep(Duration::from_millis(2));
        honest(question)
    };
    let (model, texts) = (Model::new(slow), texts(30));
    let judge = Judge::new(&model, config(None)).unwrap();
    let mut seen = Vec::new();
    let watch = |progress: Progress| {
        seen.push((progress.done, progress.total));
        ControlFlow::Continue(())
    };
    let judged = judge.judge(&items(&texts), watch).unwrap();
    assert_eq!(seen, (0..=120).map(|done| (done, 120)).collect::<Vec<_>>());
    let expected: Vec<_> = texts.iter().map(|(_, summary)| vec![Some(score_of(summary)); 4]).collect();
    assert_eq!(scores(&judged), expected);
    let usage = judged.usage;
    assert_eq!((usage.calls, usage.cached, usage.prompt_tokens, usage.completion_tokens), (120, 0, 12_000, 1_200));
    assert_eq!(usage.cost(2.0, 10.0), 0.036);
    let most = model.under_way.lock().unwrap()[1];
    assert!((2..=16).contains(&most), "{most} at once");
}

#[test]
fn a_second_run_asks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (model, texts) = (Model::new(honest), texts(10));
    let judge = |config| Judge::new(&model, config).unwrap();
    let cached = config(Some(directory.path()));
    let first = judge(cached.clone()).judge(&items(&texts), go_on).unwrap();
    assert_eq!((model.calls(), first.usage.cached), (40, 0));
    let second = judge(cached.clone()).judge(&items(&texts), go_on).unwrap();
    assert_eq!((model.calls(), second.usage.cached, second.usage.prompt_tokens), (0, 40, 0));
    assert_eq!(second.verdicts, first.verdicts);

    // Another summary is another question; so is another guideline.
    let mut changed = texts.clone();
    changed[3].1 += "!";
    judge(cached.clone()).judge(&items(&changed), go_on).unwrap();
    assert_eq!(model.calls(), 4);
    let mut criteria = cached.clone();
    criteria.criteria[1].guideline += " Be strict.";
    judge(criteria).judge(&items(&texts), go_on).unwrap();
    assert_eq!(model.calls(), 10);
    // Equal questions are one.
    let twice = [texts[..1].to_vec(), texts[..1].to_vec(), vec![("new".to_owned(), "text".to_owned()); 3]].concat();
    let judged = judge(cached).judge(&items(&twice), go_on).unwrap();
    assert_eq!((model.calls(), judged.usage.cached, judged.verdicts.len()), (4, 4, 5));
    assert_eq!(judged.verdicts[2], judged.verdicts[4]);
}

#[test]
fn a_run_that_was_stopped_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (model, texts) = (Model::new(honest), texts(50));
    let judge = Judge::new(&model, config(Some(directory.path()))).unwrap();
    let stop = |progress: Progress| match progress.done {
        30.. => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = judge.judge(&items(&texts), stop).unwrap_err();
    let asked = model.calls();
    assert!(matches!(error, JudgeError::Stopped { done, total: 200 } if done == asked), "{error}: {asked}");
    let judged = judge.judge(&items(&texts), go_on).unwrap();
    assert_eq!((model.calls(), judged.usage.cached), (200 - asked, asked));
}

#[test]
fn an_answer_that_is_none_is_asked_for_again() {
    let seen = Mutex::new(HashSet::new());
    // The first time prose, then a verdict; and about one text never.
    let moody = |question: &Question| {
        if question.user.contains("dialogue 7.") {
            return Ok("It is {\"score\": 6}!".to_owned());
        }
        let is_new = seen.lock().unwrap().insert((question.system.clone(), question.user.clone()));
        if is_new { Ok("I like it a lot.".to_owned()) } else { honest(question) }
    };
    let (model, texts, directory) = (Model::new(moody), texts(9), tempfile::tempdir().unwrap());
    let judge = Judge::new(&model, config(Some(directory.path()))).unwrap();
    let judged = judge.judge(&items(&texts), go_on).unwrap();
    assert_eq!(model.calls(), 8 * 4 * 2 + 4 * 3);
    assert_eq!((judged.usage.calls, judged.usage.prompt_tokens), (76, 7600), "what is asked in vain is paid for, too");
    let expected = "the answer is no verdict (the score 6, where a whole number from 1 to 5 is expected): \"It is \
                    {\\\"score\\\": 6}!\"";
    assert_eq!(judged.verdicts[7], vec![Err(expected.to_owned()); 4]);
    assert_eq!(scores(&judged).iter().flatten().filter(|score| score.is_none()).count(), 4);
    // A failure is not kept.
    judge.judge(&items(&texts), go_on).unwrap();
    assert_eq!(model.calls(), 12);
}

#[test]
fn a_judge_that_is_out_of_order_is_left_alone() {
    let (texts, directory) = (texts(100), tempfile::tempdir().unwrap());
    let prose = Model::new(|_: &Question| Ok("Lovely.".to_owned()));
    let judge = Judge::new(&prose, JudgeConfig { concurrency: 2, ..config(Some(directory.path())) }).unwrap();
    let message = judge.judge(&items(&texts), go_on).unwrap_err().to_string();
    let said = "10 questions in a row were not answered, and no more were asked; the last: the answer is no verdict";
    assert!(message.starts_with(said), "{message}");
    // Each thread has at most one answer at hand and another under way.
    assert!((30..=42).contains(&prose.calls()));

    let refuses = Model::new(|question: &Question| match question.user.contains("dialogue 5.") {
        true => Err(JudgeError::Refused { reason: "status 401".to_owned(), remedy: "look at the key" }),
        false => honest(question),
    });
    let judge = Judge::new(&refuses, config(Some(directory.path()))).unwrap();
    let error = judge.judge(&items(&texts), go_on).unwrap_err();
    assert_eq!(error.to_string(), "status 401; look at the key");
    let known = refuses.calls();
    // What was answered is kept all the same.
    let honest = Model::new(honest);
    let judged = Judge::new(&honest, config(Some(directory.path()))).unwrap().judge(&items(&texts), go_on).unwrap();
    assert!(judged.usage.cached > 0 && judged.usage.cached < known, "{} of {known}", judged.usage.cached);
}

#[test]
fn a_judge_is_a_score_among_others() {
    let example = |at: usize| Example {
        id: format!("test_{at}"),
        fields: Fields::from([("dialogue".to_owned(), format!("A: {at}"))]),
        targets: vec!["s".to_owned()],
    };
    let shy = |question: &Question| match question.user.contains("A: 1\"")
        && question.system.contains("criterion, fluency")
    {
        true => Err(JudgeError::Unanswered { reason: "no".to_owned() }),
        false => honest(question),
    };
    let judge = Judge::new(Model::new(shy), config(None)).unwrap();
    let mut evaluation = Evaluation::new((0..3).map(example).collect::<Vec<_>>(), BootstrapConfig::default());
    let system = evaluation.add("a", ["x", "y", "z"].map(String::from).to_vec(), &[&judge]).unwrap();
    let names: Vec<&str> = system.scores.iter().map(|scored| scored.mean.name.as_str()).collect();
    assert_eq!(names, ["relevance", "coherence", "consistency", "fluency"]);
    let values = |name: &str| system.score(name).unwrap().values.clone();
    assert_eq!(values("relevance"), [Some(1.0), Some(2.0), Some(3.0)]);
    assert_eq!(values("fluency"), [Some(1.0), None, Some(3.0)]);
    assert_eq!(system.score("fluency").unwrap().mean.interval.mean, 2.0);
}

#[test]
fn settings_out_of_range_are_errors() {
    let wrong = |change: fn(&mut JudgeConfig)| {
        let mut config = config(None);
        change(&mut config);
        Judge::new(Model::new(honest), config).err().unwrap().to_string()
    };
    assert_eq!(wrong(|config| config.concurrency = 0), "concurrency is 0; choose from 1 to 256");
    assert_eq!(wrong(|config| config.attempts = 11), "attempts is 11; choose from 1 to 10");
    assert_eq!(wrong(|config| config.max_failures = 0), "max_failures is 0; choose 1 or more");
    assert_eq!(wrong(|config| config.criteria.clear()), "the number of criteria is 0; give one or more");
    let twice = wrong(|config| config.criteria[1].name = "fluency".to_owned());
    assert_eq!(twice, "a criterion is \"fluency\" twice; give each a name of its own");
    let file = tempfile::NamedTempFile::new().unwrap();
    let judge = Judge::new(Model::new(honest), config(Some(file.path()))).unwrap();
    let error = judge.judge(&[], go_on).unwrap_err();
    assert!(matches!(error, JudgeError::File(_)), "{error}");
}
