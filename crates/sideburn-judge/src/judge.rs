//! Many questions at once.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use serde::Serialize;
use sideburn_data::Example;
use sideburn_eval::{Score, ScoreError, Values};

use crate::{
    cache::{Cache, key},
    chat::{Answer, Chat},
    criterion::Criterion,
    error::JudgeError,
    question::Question,
    verdict::{Verdict, start_of},
};

/// How a [`Judge`] goes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgeConfig {
    /// What is asked about each text. Default: [`Criterion::standard`].
    pub criteria: Vec<Criterion>,
    /// How many questions are under way at once, each on a thread of its own, from 1 to 256. Default: 16.
    pub concurrency: usize,
    /// How often a question is asked before an answer that is none counts as a failure, from 1 to 10. Default: 3.
    pub attempts: usize,
    /// After how many failures in a row nothing more is asked, from 1 on. Default: 10.
    pub max_failures: usize,
    /// Where verdicts are kept. Default: nowhere.
    pub cache: Option<PathBuf>,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        Self { criteria: Criterion::standard().into(), concurrency: 16, attempts: 3, max_failures: 10, cache: None }
    }
}

/// A judge: a model, and what it is asked.
///
/// It is a [`Score`], with a column for each criterion, so that an `Evaluation` shows its scores with intervals beside others.
/// What it judges by is [`Example::source`].
///
/// ```
/// use sideburn_data::{Example, Fields};
/// use sideburn_eval::{BootstrapConfig, Evaluation};
/// use sideburn_judge::{Answer, Chat, Judge, JudgeConfig, JudgeError, Question};
///
/// /// Likes whatever it is shown.
/// struct Kind;
///
/// impl Chat for Kind {
///     fn model(&self) -> &str {
///         "kind"
///     }
///
///     fn identity(&self) -> String {
///         "kind".into()
///     }
///
///     fn ask(&self, _: &Question) -> Result<Answer, JudgeError> {
///         Ok(Answer { text: r#"{"reason": "Lovely.", "score": 5}"#.into(), ..Answer::default() })
///     }
/// }
///
/// let fields = Fields::from([("dialogue".to_owned(), "Ann: Tea?\nBob: Please.".to_owned())]);
/// let example = Example { id: "test_0".into(), fields, targets: vec!["Bob wants tea.".into()] };
/// let judge = Judge::new(Kind, JudgeConfig::default())?;
/// let mut evaluation = Evaluation::new([example], BootstrapConfig::default());
/// let system = evaluation.add("a model", vec!["Bob would like tea.".into()], &[&judge])?;
/// assert_eq!(system.score("coherence").unwrap().mean.interval.mean, 5.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Judge<C> {
    chat: C,
    config: JudgeConfig,
}

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// The dialogue.
    pub dialogue: &'a str,
    /// A summary of it.
    pub summary: &'a str,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Judged {
    /// For each item, in order, the verdict by each criterion, in order, or why there is none.
    pub verdicts: Vec<Vec<Result<Verdict, String>>>,
    /// What it took.
    pub usage: Usage,
}

/// What was asked of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Questions that were asked, those again that had no valid answer included.
    pub calls: usize,
    /// Questions that the cache had an answer to.
    pub cached: usize,
    /// Tokens that the model read, as the server counts them.
    pub prompt_tokens: u64,
    /// Tokens that it wrote.
    pub completion_tokens: u64,
}

impl Usage {
    /// The price of these tokens at so much for a million tokens that are read, and written.
    pub fn cost(&self, prompt: f64, completion: f64) -> f64 {
        (self.prompt_tokens as f64 * prompt + self.completion_tokens as f64 * completion) / 1e6
    }
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Questions that have an answer, or have failed.
    pub done: usize,
    /// Questions that have failed.
    pub failed: usize,
    /// All questions. Equal ones are one.
    pub total: usize,
    /// What it took so far.
    pub usage: Usage,
}

/// What a thread has of one question.
struct Outcome {
    task: usize,
    verdict: Result<Verdict, String>,
    usage: Usage,
}

