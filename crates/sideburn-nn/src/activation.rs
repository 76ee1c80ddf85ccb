//! The functions inside feed-forward layers.

use burn::tensor::{Tensor, activation};

/// The function inside a feed-forward layer; the names are those of `transformers` (`ACT2FN`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`: T5 1.0.
    Relu,
    /// `x Phi(x)` with the error function: Falcon, and what BLIP-2 asks of its FLAN-T5.
    Gelu,
    /// The tanh approximation of GELU: T5 1.1, FLAN-T5, mT5. `gelu_pytorch_tanh` is the same function.
    GeluNew,
    /// `x / (1 + exp(-x))`: UL2 and FLAN-UL2. `swish` is the same function.
    Silu,
}

impl Activation {
    /// Every name that is read. Of several names of one function, the first is written.
    const NAMES: [(&str, Self); 6] = [
        ("relu", Self::Relu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluNew),
        ("gelu_pytorch_tanh", Self::GeluNew),
        ("silu", Self::Silu),
        ("swish", Self::Silu),
    ];

    /// The function of that name in `transformers`, if there is a form of it here.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, activation)| activation)
    }

    /// Its name in `transformers`.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, activation)| *activation == self).expect("every activation has a name").0
    }

    /// All names that [`from_name`](Self::from_name) knows.
    pub fn names() -> String {
        Self::NAMES.map(|(name, _)| name).join(", ")
    }

    /// The function of each element.
    pub fn apply(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Relu => activation::relu(x),
            Self::Gelu => activation::gelu(x),
            Self::GeluNew => gelu_new(x),
            Self::Silu => activation::silu(x),
        }
    }
}

/// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`; Burn's own raises `x` to the power 3.0, which costs more.
fn gelu_new(x: Tensor<2>) -> Tensor<2> {
    let sqrt_2_over_pi = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
    let cubic = x.clone() * x.clone() * x.clone() * 0.044_715;
    let tanh = ((x.clone() + cubic) * sqrt_2_over_pi).tanh();
    x * (tanh + 1.0) * 0.5
}
