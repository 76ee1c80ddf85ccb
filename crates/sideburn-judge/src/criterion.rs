//! What a judge is asked about.

/// A question about a text, with the guideline that says what each score means.
///
/// The four of [`Criterion::standard`] are those of SummEval (Fabbri et al., *SummEval: Re-evaluating Summarization
/// Evaluation*, TACL 2021), which G-Eval (Liu et al., EMNLP 2023) put to language models, worded for dialogues. Others are
/// values like them:
///
/// ```
/// use sideburn_judge::Criterion;
///
/// let names = Criterion::standard().map(|criterion| criterion.name);
/// assert_eq!(names, ["relevance", "coherence", "consistency", "fluency"]);
/// let tone = Criterion { name: "tone".into(), guideline: "5: polite throughout. 3: ... 1: rude.".into() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Criterion {
    /// What it is called: the name of its scores.
    pub name: String,
    /// What is looked at, and what the scores from 1 to 5 mean. The judge reads it as it is.
    pub guideline: String,
}

const RELEVANCE: &str = "\
Relevance: does the summary hold what matters in the dialogue, and nothing else? Look for the purpose of the talk, what was \
decided, and who will do what. Small talk, repetition and details without consequence do not belong into it.
5: all that matters, and nothing that does not.
4: all that matters, with a detail too many, or one lesser point missing.
3: the main point, but another important one is missing, or a good part of the summary does not matter.
2: side issues; the main point can be guessed at best.
1: nothing of what matters.";

const COHERENCE: &str = "\
Coherence: do the sentences make one whole? Look at their order, at how one leads to the next, and at whether it is always \
clear who is meant. Whether they are true to the dialogue is not asked here. A single clear sentence is coherent.
5: well built; every sentence follows from what stands before it.
4: easy to follow, with one rough transition or one unclear reference.
3: can be followed with effort: sentences stand beside each other, or people are mixed up.
2: a heap of sentences with little connection.
1: no connection at all.";

const CONSISTENCY: &str = "\
Consistency: does the dialogue support every statement of the summary? Look at who said or did what, at names, numbers, times \
and places, at what was only planned or asked, and at what was denied. What is left out is not asked here.
5: the dialogue supports every statement.
4: one small inaccuracy that misleads nobody.
3: one wrong statement about something that matters, or several small ones.
2: several wrong statements, or something important made up.
1: the summary contradicts the dialogue, or is about something else.";

const FLUENCY: &str = "\
Fluency: is the summary well written, taken by itself? Look at grammar, spelling, punctuation, choice of words, and at \
sentences that break off or repeat themselves. What it says is not asked here.
5: without a fault.
4: one or two small faults that do not disturb.
3: faults that disturb, but the meaning is clear.
2: so many faults that parts are hard to understand.
1: not to be understood, or empty.";

impl Criterion {
    /// Relevance, coherence, consistency and fluency.
    pub fn standard() -> [Self; 4] {
        let criterion =
            |(name, guideline): (&str, &str)| Self { name: name.to_owned(), guideline: guideline.to_owned() };
        [("relevance", RELEVANCE), ("coherence", COHERENCE), ("consistency", CONSISTENCY), ("fluency", FLUENCY)]
            .map(criterion)
    }
}
