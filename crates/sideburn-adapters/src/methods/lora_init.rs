//! How the factors of LoRA begin: at random, or as a part of the base weight.

use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Tensor};
use serde_json::{Value, json};
use sideburn_kernels::{Key, matmul};

use super::checks::check;
use crate::AdapterError;
use crate::fields::Fields;
use crate::linalg::{Svd, orthonormal, wide};
use crate::outline::{Site, SiteKind};
use crate::rule::{Init, TensorSpec};

/// How the factors begin.
///
/// With PiSSA and OLoRA they begin as a part of the base weight, and what is left of it stays frozen. `peft` changes the
/// base for that. Here it stays as it is: the adapter keeps the first values of its factors, `A_0` and `B_0`, and a layer
/// computes `W x + s (B A - B_0 A_0) x`. Files hold `A` and `B` alone; when they are read, the part is taken out of the
/// base again, as in `peft`. [`to_plain_lora`](crate::Adapters::to_plain_lora) makes LoRA of such an adapter that needs no more than
/// its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoraInit {
    /// A uniform in `±1 / sqrt(in)`, which is PyTorch's `kaiming_uniform_(a=sqrt(5))`, and B zero.
    #[default]
    Default,
    /// A normal with deviation `1 / r`, and B zero.
    Gaussian,
    /// Both as PyTorch makes new layers, so that the adapter changes the output from the first; for tests.
    Random,
    /// PiSSA (Meng et al., 2024): of `W = U S V^T` the `r` largest singular values, `A = sqrt(S / s) V^T` and
    /// `B = U sqrt(S / s)`.
    Pissa {
        /// Rounds of randomised subspace iteration, which is much faster for large layers: `pissa_niter_N`. All singular
        /// values are computed if `None`.
        ///
        /// What is drawn follows from the key with which the adapter is attached. As a file does not hold it, such an
        /// adapter cannot be saved before it is converted.
        iterations: Option<usize>,
    },
    /// OLoRA (Büyükakyüz, 2024): of `W = Q R` the first `r` columns and rows, `B = Q` and `A = R`.
    Olora,
}

impl LoraInit {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        let value = fields.value("init_lora_weights").unwrap_or(&Value::Null);
        let init = match value {
            Value::Null | Value::Bool(true) => Some(Self::Default),
            Value::Bool(false) => Some(Self::Random),
            Value::String(name) => Self::named(name),
            _ => None,
        };
        init.ok_or_else(|| AdapterError::UnsupportedField {
            field: "init_lora_weights".into(),
            value: value.to_string(),
        })
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gaussian" => Self::Gaussian,
            // How it begins is past, and it left the base as it was. LoftQ, CorDA and LoRA-GA did not.
            "orthogonal" | "eva" => Self::Default,
            name if name.eq_ignore_ascii_case("mica") => Self::Default,
            name if name.eq_ignore_ascii_case("olora") => Self::Olora,
            "pissa" => Self::Pissa { iterations: None },
            _ => Self::Pissa { iterations: Some(name.strip_prefix("pissa_niter_")?.parse().ok()?) },
        })
    }

    pub(super) fn to_json(self) -> Value {
        match self {
            Self::Default => json!(true),
            Self::Random => json!(false),
            Self::Gaussian => json!("gaussian"),
            Self::Pissa { iterations: None } => json!("pissa"),
            Self::Pissa { iterations: Some(iterations) } => json!(format!("pissa_niter_{iterations}")),
            Self::Olora => json!("olora"),
        }
    }

    /// Whether the factors begin as a part of the base weight.
    pub(crate) fn is_part_of_base(self) -> bool {
        matches!(self, Self::Pissa { .. } | Self::Olora)
    }

    /// Refuses a layer that has no such part.
    pub(super) fn check(self, site: &Site, r: usize, scaling: f64) -> Result<(), AdapterError> {
        let SiteKind::Linear { out, input, .. } = site.kind else { return Ok(()) };
        if !self.is_part_of_base() {
            return Ok(());
        }
        let at = |value: String| format!("{value} for {}, which is [{out}, {input}]", site.name);
        check("r", at(r.to_string()), r <= out.min(input), "at most the smaller dimension, to be a part of the layer")?;
        check("lora_alpha", at(scaling.to_string()), scaling > 0.0, "a positive scaling, to take its root")
    }

    /// The factors at a linear layer and, if they begin as a part of its weight, frozen copies of what they begin as.
    pub(super) fn tensors(self, [out, input]: [usize; 2], r: usize, scaling: f64) -> Vec<TensorSpec> {
        let (a, b) = match self {
            Self::Default => (Init::kaiming(input), Init::Zeros),
            Self::Gaussian => (Init::Normal(1.0 / r as f64), Init::Zeros),
            Self::Random => (Init::kaiming(input), Init::kaiming(r)),
            Self::Pissa { .. } | Self::Olora => {
                // All four tensors are copies of two, which are computed once.
                let part = Arc::new(OnceLock::new());
                let [a, b] = [0, 1].map(|index| {
                    let part = part.clone();
                    Init::from_base_and_key(move |base, key| {
                        part.get_or_init(|| self.part(base.weight, r, scaling, key))[index].clone()
                    })
                });
                (a, b)
            }
        };
        let a = TensorSpec::new("lora_A.weight", [r, input], a);
        let b = TensorSpec::new("lora_B.weight", [out, r], b).second_factor();
        let initial = |spec: &TensorSpec, part: &'static str| TensorSpec {
            part: part.into(),
            ..spec.clone().frozen().not_stored()
        };
        match self.is_part_of_base() {
            true => vec![a.clone(), b.clone(), initial(&a, "initial_A"), initial(&b, "initial_B")],
            false => vec![a, b],
        }
    }

    /// The factors `A [r, in]` and `B [out, r]` of a part of `weight [out, in]`.
    fn part(self, weight: Tensor<2>, r: usize, scaling: f64, key: Key) -> [Tensor<2>; 2] {
        let differentiates = weight.device().is_autodiff();
        let weight = wide(weight);
        let factors = if let Self::Pissa { iterations } = self {
            let svd = match iterations {
                None => Svd::of(weight),
                Some(rounds) => Svd::sketched(weight, r, rounds, key),
            };
            let Svd { u, s, vt } = svd.leading(r);
            let root = s.div_scalar(scaling).sqrt();
            [vt * root.clone().transpose(), u * root]
        } else {
            let q = orthonormal(weight.clone().narrow(1, 0, r));
            [matmul(q.clone().transpose(), weight), q]
        };
        factors.map(|factor| {
            let factor = factor.cast(DType::F32);
            if differentiates { factor.autodiff() } else { factor }
        })
    }
}
