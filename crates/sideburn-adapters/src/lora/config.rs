//! The configuration of LoRA, and its form in `adapter_config.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::TargetModules;
use crate::AdapterError;

/// Which biases are trained beside the factors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraBias {
    /// None of them.
    #[default]
    None,
}

/// What to adapt and how; the fields are named as in `peft.LoraConfig`.
///
/// ```
/// use sideburn_adapters::LoraConfig;
///
/// let config = LoraConfig { r: 32, lora_alpha: 64.0, lora_dropout: 0.05, ..LoraConfig::new(["q", "v"]) };
/// assert_eq!(config.scaling(), 2.0);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// The rank of the update.
    pub r: usize,
    /// The numerator of the scaling `lora_alpha / r`.
    pub lora_alpha: f64,
    /// The probability with which an element of the branch's input is dropped in training.
    pub lora_dropout: f64,
    /// Which linear layers are adapted.
    pub target_modules: TargetModules,
    /// Which biases are trained.
    pub bias: LoraBias,
    /// The task, in the words of `peft`; only recorded.
    pub task_type: Option<String>,
    /// The base model that the adapter was trained on; only recorded.
    pub base_model_name_or_path: Option<String>,
}

impl LoraConfig {
    /// `peft`'s defaults: r 8, alpha 8, no dropout, no task.
    pub fn new(target_modules: impl Into<TargetModules>) -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: target_modules.into(),
            bias: LoraBias::None,
            task_type: None,
            base_model_name_or_path: None,
        }
    }

    /// What the product of the factors is multiplied by: `lora_alpha / r`.
    pub fn scaling(&self) -> f64 {
        self.lora_alpha / self.r as f64
    }

    /// Refuses values that mean nothing.
    ///
    /// # Errors
    /// If `r` is 0, `lora_alpha` is not finite, or `lora_dropout` is not in `[0, 1)`.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let invalid = |field, found: String, expected| Err(AdapterError::InvalidField { field, found, expected });
        if self.r == 0 {
            return invalid("r", "0".into(), "a rank of at least 1");
        }
        if !self.lora_alpha.is_finite() {
            return invalid("lora_alpha", self.lora_alpha.to_string(), "a finite number");
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return invalid("lora_dropout", self.lora_dropout.to_string(), "a probability in [0, 1)");
        }
        Ok(())
    }

    /// The content of `adapter_config.json`, as `peft` writes it for inference.
    pub fn to_json(&self) -> Value {
        let alpha = if self.lora_alpha.fract() == 0.0 && self.lora_alpha.abs() < 1e15 {
            json!(self.lora_alpha as i64)
        } else {
            json!(self.lora_alpha)
        };
        let mut fields = json!({
            "peft_type": "LORA",
            "task_type": self.task_type,
            "base_model_name_or_path": self.base_model_name_or_path,
            "inference_mode": true,
            "r": self.r,
            "lora_alpha": alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": self.target_modules,
            "bias": self.bias,
            "init_lora_weights": true,
        });
        if let Value::Object(fields) = &mut fields {
            for (field, neutral) in neutral_fields() {
                fields.entry(field).or_insert(neutral);
            }
        }
        fields
    }

    /// Reads the content of `adapter_config.json`.
    ///
    /// Fields of other `peft` versions pass while they hold their neutral value (null, false, or empty).
    ///
    /// # Errors
    /// If a field is missing, ill-typed or out of range, or asks for something that would change the result and is not
    /// supported.
    pub fn from_json(value: &Value) -> Result<Self, AdapterError> {
        let fields = value.as_object().ok_or(AdapterError::InvalidField {
            field: "(the whole file)",
            found: kind(value).to_owned(),
            expected: "a JSON object",
        })?;
        match fields.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            found => return Err(AdapterError::UnsupportedField { field: "peft_type".into(), value: shown(found) }),
        }
        refuse_unsupported(fields)?;
        let config = Self {
            r: field(fields, "r", "a rank of at least 1")?,
            lora_alpha: field(fields, "lora_alpha", "a number")?,
            lora_dropout: optional(fields, "lora_dropout", "a probability in [0, 1)")?.unwrap_or(0.0),
            target_modules: field(fields, "target_modules", "a list of names, a pattern, or \"all-linear\"")?,
            bias: LoraBias::None,
            task_type: optional(fields, "task_type", "a string")?,
            base_model_name_or_path: optional(fields, "base_model_name_or_path", "a string")?,
        };
        config.validate()?;
        Ok(config)
    }
}

/// Fields that say something about the file or its origin, but nothing about the result.
const DESCRIPTIVE: [&str; 9] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "auto_mapping",
    "revision",
    "peft_version",
    "megatron_core",
    "qalora_group_size",
];

