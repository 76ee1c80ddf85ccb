//! The model card that stands beside a saved adapter.

use serde_json::{Value, json};

use crate::method::Method;
use crate::outline::ModelShape;

/// What is shown of an adapter: the fields that a hub reads, its configuration, and how to load it.
pub(crate) fn model_card(method: &dyn Method, shape: &ModelShape) -> String {
    let kind = method.peft_type();
    let mut card = "---\n".to_owned();
    if let Some(base) = &method.meta().base_model_name_or_path {
        // A JSON string is a string of YAML, and of Python too.
        card += &format!("base_model: {}\n", json!(base));
    }
    card += &format!("library_name: peft\ntags:\n- sideburn\n- {}\n---\n\n", kind.to_lowercase());

    let mut fields = method.fields();
    fields.retain(|_, value| *value != Value::Null);
    let fields = serde_json::to_string_pretty(&fields).expect("a JSON value is always printable");
    card += &format!("# {kind} adapter\n\nTrained with Sideburn. Its configuration:\n\n```json\n{fields}\n```\n\n");
    card += "In Rust, with Sideburn, where `base` is the base model:\n\n\
             ```rust\nbase.load_adapter(\"default\", \"path/to/this/directory\")?;\n```\n";
    if kind != "FULL" {
        let class = if shape.encoder_decoder { "AutoModelForSeq2SeqLM" } else { "AutoModelForCausalLM" };
        let base = json!(method.meta().base_model_name_or_path.as_deref().unwrap_or("path/to/the/base"));
        card += &format!(
            "\nIn Python, with `peft`:\n\n```python\nfrom peft import PeftModel\nfrom transformers import {class}\n\n\
             base = {class}.from_pretrained({base})\n\
             model = PeftModel.from_pretrained(base, \"path/to/this/directory\")\n```\n"
        );
    }
    card
}
