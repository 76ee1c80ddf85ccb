//! Which feed-forward layer a configuration asks for.

use std::fmt;

use sideburn_nn::Activation;

/// The feed-forward layer: `wo(f(wi x))`, or gated `wo(f(wi_0 x) * wi_1 x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedForward {
    /// The function `f`.
    pub activation: Activation,
    /// Whether a second projection is multiplied with what the function gives.
    pub gated: bool,
}

impl FeedForward {
    /// That of T5 1.0.
    pub const RELU: Self = Self { activation: Activation::Relu, gated: false };
    /// That of T5 1.1, FLAN-T5 and mT5: `gated-gelu`, with the tanh approximation.
    pub const GATED_GELU: Self = Self { activation: Activation::GeluNew, gated: true };

    /// Reads the three fields of a configuration as `T5Config` of `transformers` does: `feed_forward_proj` is `FUNCTION`
    /// or `gated-FUNCTION`, `gated-gelu` means `gelu_new`, and then `dense_act_fn` and `is_gated_act` override it.
    ///
    /// The error is a message that names the field.
    pub(crate) fn read(
        feed_forward_proj: &str,
        dense_act_fn: Option<&str>,
        is_gated_act: Option<bool>,
    ) -> Result<Self, String> {
        let (gated, name) = match feed_forward_proj.split_once('-') {
            None => (false, feed_forward_proj),
            Some(("gated", name)) if !name.contains('-') => (true, name),
            Some(_) => {
                return Err(format!(
                    "`feed_forward_proj` is {feed_forward_proj:?}, expected the name of a function, or gated- before it"
                ));
            }
        };
        let name = if feed_forward_proj == "gated-gelu" { "gelu_new" } else { name };
        let (field, found, name) = match dense_act_fn {
            Some(name) => ("dense_act_fn", name, name),
            None => ("feed_forward_proj", feed_forward_proj, name),
        };
        let Some(activation) = Activation::from_name(name) else {
            let names = Activation::names();
            return Err(format!("`{field}` is {found:?}, a function that this crate does not have; it has {names}"));
        };
        Ok(Self { activation, gated: is_gated_act.unwrap_or(gated) })
    }
}

/// What `feed_forward_proj` says; `gated-gelu` stands for both forms of GELU, which `dense_act_fn` tells apart.
impl fmt::Display for FeedForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.gated, self.activation) {
            (true, Activation::Gelu | Activation::GeluNew) => f.write_str("gated-gelu"),
            (true, activation) => write!(f, "gated-{}", activation.name()),
            (false, activation) => f.write_str(activation.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_fields_are_read_as_transformers_reads_them() {
        let layer = |activation, gated| FeedForward { activation, gated };
        for (proj, act_fn, is_gated, expected) in [
            ("relu", None, None, FeedForward::RELU),
            ("gated-gelu", None, None, FeedForward::GATED_GELU),
            ("gelu", None, None, layer(Activation::Gelu, false)),
            ("gated-silu", None, None, layer(Activation::Silu, true)),
            ("gated-swish", None, None, layer(Activation::Silu, true)),
            ("gated-gelu_pytorch_tanh", None, None, FeedForward::GATED_GELU),
            ("gated-gelu", Some("gelu"), Some(true), layer(Activation::Gelu, true)),
            ("relu", Some("silu"), None, layer(Activation::Silu, false)),
            ("relu", None, Some(true), layer(Activation::Relu, true)),
            ("gated-gelu", Some("gelu_new"), Some(false), layer(Activation::GeluNew, false)),
            // What is overridden need not be known.
            ("gated-mish", Some("relu"), None, layer(Activation::Relu, true)),
        ] {
            assert_eq!(FeedForward::read(proj, act_fn, is_gated), Ok(expected), "{proj}, {act_fn:?}, {is_gated:?}");
        }
    }

    #[test]
    fn other_functions_are_refused_by_the_field() {
        let error = |proj, act_fn| FeedForward::read(proj, act_fn, None).unwrap_err();
        assert_eq!(
            error("gated-mish", None),
            "`feed_forward_proj` is \"gated-mish\", a function that this crate does not have; it has relu, gelu, \
             gelu_new, gelu_pytorch_tanh, silu, swish"
        );
        assert!(error("relu", Some("quick_gelu")).starts_with("`dense_act_fn` is \"quick_gelu\", a function"));
        let malformed = "expected the name of a function, or gated- before it";
        assert_eq!(error("gate-gelu", None), format!("`feed_forward_proj` is \"gate-gelu\", {malformed}"));
        assert_eq!(error("gated-a-b", None), format!("`feed_forward_proj` is \"gated-a-b\", {malformed}"));
    }
}
