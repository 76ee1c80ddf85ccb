//! `quantization_config` of `config.json`.

use serde_json::{Map, Value, json};
use sideburn_weights::Dtype;

use crate::code::QuantType;
use crate::error::QuantError;
use crate::packed::Quantization;

/// How a checkpoint is quantised, as `BitsAndBytesConfig` of `transformers` has it.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationConfig {
    /// What its weights are quantised to. Of a checkpoint that is quantised already, its states say whether scales are
    /// quantised and how large a block is.
    pub quantization: Quantization,
    /// `llm_int8_skip_modules`: the sites that are not, in place of those that `transformers` leaves out by itself.
    pub llm_int8_skip_modules: Option<Vec<String>>,
    /// Whether layers stay floats that the family of models keeps in `f32`, such as `wo` of T5, as in `transformers`. To pack them,
    /// too, is what `_keep_in_fp32_modules = None` does there: FLAN-T5-XXL in 8 bits takes 11.4 GB instead of 17.4.
    pub keep_in_fp32_modules: bool,
    /// `dtype` of `from_pretrained`: what matrices of floats beside packed ones are held in, embeddings and heads. `None` is as a
    /// checkpoint has them. What is computed is `f32`. `quantization_config` does not say it.
    pub dtype: Option<Dtype>,
}

impl From<Quantization> for QuantizationConfig {
    fn from(quantization: Quantization) -> Self {
        Self { quantization, llm_int8_skip_modules: None, keep_in_fp32_modules: true, dtype: None }
    }
}

impl QuantizationConfig {
    /// Reads the `quantization_config` of a parsed `config.json`; `None` if it has none.
    ///
    /// ```
    /// use sideburn_quant::{Quantization, QuantizationConfig};
    ///
    /// let config = serde_json::json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}});
    /// assert_eq!(QuantizationConfig::of_model(&config)?, Some(Quantization::INT8.into()));
    /// let config = serde_json::json!({"quantization_config": {"quant_method": "gptq", "bits": 4}});
    /// assert!(QuantizationConfig::of_model(&config).unwrap_err().to_string().contains("quantised by GPTQ"));
    /// # Ok::<(), sideburn_quant::QuantError>(())
    /// ```
    ///
    /// # Errors
    /// [`UnknownMethod`](QuantError::UnknownMethod) if another library has quantised the weights,
    /// [`Config`](QuantError::Config) if a field is ill-typed or out of range.
    pub fn of_model(config: &Value) -> Result<Option<Self>, QuantError> {
        match config.get("quantization_config") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(fields)) => Self::read(fields).map(Some),
            Some(_) => Err(invalid("expected an object".to_owned())),
        }
    }

    fn read(fields: &Map<String, Value>) -> Result<Self, QuantError> {
        let flag = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(found) => Err(ill_typed(name, found, "true or false")),
        };
        let text = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(found) => Err(ill_typed(name, found, "a string")),
        };
        let [four, eight] = [["load_in_4bit", "_load_in_4bit"], ["load_in_8bit", "_load_in_8bit"]]
            .map(|[public, private]| Ok::<_, QuantError>(flag(public)? || flag(private)?));
        match text("quant_method")? {
            Some("bitsandbytes" | "bitsandbytes_4bit" | "bitsandbytes_8bit") => {}
            // Written before the field was there.
            None if fields.contains_key("load_in_4bit") || fields.contains_key("load_in_8bit") => {}
            None => return Err(invalid("`quant_method` is absent".to_owned())),
            Some(method) => return Err(QuantError::UnknownMethod { method: usual_name(method) }),
        }
        let quantization = match (four?, eight?) {
            (true, false) => Quantization::FourBit {
                quant_type: match text("bnb_4bit_quant_type")? {
                    None => QuantType::Fp4,
                    Some(found) => QuantType::of_name(found)
                        .ok_or_else(|| ill_typed("bnb_4bit_quant_type", &json!(found), "\"nf4\" or \"fp4\""))?,
                },
                block_size: 64,
                double_quant: flag("bnb_4bit_use_double_quant")?,
            },
            (false, true) => {
                if flag("llm_int8_has_fp16_weight")? {
                    let what = "`llm_int8_has_fp16_weight` is true: the weights are f16 and only multiplied in 8 bits, \
                                which is not here; load the model without `quantization_config`";
                    return Err(invalid(what.to_owned()));
                }
                Quantization::Int8 { threshold: threshold(fields)? }
            }
            (four, _) => {
                let both = if four { "both are" } else { "neither is" };
                return Err(invalid(format!("of `load_in_4bit` and `load_in_8bit` {both} true, expected one")));
            }
        };
        let expected = "a list of strings or null";
        let llm_int8_skip_modules = match fields.get("llm_int8_skip_modules") {
            None | Some(Value::Null) => None,
            Some(list) => Some(
                serde_json::from_value(list.clone()).map_err(|_| ill_typed("llm_int8_skip_modules", list, expected))?,
            ),
        };
        Ok(Self { llm_int8_skip_modules, ..quantization.into() })
    }

    /// The object that `transformers` writes as `quantization_config`.
    pub fn to_json(&self) -> Value {
        let (quant_type, double_quant, threshold) = match self.quantization {
            Quantization::FourBit { quant_type, double_quant, .. } => (Some(quant_type), double_quant, 6.0),
            Quantization::Int8 { threshold } => (None, false, threshold),
        };
        let is_four_bit = quant_type.is_some();
        json!({
            "_load_in_4bit": is_four_bit,
            "_load_in_8bit": !is_four_bit,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": quant_type.unwrap_or(QuantType::Fp4).name(),
            "bnb_4bit_use_double_quant": double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": self.llm_int8_skip_modules,
            "llm_int8_threshold": threshold,
            "load_in_4bit": is_four_bit,
            "load_in_8bit": !is_four_bit,
            "quant_method": "bitsandbytes",
        })
    }
}

fn threshold(fields: &Map<String, Value>) -> Result<f32, QuantError> {
    const NAME: &str = "llm_int8_threshold";
    match fields.get(NAME) {
        None | Some(Value::Null) => Ok(6.0),
        Some(found) => match found.as_f64().map(|threshold| threshold as f32) {
            Some(threshold) if threshold >= 0.0 && threshold.is_finite() => Ok(threshold),
            _ => Err(ill_typed(NAME, found, "a number of at least 0")),
        },
    }
}

/// What people call a method, given `quant_method`.
fn usual_name(method: &str) -> String {
    match method {
        "gptq" => "GPTQ",
        "awq" => "AWQ",
        "hqq" => "HQQ",
        "fp8" => "FP8",
        "fbgemm_fp8" => "FP8 (fbgemm_fp8)",
        "compressed-tensors" => "compressed-tensors",
        other => other,
    }
    .to_owned()
}

fn invalid(message: String) -> QuantError {
    QuantError::Config { message }
}

fn ill_typed(name: &str, found: &Value, expected: &str) -> QuantError {
    let found: String = found.to_string().chars().take(60).collect();
    invalid(format!("`{name}` is {found}, expected {expected}"))
}
