//! What all ranks must have alike, and errors of one that end all.

use serde_json::Value;
use sha2::{Digest, Sha256};
use sideburn_adapters::{Adapters, Parameter, parameters};

use super::{RankError, Ranks};
use crate::checkpoint::values;
use crate::{Control, Run, TrainError};

/// The first rank that has failed, and its message; none if none has. `own` is the message of this rank, if it has failed.
///
/// Whatever may go wrong on one rank alone is told by this to the others before they go on, since they would wait for it
/// for ever.
///
/// # Errors
/// If a rank is gone.
pub fn first_failure(ranks: &dyn Ranks, own: Option<&str>) -> Result<Option<(usize, String)>, RankError> {
    Ok(failure_or_stop(ranks, own, false)?.0)
}

/// The same, and whether a rank wants to stop.
fn failure_or_stop(
    ranks: &dyn Ranks,
    own: Option<&str>,
    stops: bool,
) -> Result<(Option<(usize, String)>, bool), RankError> {
    let mut numbers = [own.is_some(), stops].map(|truth| if truth { 1.0 } else { 0.0 });
    ranks.sum(&mut numbers)?;
    let [failed, stops] = numbers.map(|number| number != 0.0);
    if !failed {
        return Ok((None, stops));
    }
    // A message may be empty, and still be one.
    let messages = ranks.gather(own.map(|own| format!("!{own}")).unwrap_or_default().as_bytes())?;
    let first = messages.iter().enumerate().find(|(_, message)| !message.is_empty());
    Ok((first.map(|(rank, message)| (rank, String::from_utf8_lossy(&message[1..]).into_owned())), stops))
}

/// `result`, if it is none of an error on any rank; else the error of this rank, or that of the first that has one.
pub(crate) fn agree<T>(ranks: &dyn Ranks, result: Result<T, TrainError>) -> Result<T, TrainError> {
    agree_on(ranks, result, |_| false).map(|(value, _)| value)
}

/// The same; and to stop, if one rank wants to.
pub(crate) fn agree_to_stop(ranks: &dyn Ranks, control: Result<Control, TrainError>) -> Result<Control, TrainError> {
    let (_, stops) = agree_on(ranks, control, |control| *control == Control::Stop)?;
    Ok(if stops { Control::Stop } else { Control::GoOn })
}

fn agree_on<T>(
    ranks: &dyn Ranks,
    result: Result<T, TrainError>,
    stops: impl Fn(&T) -> bool,
) -> Result<(T, bool), TrainError> {
    let stops = result.as_ref().is_ok_and(stops);
    // Where the others cannot be reached, they know as much.
    if ranks.count() == 1 || matches!(result, Err(TrainError::Ranks(_))) {
        return result.map(|value| (value, stops));
    }
    let own = result.as_ref().err().map(ToString::to_string);
    match (failure_or_stop(ranks, own.as_deref(), stops)?, result) {
        ((Some((rank, message)), _), Ok(_)) => Err(RankError::Failed { rank, message }.into()),
        ((_, stops), result) => result.map(|value| (value, stops)),
    }
}

/// Sees to it that all ranks have the same of everything that is named: `("data", a hash of it)`. Objects in JSON are compared
/// field by field.
///
/// # Errors
/// If one has something else than rank 0; the error names the first such rank, and what it has.
pub fn check_same(ranks: &dyn Ranks, named: &[(&str, String)]) -> Result<(), RankError> {
    if ranks.count() == 1 {
        return Ok(());
    }
    let own: Vec<&String> = named.iter().map(|(_, text)| text).collect();
    let all = ranks.gather(&serde_json::to_vec(&own).expect("texts"))?;
    let texts = |rank: usize| -> Vec<String> { serde_json::from_slice(&all[rank]).unwrap_or_default() };
    let of_first = texts(0);
    for rank in 1..all.len() {
        let of_rank = texts(rank);
        if of_rank.len() != of_first.len() {
            let shown = |of: &[String]| format!("{} things to compare", of.len());
            return Err(RankError::OutOfStep { rank, found: shown(&of_rank), expected: shown(&of_first) });
        }
        for ((what, _), (expected, found)) in named.iter().zip(of_first.iter().zip(of_rank)) {
            if *expected != found {
                let (expected, found) = difference(expected, found);
                return Err(RankError::Differs { rank, what: (*what).to_owned(), found, expected });
            }
        }
    }
    Ok(())
}

/// How two texts differ: of objects in JSON the first field that does.
fn difference(expected: &str, found: String) -> (String, String) {
    let object = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    let (Some(one), Some(other)) = (object(expected), object(&found)) else { return (expected.to_owned(), found) };
    let differs = |name: &&String| one.get(*name) != other.get(*name);
    let names = one.as_object().into_iter().chain(other.as_object()).flat_map(|fields| fields.keys());
    let Some(name) = names.clone().find(differs) else { return (expected.to_owned(), found) };
    let shown = |of: &Value| format!("`{name}` is {}", of.get(name).map_or("nothing".to_owned(), Value::to_string));
    (shown(&one), shown(&other))
}

/// Sees to it that all ranks begin a run with the same settings, base, trained weights and step, and have something to do each.
pub(crate) fn check_run<M: Adapters>(ranks: &dyn Ranks, run: &Run<M>, model: &M) -> Result<(), TrainError> {
    let (count, batches) = (ranks.count(), run.config().gradient_accumulation_steps);
    if batches < count as u64 {
        let message = format!(
            "`gradient_accumulation_steps` is {batches}, and there are {count} ranks, each of which wants a micro-batch of its \
             own in a step; set it to {count} or more, or start fewer ranks"
        );
        return Err(TrainError::Contradiction { message });
    }
    if count == 1 {
        return Ok(());
    }
    let settings = serde_json::to_string(run.config()).expect("a struct of plain fields");
    Ok(check_same(
        ranks,
        &[
            ("settings", settings),
            ("a base model", model.fingerprint()),
            ("a number of steps that are made", run.next_step().to_string()),
            ("trained weights", trained_hash(model)),
        ],
    )?)
}

/// Sees to it that all ranks still have the same trained weights.
pub(crate) fn check_weights<M: Adapters>(ranks: &dyn Ranks, run: &Run<M>, model: &M) -> Result<(), TrainError> {
    if ranks.count() == 1 {
        return Ok(());
    }
    let all = ranks.gather(trained_hash(model).as_bytes())?;
    match all.iter().position(|hash| *hash != all[0]) {
        Some(rank) => Err(RankError::Diverged { rank, steps: run.next_step() }.into()),
        None => Ok(()),
    }
}

/// A hash of the trained weights of adapters, and of some of those of the base, if that is trained.
fn trained_hash<M: Adapters>(model: &M) -> String {
    let mut hash = Sha256::new();
    let trained = parameters(model).into_iter().filter(Parameter::is_trainable);
    for parameter in trained.filter(|parameter| parameter.adapter.is_some()) {
        hash.update(parameter.whole_name());
        hash.update(values(parameter.tensor).into_data().as_bytes());
    }
    hash.update(model.fingerprint());
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
