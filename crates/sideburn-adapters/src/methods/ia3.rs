//! IA3: learned factors on keys, values and the inside of the feed-forward layer (Liu et al., 2022).

use burn::tensor::Tensor;
use serde_json::{Map, Value};

use crate::fields::{Fields, fields};
use crate::in_peft::PeftDifference;
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::{ModelOutline, Site};
use crate::rule::{BoundLinear, Call, Init, LinearRule, Rule, RuleTensors, TensorSpec, Weights};
use crate::targets::{TargetModules, Targets};
use crate::tensors::in_dtype;
use crate::{AdapterError, Pass};

/// Which layers are scaled; the fields are named as in `peft.IA3Config`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ia3Config {
    /// The layers; those that are usual for the model by default.
    pub targets: Targets,
    /// Those of them whose input is scaled; of the others it is the output.
    pub feedforward_modules: Option<TargetModules>,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl Ia3Config {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        fields.ignore("fan_in_fan_out"); // Says how other kinds of layers store their weights.
        fields.ignore("init_ia3_weights"); // How the factors begin is past.
        Ok(Self {
            targets: Targets::read(fields)?,
            feedforward_modules: fields.optional("feedforward_modules", "a list of names, or a pattern")?,
            meta: AdapterMeta::read(fields)?,
        })
    }
}

impl Method for Ia3Config {
    fn about(&self) -> About<'_> {
        About {
            peft_type: "IA3",
            meta: &self.meta,
            targets: Some(&self.targets),
            combines_with: CanCombineWith::SameKind,
        }
    }

    fn fields(&self) -> Map<String, Value> {
        let mut fields = fields! {
            "feedforward_modules": self.feedforward_modules,
            "fan_in_fan_out": false,
            "init_ia3_weights": true,
        };
        self.targets.write(&mut fields);
        // `peft` has no choice of layers here, and warns of fields that it does not know.
        fields.retain(|field, value| !(field.starts_with("layers_") && value.is_null()));
        fields
    }

    fn differences_in_peft(&self, _model: &ModelOutline) -> Result<Vec<PeftDifference>, AdapterError> {
        let (peft_type, field) = (self.peft_type(), "layers_to_transform");
        let is_chosen = self.targets.layers_to_transform.is_some();
        Ok(is_chosen.then_some(PeftDifference::NoSuchField { peft_type, field }).into_iter().collect())
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let usual = model.shape.usual;
        let sites = self.targets.select(model, Site::is_linear, usual.ia3)?;
        let feedforward = self.feedforward_modules.clone().unwrap_or_else(|| usual.ia3_feedforward.into());
        let of_input = feedforward.matches("feedforward_modules", sites.iter().copied())?;
        let mut plan = Plan::default();
        for (site, of_input) in sites.into_iter().zip(of_input) {
            let [out, input] = site.linear();
            plan.add_linear(site, Ia3Rule { width: if of_input { input } else { out }, of_input });
        }
        Ok(plan)
    }
}

/// `ia3_l`: `[1, in]` scales the input of a layer, `[out, 1]` its output.
#[derive(Clone, Debug)]
struct Ia3Rule {
    width: usize,
    of_input: bool,
}

impl Rule for Ia3Rule {
    fn tensors(&self) -> Vec<TensorSpec> {
        let shape = if self.of_input { [1, self.width] } else { [self.width, 1] };
        vec![TensorSpec::new("ia3_l", shape, Init::Ones)]
    }
}

impl LinearRule for Ia3Rule {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundLinear + '_> {
        let factors = own.get("ia3_l");
        if self.of_input { Box::new(InputScale(factors)) } else { Box::new(OutputScale(factors)) }
    }
}

/// `[1, in]`.
struct InputScale(Tensor<2>);

impl BoundLinear for InputScale {
    fn input(&self, x: Tensor<2>) -> Tensor<2> {
        let dtype = x.dtype();
        x * in_dtype(self.0.clone(), dtype)
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        Ok(Weights { weight: base.weight * self.0.clone(), ..base })
    }
}

/// `[out, 1]`.
struct OutputScale(Tensor<2>);

impl BoundLinear for OutputScale {
    fn output(&self, y: Tensor<2>, _call: &Call<'_>, _pass: &mut Pass) -> Tensor<2> {
        let dtype = y.dtype();
        y * in_dtype(self.0.clone().transpose(), dtype)
    }

    fn merge(&self, base: Weights) -> Result<Weights, &'static str> {
        let bias = base.bias.map(|bias| bias * self.0.clone().transpose());
        Ok(Weights { weight: base.weight * self.0.clone(), bias })
    }
}
