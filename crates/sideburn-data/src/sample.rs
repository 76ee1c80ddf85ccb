//! One dialogue with what people wrote about it.

/// A dialogue and its human summaries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The data set's name for the dialogue, such as `train_17`. Unique within a split.
    pub id: String,
    /// The turns, one a line, with `\n` between them; never blank.
    pub dialogue: String,
    /// One or more summaries, none of them blank. The first is the training target; in evaluation all of them are
    /// the references that an output is scored against.
    pub summaries: Vec<String>,
    /// What the dialogue is about, where the data set says so.
    pub topic: Option<String>,
}

impl Sample {
    /// The training target: the first summary.
    ///
    /// # Panics
    /// If `summaries` was emptied by hand; the readers never make such a sample.
    pub fn summary(&self) -> &str {
        &self.summaries[0]
    }

    /// All human summaries, to score an output against.
    pub fn references(&self) -> &[String] {
        &self.summaries
    }
}
