//! What a model is worth in the middle of a run.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use serde::Serialize;
use sideburn_adapters::{Adapters, Pass};
use sideburn_batch::Batch;

use crate::TrainError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What an evaluation has found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluated {
    /// Numbers by their names, such as `loss` or `rouge1`; the log calls them `eval_loss` and `eval_rouge1`.
    pub metrics: BTreeMap<String, f64>,
    /// A few of the texts, for people to read in the log.
    pub samples: Vec<Sample>,
}

/// What a model has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Which example it is about.
    pub id: String,
    /// What was written.
    pub prediction: String,
    /// What a person has written.
    pub reference: String,
}

/// The mean negative log-likelihood of all target tokens of `batches`, in nats, as `loss`, and its exponential as `perplexity`.
/// Nothing is dropped out, and no graph is kept. Batches are worth as much as they have tokens: how examples are put together
/// changes nothing but rounding.
///
/// # Errors
/// Those of the data and the model, and if there is no batch.
pub fn evaluate_loss<M, B, D, L, E>(
    model: &M,
    batches: impl IntoIterator<Item = Result<B, D>>,
    token_losses: L,
) -> Result<Evaluated, TrainError>
where
    M: Adapters,
    B: Batch,
    D: Into<Source>,
    L: Fn(&M, &B, &mut Pass) -> Result<Tensor<1>, E>,
    E: Into<Source>,
{
    let model = model.valid();
    let (mut sum, mut tokens) = (0.0, 0);
    for batch in batches {
        let batch = batch.map_err(|source| TrainError::Evaluation { source: source.into() })?;
        let losses = token_losses(&model, &batch, &mut Pass::evaluate());
        let losses = losses.map_err(|source| TrainError::Evaluation { source: source.into() })?;
        sum += losses.sum().into_scalar::<f64>();
        tokens += batch.loss_tokens();
    }
    if tokens == 0 {
        return Err(TrainError::Evaluation { source: "there is nothing to evaluate".into() });
    }
    let loss = sum / tokens as f64;
    let metrics = [("loss", loss), ("perplexity", loss.exp())].map(|(name, value)| (name.to_owned(), value));
    Ok(Evaluated { metrics: metrics.into(), samples: Vec::new() })
}
