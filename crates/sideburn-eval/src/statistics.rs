//! How long texts are, and how much of them is new.

use serde::{Deserialize, Serialize};
use sideburn_data::Example;

use crate::{
    bootstrap::{BootstrapConfig, bootstrap},
    error::EvalError,
    evaluation::Mean,
    words::Words,
};

/// What the texts of a system are like, whatever they are worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Whose texts these are: a system's, or people's, who wrote the `references`.
    pub name: String,
    /// How many of them have no word.
    pub empty: usize,
    /// `words`: how many a text has. `compression`: that, as a share of the words of the dialogue. `novel 1-grams`,
    /// `2-grams` and `3-grams`: the share of the runs of so many words of a text that are not in the dialogue, where a
    /// text has one (See, Liu and Manning, 2017). A measure that no text has is left out.
    pub measures: Vec<Mean>,
}

const NGRAMS: [usize; 3] = [1, 2, 3];

/// The statistics of `texts`, those of an example together. Where an example has several, their mean counts.
pub(crate) fn statistics<'a>(
    name: &str,
    examples: &'a [Example],
    texts: impl Fn(usize) -> &'a [String],
    config: &BootstrapConfig,
) -> Result<Statistics, EvalError> {
    let mut empty = 0;
    let mut columns: Vec<(String, bool, Vec<f64>)> =
        vec![("words".to_owned(), false, Vec::new()), ("compression".to_owned(), true, Vec::new())];
    columns.extend(NGRAMS.map(|n| (format!("novel {n}-grams"), true, Vec::new())));
    for (index, example) in examples.iter().enumerate() {
        let source = Words::new(&example.source());
        let mut measured: Vec<Vec<f64>> = vec![Vec::new(); columns.len()];
        for text in texts(index) {
            let text = Words::new(text);
            empty += usize::from(text.len() == 0);
            measured[0].push(text.len() as f64);
            if source.len() > 0 {
                measured[1].push(text.len() as f64 / source.len() as f64);
            }
            for (n, measured) in NGRAMS.into_iter().zip(&mut measured[2..]) {
                measured.extend(text.novel(n, &source));
            }
        }
        for ((_, _, column), measured) in columns.iter_mut().zip(measured) {
            if !measured.is_empty() {
                column.push(measured.iter().sum::<f64>() / measured.len() as f64);
            }
        }
    }
    let told = columns.into_iter().filter(|(_, _, values)| !values.is_empty());
    let mean = |(name, is_share, values): (String, bool, Vec<f64>)| {
        Ok(Mean { name, is_share, interval: bootstrap(&values, config)? })
    };
    Ok(Statistics { name: name.to_owned(), empty, measures: told.map(mean).collect::<Result<_, EvalError>>()? })
}