/// Fields that this crate reads.
const READ: [&str; 4] = ["r", "lora_alpha", "lora_dropout", "target_modules"];

/// What `peft` writes for features that are not in use.
fn neutral_fields() -> [(&'static str, Value); 12] {
    [
        ("alpha_pattern", json!({})),
        ("auto_mapping", Value::Null),
        ("exclude_modules", Value::Null),
        ("fan_in_fan_out", json!(false)),
        ("layers_pattern", Value::Null),
        ("layers_to_transform", Value::Null),
        ("lora_bias", json!(false)),
        ("modules_to_save", Value::Null),
        ("rank_pattern", json!({})),
        ("revision", Value::Null),
        ("use_dora", json!(false)),
        ("use_rslora", json!(false)),
    ]
}

fn refuse_unsupported(fields: &Map<String, Value>) -> Result<(), AdapterError> {
    for (field, value) in fields {
        if DESCRIPTIVE.contains(&field.as_str()) || READ.contains(&field.as_str()) {
            continue;
        }
        let neutral = match (field.as_str(), value) {
            // How the factors were initialised is past, unless the initialisation changed the base as well.
            ("init_lora_weights", Value::Bool(_)) => true,
            ("init_lora_weights", Value::String(name)) => matches!(name.as_str(), "gaussian" | "orthogonal"),
            ("bias", Value::String(bias)) => bias == "none",
            // PEFT 0.3 wrote `enable_lora: null` and `merge_weights: false`.
            (_, Value::Null | Value::Bool(false)) => true,
            (_, Value::Object(map)) => map.is_empty(),
            (_, Value::Array(list)) => list.is_empty(),
            _ => false,
        };
        if !neutral {
            return Err(AdapterError::UnsupportedField { field: field.clone(), value: value.to_string() });
        }
    }
    Ok(())
}

fn field<T: serde::de::DeserializeOwned>(
    fields: &Map<String, Value>,
    name: &'static str,
    expected: &'static str,
) -> Result<T, AdapterError> {
    optional(fields, name, expected)?.ok_or(AdapterError::InvalidField {
        field: name,
        found: "nothing".into(),
        expected,
    })
}

fn optional<T: serde::de::DeserializeOwned>(
    fields: &Map<String, Value>,
    name: &'static str,
    expected: &'static str,
) -> Result<Option<T>, AdapterError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|_| AdapterError::InvalidField {
            field: name,
            found: value.to_string(),
            expected,
        }),
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LoraConfig {
        LoraConfig { r: 4, lora_alpha: 6.5, lora_dropout: 0.1, ..LoraConfig::new(["q", "v"]) }
    }

    #[test]
    fn json_round_trip() {
        assert_eq!(LoraConfig::from_json(&config().to_json()).unwrap(), config());
    }

    #[test]
    fn values_without_meaning_are_refused() {
        let message = |config: LoraConfig| config.validate().unwrap_err().to_string();
        assert_eq!(
            message(LoraConfig { r: 0, ..config() }),
            "`r` is 0, expected a rank of at least 1; correct the configuration"
        );
        assert!(message(LoraConfig { lora_dropout: 1.0, ..config() }).starts_with("`lora_dropout` is 1,"));
        assert!(message(LoraConfig { lora_alpha: f64::NAN, ..config() }).starts_with("`lora_alpha` is NaN,"));
    }

    #[test]
    fn fields_that_change_the_result_are_refused_by_name() {
        let with = |field: &str, value: Value| {
            let mut json = config().to_json();
            json[field] = value;
            LoraConfig::from_json(&json)
        };
        for (field, value) in [
            ("use_rslora", json!(true)),
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("rank_pattern", json!({"q": 2})),
            ("modules_to_save", json!(["lm_head"])),
            ("init_lora_weights", json!("pissa")),
            ("peft_type", json!("IA3")),
            ("a_field_of_the_future", json!(3)),
        ] {
            let error = with(field, value).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
        for (field, value) in
            [("a_field_of_the_future", Value::Null), ("enable_lora", Value::Null), ("loftq_config", json!({}))]
        {
            assert!(with(field, value).is_ok(), "{field} holds its neutral value");
        }
        assert!(with("r", json!(-1)).unwrap_err().to_string().starts_with("`r` is -1,"));
        assert!(
            with("target_modules", Value::Null).unwrap_err().to_string().starts_with("`target_modules` is nothing")
        );
        assert!(LoraConfig::from_json(&json!([])).unwrap_err().to_string().contains("a list"));
    }
}