impl<C: Chat> Judge<C> {
    /// A judge that asks `chat`.
    ///
    /// # Errors
    /// [`JudgeError::Config`] if a setting is out of range.
    pub fn new(chat: C, config: JudgeConfig) -> Result<Self, JudgeError> {
        let wrong = |field, found: usize, remedy| Err(JudgeError::Config { field, found: found.to_string(), remedy });
        if !(1..=256).contains(&config.concurrency) {
            return wrong("concurrency", config.concurrency, "choose from 1 to 256");
        }
        if !(1..=10).contains(&config.attempts) {
            return wrong("attempts", config.attempts, "choose from 1 to 10");
        }
        if config.max_failures == 0 {
            return wrong("max_failures", 0, "choose 1 or more");
        }
        if config.criteria.is_empty() {
            return wrong("the number of criteria", 0, "give one or more");
        }
        let is_double = |at: usize| config.criteria[..at].iter().any(|known| known.name == config.criteria[at].name);
        if let Some(at) = (0..config.criteria.len()).find(|at| is_double(*at)) {
            let found = format!("{:?} twice", config.criteria[at].name);
            return Err(JudgeError::Config { field: "a criterion", found, remedy: "give each a name of its own" });
        }
        Ok(Self { chat, config })
    }

    /// Who is asked.
    pub fn chat(&self) -> &C {
        &self.chat
    }

    /// How it goes about it.
    pub fn config(&self) -> &JudgeConfig {
        &self.config
    }

