//! Trainable tokens: new embeddings for a few tokens, as for those added to a vocabulary.

use std::collections::BTreeSet;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use serde_json::{Map, Value};
use sideburn_kernels::{embedding, matmul};

use crate::fields::{Fields, fields};
use crate::in_peft::PeftDifference;
use crate::method::{About, AdapterMeta, CanCombineWith, Method, Plan};
use crate::outline::{ModelOutline, Site, SiteKind};
use crate::rule::{BoundTable, Init, Rule, RuleTensors, TableRule, TensorSpec, Weights};
use crate::tensors::in_dtype;
use crate::{AdapterError, Pass};

/// Which tokens get embeddings of their own; named as in `peft.TrainableTokensConfig`.
///
/// Where the embedding is the output head as well, the head has them too. An output head of its own is not touched:
/// there `peft` 0.21 with transformers 5 writes the embeddings over the head's rows, whose scale is another, since it takes
/// every T5 for tied. Its files are read and written; its outputs differ in the logits of these tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainableTokensConfig {
    /// The tokens.
    pub token_indices: Vec<usize>,
    /// The fields that every method has.
    pub meta: AdapterMeta,
}

impl TrainableTokensConfig {
    /// Of these tokens.
    pub fn new(token_indices: impl Into<Vec<usize>>) -> Self {
        Self { token_indices: token_indices.into(), meta: AdapterMeta::default() }
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, AdapterError> {
        // There is one embedding, whatever the file calls it.
        for field in ["target_modules", "init_weights"] {
            fields.ignore(field);
        }
        Ok(Self {
            token_indices: fields.required("token_indices", "a list of token ids")?,
            meta: AdapterMeta::read(fields)?,
        })
    }
}

impl Method for TrainableTokensConfig {
    fn about(&self) -> About<'_> {
        About { peft_type: "TRAINABLE_TOKENS", meta: &self.meta, targets: None, combines_with: CanCombineWith::Alone }
    }

    fn fields(&self) -> Map<String, Value> {
        fields! { "token_indices": self.token_indices, "init_weights": true }
    }

    fn differences_in_peft(&self, model: &ModelOutline) -> Result<Vec<PeftDifference>, AdapterError> {
        Ok(model.head_taken_for_embedding().into_iter().collect())
    }

    fn plan(&self, model: &ModelOutline) -> Result<Plan, AdapterError> {
        let mut plan = Plan::default();
        for site in model.sites.iter().filter(|site| site.is_embedding()) {
            let copies = model.shape.embedding_copies;
            plan.add_table(
                site,
                TokenRows::new(site, ("token_indices", &self.token_indices), "trainable_tokens_delta", copies)?,
            );
        }
        Ok(plan)
    }
}

/// Rows `[tokens, width]` in place of those of a table.
#[derive(Clone, Debug)]
pub(super) struct TokenRows {
    name: &'static str,
    indices: Vec<usize>,
    width: usize,
    /// Places under whose names the file holds the rows once more.
    copies: &'static [&'static str],
}

impl TokenRows {
    /// `indices` stand in `field` of the configuration.
    pub(super) fn new(
        site: &Site,
        (field, indices): (&'static str, &[usize]),
        name: &'static str,
        copies: &'static [&'static str],
    ) -> Result<Self, AdapterError> {
        let SiteKind::Embedding { rows, width } = site.kind else { panic!("{} is no embedding", site.name) };
        let distinct: BTreeSet<usize> = indices.iter().copied().collect();
        if indices.is_empty() || distinct.len() < indices.len() || distinct.last().is_some_and(|last| *last >= rows) {
            return Err(AdapterError::InvalidField {
                field,
                found: format!("{indices:?}"),
                expected: "token ids of the vocabulary, each once",
            });
        }
        Ok(Self { name, indices: indices.to_vec(), width, copies })
    }

    fn index(&self, like: &Tensor<2>) -> Tensor<1, Int> {
        let index: Vec<i32> = self.indices.iter().map(|index| *index as i32).collect();
        Tensor::from_data(TensorData::new(index, [self.indices.len()]), &like.device())
    }
}

impl Rule for TokenRows {
    fn tensors(&self) -> Vec<TensorSpec> {
        let rule = self.clone();
        let rows = move |base: Weights| embedding(base.weight.clone(), rule.index(&base.weight));
        let spec = TensorSpec::new(self.name, [self.indices.len(), self.width], Init::from_base(rows));
        vec![TensorSpec { copies: self.copies.iter().map(|site| (*site).to_owned()).collect(), ..spec }]
    }
}

impl TableRule for TokenRows {
    fn bind(&self, own: &RuleTensors) -> Box<dyn BoundTable + '_> {
        Box::new(BoundRows { rule: self, own: own.get(self.name) })
    }
}

struct BoundRows<'a> {
    rule: &'a TokenRows,
    own: Tensor<2>,
}

impl BoundRows<'_> {
    /// `table` with these rows in it.
    fn put(&self, table: Tensor<2>, rows: Tensor<2>, dim: usize) -> Tensor<2> {
        let index = self.rule.index(&table);
        let there = table.clone().select(dim, index.clone());
        table.select_assign(dim, index, rows - there, IndexingUpdateOp::Add)
    }
}

impl BoundTable for BoundRows<'_> {
    fn rows(&self, rows: Tensor<2>, ids: &Tensor<1, Int>) -> Tensor<2> {
        // `[n, tokens]`: which of the tokens each id is, if any.
        let (dtype, index) = (self.own.dtype(), self.rule.index(&rows).unsqueeze_dim::<2>(0));
        let is = in_dtype(ids.clone().unsqueeze_dim::<2>(1).equal(index).float(), dtype);
        let (outer, rows) = (rows.dtype(), in_dtype(rows, dtype));
        let kept = is.clone().sum_dim(1).neg().add_scalar(1.0);
        in_dtype(rows * kept + matmul(is, self.own.clone()), outer)
    }

    fn scores(&self, scores: Tensor<2>, x: &Tensor<2>, _pass: &mut Pass) -> Tensor<2> {
        let outer = scores.dtype();
        let own_scores = matmul(in_dtype(x.clone(), self.own.dtype()), self.own.clone().transpose());
        self.put(scores, in_dtype(own_scores, outer), 1)
    }

    fn merge(&self, table: Tensor<2>) -> Result<Tensor<2>, &'static str> {
        Ok(self.put(table, self.own.clone(), 0))
    }
}
