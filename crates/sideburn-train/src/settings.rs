//! Settings by their names: read from files and flags, and held against each other.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::TrainError;

/// `settings` with what `given` says in the place of what they say.
///
/// ```
/// use sideburn_train::{TrainConfig, with_settings};
///
/// let given = serde_json::json!({"learning_rate": 1e-3, "save_steps": 50});
/// let config = with_settings(&TrainConfig::new(100), given.as_object().unwrap())?;
/// assert_eq!((config.learning_rate, config.save_steps), (1e-3, 50));
///
/// let given = serde_json::json!({"learning_rte": 1e-3});
/// let error = with_settings(&TrainConfig::new(100), given.as_object().unwrap()).unwrap_err();
/// assert_eq!(error.to_string(), "no setting is called `learning_rte`; the nearest name is `learning_rate`");
/// # Ok::<(), sideburn_train::TrainError>(())
/// ```
///
/// # Errors
/// If a setting is not known, with the nearest name that is, or is of another type; the error names it.
///
/// # Panics
/// If the settings are no struct.
pub fn with_settings<T: Serialize + DeserializeOwned>(
    settings: &T,
    given: &Map<String, Value>,
) -> Result<T, TrainError> {
    let mut all = serde_json::to_value(settings).expect("settings are plain fields");
    let fields = all.as_object_mut().expect("settings are a struct");
    for (name, value) in given {
        let Some(field) = fields.get_mut(name) else {
            let nearest = nearest(name, fields.keys().map(String::as_str)).map(str::to_owned);
            return Err(TrainError::UnknownSetting { name: name.clone(), nearest });
        };
        let before = std::mem::replace(field, value.clone());
        // One by one, so that it is known which is wrong.
        if let Err(error) = serde_json::from_value::<T>(Value::Object(fields.clone())) {
            let expected = error.to_string();
            return Err(TrainError::IllTyped {
                name: name.clone(),
                found: value.to_string(),
                expected,
                before: before.to_string(),
            });
        }
    }
    Ok(serde_json::from_value(all).expect("it was read a moment ago"))
}

/// The one of `known` that somebody may have meant who wrote `name`; none if all are too different.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |known: &str| strsim::damerau_levenshtein(&name.to_lowercase(), known);
    let (distance, nearest) = known.map(|known| (distance(known), known)).min()?;
    (distance <= name.len().div_ceil(3)).then_some(nearest)
}

/// The fields of two objects that are not the same, as "`seed` was 42 and is 1"; but for those that `may_change`.
pub(crate) fn differences(before: &Value, now: &Value, may_change: &[&str]) -> Vec<String> {
    let (Value::Object(before), Value::Object(now)) = (before, now) else { return Vec::new() };
    let names: std::collections::BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let differ =
        names.into_iter().filter(|name| !may_change.contains(&name.as_str()) && before.get(*name) != now.get(*name));
    let shown = |of: &Map<String, Value>, name: &String| of.get(name).map_or("nothing".to_owned(), Value::to_string);
    differ.map(|name| format!("`{name}` was {} and is {}", shown(before, name), shown(now, name))).collect()
}
