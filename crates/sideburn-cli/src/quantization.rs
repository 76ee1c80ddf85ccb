//! What weights are packed in, as flags say it.

use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::Serialize;
use sideburn::prelude::*;

/// What to pack linear layers in.
#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum To {
    /// 4 bits with double quantisation: quantiles of the normal distribution, as in QLoRA
    Nf4,
    /// 4 bits with double quantisation: floating-point numbers
    Fp4,
    /// 8 bits: LLM.int8()
    Int8,
}

impl To {
    pub(crate) fn quantization(self) -> Quantization {
        match self {
            Self::Nf4 => Quantization::NF4,
            Self::Fp4 => Quantization::FP4,
            Self::Int8 => Quantization::INT8,
        }
    }

    /// As the flag has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Int8 => "int8",
        }
    }
}

/// The same where nothing may be packed, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaybeTo(pub(crate) Option<To>);

impl ValueEnum for MaybeTo {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(None), Self(Some(To::Nf4)), Self(Some(To::Fp4)), Self(Some(To::Int8))]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self.0 {
            None => Some(PossibleValue::new("none").help("Floats, 4 bytes each")),
            Some(to) => to.to_possible_value(),
        }
    }
}
