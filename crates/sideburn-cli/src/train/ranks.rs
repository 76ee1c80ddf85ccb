//! A run that several processes make together.

use anyhow::anyhow;
use serde_json::Value;
use sideburn::train::{RankError, Ranks, first_failure};

use super::settings::Settings;
use crate::report::chain;

/// What each rank finds elsewhere, or may.
const OF_A_RANK: [&str; 3] = ["model", "data", "token_cache"];

/// `result`, if no rank has failed; else the error of this rank, or that of the first that has.
pub(super) fn agree<T>(ranks: &dyn Ranks, result: anyhow::Result<T>) -> anyhow::Result<T> {
    let own = result.as_ref().err().map(chain);
    match (first_failure(ranks, own.as_deref())?, result) {
        (Some((rank, message)), Ok(_)) => Err(anyhow!(RankError::Failed { rank, message })),
        (_, result) => result,
    }
}

/// Sees to it that all ranks make the same run: settings but for paths, base, and data.
pub(super) fn check_same(ranks: &dyn Ranks, settings: &Settings, base: &str, data: &str) -> Result<(), RankError> {
    let mut settings = serde_json::to_value(settings).expect("plain fields");
    if let Value::Object(fields) = &mut settings {
        fields.retain(|name, _| !OF_A_RANK.contains(&name.as_str()));
    }
    let named = [("settings", settings.to_string()), ("a base model", base.to_owned()), ("data", data.to_owned())];
    sideburn::train::check_same(ranks, &named)
}

/// The settings with the micro-batches of the rank that has memory for the fewest examples.
pub(super) fn smallest_batch_size(ranks: &dyn Ranks, mut settings: Settings) -> anyhow::Result<Settings> {
    let own = [settings.per_device_train_batch_size as u64, settings.training.gradient_accumulation_steps];
    let all = ranks.gather(&serde_json::to_vec(&own)?)?;
    let all = all.iter().map(|found| serde_json::from_slice(found)).collect::<Result<Vec<[u64; 2]>, _>>()?;
    let [examples, micro_batches] = all.into_iter().min().unwrap_or(own);
    settings.per_device_train_batch_size = examples as usize;
    settings.training.gradient_accumulation_steps = micro_batches;
    Ok(settings)
}