    /// Judges every item by every criterion.
    ///
    /// Each question is asked for itself, so that no score colours another; equal questions are asked once. What has an answer
    /// in the cache is not asked, and an answer is in the cache as soon as it is there: a run that ends early goes on where it
    /// was, and a second one asks nothing. `progress` is called on this thread after each question, and ends the run with
    /// [`ControlFlow::Break`]; questions that are under way are still answered, and kept.
    ///
    /// # Errors
    /// A question without an answer is no error but an entry of [`Judged::verdicts`]. Errors are those of
    /// [`Chat::ask`] that concern all questions, [`JudgeError::GaveUp`] after too many failures in a row,
    /// [`JudgeError::Stopped`] after a break, and [`JudgeError::File`] if the cache cannot be used.
    pub fn judge(
        &self,
        items: &[Item<'_>],
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Judged, JudgeError> {
        let cache = self.config.cache.as_deref().map(Cache::open).transpose()?;
        let (identity, criteria) = (self.chat.identity(), &self.config.criteria);
        let question = |(item, criterion): (usize, usize)| {
            let Item { dialogue, summary } = items[item];
            Question::new(&criteria[criterion], dialogue, summary)
        };
        // What is asked: the first place of each key. Questions are made again when they are needed, not kept.
        let (mut tasks, mut places, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        for place in (0..items.len()).flat_map(|item| (0..criteria.len()).map(move |criterion| (item, criterion))) {
            let key = key(&identity, &question(place));
            places.push(*known.entry(key).or_insert_with(|| {
                tasks.push((key, place));
                tasks.len() - 1
            }));
        }
        let mut verdicts: Vec<Option<Result<Verdict, String>>> =
            tasks.iter().map(|(key, _)| cache.as_ref()?.get(*key).cloned().map(Ok)).collect();
        let open: Vec<usize> = (0..tasks.len()).filter(|task| verdicts[*task].is_none()).collect();
        let cached = tasks.len() - open.len();
        let mut state =
            Progress { done: cached, failed: 0, total: tasks.len(), usage: Usage { cached, ..Usage::default() } };

        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = |sender: mpsc::SyncSender<Result<Outcome, JudgeError>>| {
            while !stop.load(Ordering::Relaxed) {
                let Some(&task) = open.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                let (key, place) = tasks[task];
                let asked = self.ask(&question(place)).and_then(|(verdict, usage)| {
                    if let (Some(cache), Ok(verdict)) = (&cache, &verdict) {
                        cache.put(key, verdict)?;
                    }
                    Ok(Outcome { task, verdict, usage })
                });
                if sender.send(asked).is_err() {
                    return;
                }
            }
        };
        let ended = thread::scope(|scope| {
            // Nobody goes on before this thread has seen how the last question ended.
            let (sender, outcomes) = mpsc::sync_channel(0);
            for _ in 0..self.config.concurrency.min(open.len()) {
                let (sender, work) = (sender.clone(), &work);
                scope.spawn(move || work(sender));
            }
            drop(sender);
            let (mut ended, mut in_a_row) = (Ok(()), 0);
            if progress(state).is_break() {
                stop.store(true, Ordering::Relaxed);
                ended = Err(None);
            }
            for outcome in outcomes {
                let Outcome { task, verdict, usage } = match outcome {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        ended = ended.and(Err(Some(error)));
                        continue;
                    }
                };
                state.done += 1;
                state.usage.calls += usage.calls;
                state.usage.prompt_tokens += usage.prompt_tokens;
                state.usage.completion_tokens += usage.completion_tokens;
                match &verdict {
                    Ok(_) => in_a_row = 0,
                    Err(last) => {
                        state.failed += 1;
                        in_a_row += 1;
                        if in_a_row == self.config.max_failures && ended.is_ok() {
                            stop.store(true, Ordering::Relaxed);
                            ended = Err(Some(JudgeError::GaveUp { failures: in_a_row, last: last.clone() }));
                        }
                    }
                }
                verdicts[task] = Some(verdict);
                if progress(state).is_break() && ended.is_ok() {
                    stop.store(true, Ordering::Relaxed);
                    ended = Err(None);
                }
            }
            ended
        });
        if let Err(error) = ended {
            let Progress { done, total, .. } = state;
            return Err(error.unwrap_or(JudgeError::Stopped { done, total }));
        }
        let of_task = |task: &usize| verdicts[*task].clone().expect("every question was asked");
        let of_item = |tasks: &[usize]| tasks.iter().map(of_task).collect();
        Ok(Judged { verdicts: places.chunks(criteria.len()).map(of_item).collect(), usage: state.usage })
    }

    /// Asks until there is a valid answer, or often enough.
    fn ask(&self, question: &Question) -> Result<(Result<Verdict, String>, Usage), JudgeError> {
        let mut usage = Usage::default();
        let mut why = String::new();
        for _ in 0..self.config.attempts {
            usage.calls += 1;
            let Answer { text, prompt_tokens, completion_tokens } = match self.chat.ask(question) {
                Ok(answer) => answer,
                Err(JudgeError::Invalid { reason }) => {
                    why = reason;
                    continue;
                }
                Err(JudgeError::Unanswered { reason }) => return Ok((Err(reason), usage)),
                Err(error) => return Err(error),
            };
            usage.prompt_tokens += prompt_tokens;
            usage.completion_tokens += completion_tokens;
            match Verdict::parse(&text) {
                Ok(verdict) => return Ok((Ok(verdict), usage)),
                Err(wrong) => why = format!("the answer is no verdict ({wrong}): {:?}", start_of(&text)),
            }
        }
        Ok((Err(why), usage))
    }
}

impl<C: Chat> Score for Judge<C> {
    fn score(&self, examples: &[Example], outputs: &[String]) -> Result<Vec<Values>, ScoreError> {
        let dialogues: Vec<_> = examples.iter().map(Example::source).collect();
        let pairs = dialogues.iter().zip(outputs);
        let items: Vec<Item<'_>> = pairs.map(|(dialogue, summary)| Item { dialogue, summary }).collect();
        let judged = self.judge(&items, |_| ControlFlow::Continue(()))?;
        let values = |(at, criterion): (usize, &Criterion)| Values {
            name: criterion.name.clone(),
            is_share: false,
            values: judged
                .verdicts
                .iter()
                .map(|of| of[at].as_ref().ok().map(|verdict| f64::from(verdict.score)))
                .collect(),
        };
        Ok(self.config.criteria.iter().enumerate().map(values).collect())
    }
}
