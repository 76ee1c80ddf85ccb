//! What AdaLoRA does in training: it keeps its vectors orthogonal, and takes ranks away.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Bool, DType, Tensor, TensorData};
use sideburn_kernels::matmul;

use super::adalora_config::AdaLoraConfig;
use crate::method::{Finished, TrainingHook, Updated};
use crate::rule::TensorKey;
use crate::tensors::in_dtype;

/// The training of one adapter: the regularisation of its vectors, and a budget of ranks as in `peft`'s class of that name.
///
/// Of an element `w` with the gradient `g`, the sensitivity `|w g|` is averaged over steps (`I`, with `beta1`), and so is
/// its distance from that average (`U`, with `beta2`); the score of the element is `I U`. The score of rank `k` of a layer
/// is that of `E[k]`, and the means of those of `A[k, :]` and of `B[:, k]`. Between the steps `tinit` and
/// `total_step - tfinal` the number of ranks falls from all to `target_r` for each layer, as the cube of the time left;
/// what is taken away becomes zero in `E`, and may come back until the last cut.
#[derive(Clone, Debug)]
pub(super) struct RankAllocator {
    config: AdaLoraConfig,
    scores: BTreeMap<String, [Smoothed; 3]>,
    /// Which ranks are left, of those that the layers had when training began.
    kept: BTreeMap<String, Vec<bool>>,
}

/// `lora_A`, `lora_B` and `lora_E` of a layer.
const PARTS: [&str; 3] = ["lora_A", "lora_B", "lora_E"];

/// What is kept of a tensor in the state of a run.
const SENSITIVITY: &str = "sensitivity";
/// The other.
const UNCERTAINTY: &str = "uncertainty";

/// Those of every layer, by the layers' names.
fn layers<T>(tensors: BTreeMap<TensorKey, T>) -> BTreeMap<String, [T; 3]> {
    let mut layers: BTreeMap<String, [Option<T>; 3]> = BTreeMap::new();
    for (TensorKey { site, part }, tensor) in tensors {
        if let Some(index) = PARTS.iter().position(|known| *known == part) {
            layers.entry(site).or_default()[index] = Some(tensor);
        }
    }
    let whole = |(layer, [a, b, e]): (_, [Option<T>; 3])| Some((layer, [a?, b?, e?]));
    layers.into_iter().filter_map(whole).collect()
}

/// The name of a part of a layer.
fn key(layer: &str, part: &str) -> TensorKey {
    TensorKey { site: layer.to_owned(), part: part.to_owned() }
}

/// Averages over steps of the sensitivity of each element of a tensor, and of its distance from that average.
#[derive(Clone, Debug)]
struct Smoothed {
    sensitivity: Tensor<2>,
    uncertainty: Tensor<2>,
}

impl Smoothed {
    fn new(like: &Updated) -> Self {
        let zeros = like.value.zeros_like();
        Self { sensitivity: zeros.clone(), uncertainty: zeros }
    }

    fn update(&mut self, tensor: &Updated, config: &AdaLoraConfig) {
        let smooth = |mean: &Tensor<2>, new: Tensor<2>, beta: f64| mean.clone() * beta + new * (1.0 - beta);
        let now = (tensor.value.clone() * tensor.gradient.clone()).abs();
        self.sensitivity = smooth(&self.sensitivity, now.clone(), config.beta1);
        let distance = (now - self.sensitivity.clone()).abs();
        self.uncertainty = smooth(&self.uncertainty, distance, config.beta2);
    }

    fn score(&self) -> Tensor<2> {
        self.sensitivity.clone() * self.uncertainty.clone()
    }
}

/// The score of each rank of a layer.
fn ranked([a, b, e]: &[Smoothed; 3]) -> Vec<f32> {
    let scores = e.score() + (a.score().mean_dim(1) + b.score().mean_dim(0).transpose());
    scores.cast(DType::F32).into_data().try_into_vec().expect("scores that were cast to f32")
}

impl RankAllocator {
    pub(super) fn new(config: &AdaLoraConfig) -> Self {
        Self { config: config.clone(), scores: BTreeMap::new(), kept: BTreeMap::new() }
    }

    /// Keeps the `budget` ranks of the highest scores, and fewer if there are equal ones.
    fn cut(&mut self, budget: usize) {
        let scores: BTreeMap<&String, Vec<f32>> =
            self.scores.iter().map(|(layer, scores)| (layer, ranked(scores))).collect();
        let mut sorted: Vec<f32> = scores.values().flatten().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let highest_lost = sorted.len().checked_sub(budget + 1).map(|index| sorted[index]);
        let is_kept = |score: &f32| highest_lost.is_none_or(|lost| *score > lost);
        self.kept =
            scores.into_iter().map(|(layer, scores)| (layer.clone(), scores.iter().map(is_kept).collect())).collect();
    }

    /// The `rank_pattern` of the adapter, of which layers may have lost ranks before training.
    fn rank_pattern(&self) -> BTreeMap<String, Vec<bool>> {
        let mut pattern = self.config.rank_pattern.clone();
        for (layer, kept) in &self.kept {
            let mut kept = kept.iter();
            let all = pattern.entry(layer.clone()).or_insert_with(|| vec![true; self.config.init_r]);
            all.iter_mut().filter(|had| **had).zip(&mut kept).for_each(|(had, kept)| *had = *kept);
        }
        pattern
    }
}

impl TrainingHook for RankAllocator {
    /// `orth_reg_weight` times the mean, over the `A` and `B` of all layers, of the norms `|A A^T - 1|` and `|B^T B - 1|`.
    fn penalty(&self, tensors: BTreeMap<TensorKey, Tensor<2>>) -> Option<Tensor<1>> {
        let (mut norms, mut factors) = (Vec::new(), 0);
        for [a, b, _] in layers(tensors).into_values() {
            for rows in [a, b.transpose()] {
                factors += 1;
                let [r, _] = rows.dims();
                if r > 0 {
                    let one = in_dtype(Tensor::eye(r, &rows.device()), rows.dtype());
                    let difference = matmul(rows.clone(), rows.transpose()) - one;
                    // The root of zero has no derivative.
                    norms.push(difference.square().sum().add_scalar(1e-30).sqrt());
                }
            }
        }
        let sum = norms.into_iter().reduce(|sum, norm| sum + norm)?;
        Some(sum.mul_scalar(self.config.orth_reg_weight / f64::from(factors)))
    }

    fn after_update(&mut self, step: u64, tensors: BTreeMap<TensorKey, Updated>) -> BTreeMap<TensorKey, Tensor<2>> {
        let (step, layers, last_cut) = (step as usize, layers(tensors), self.config.last_cut());
        if step < last_cut {
            // A layer without ranks has nothing to lose.
            for (layer, parts) in layers.iter().filter(|(_, [a, ..])| a.value.dims()[0] > 0) {
                let begin = || parts.each_ref().map(Smoothed::new);
                let scores = self.scores.entry(layer.clone()).or_insert_with(begin);
                scores.iter_mut().zip(parts).for_each(|(score, tensor)| score.update(tensor, &self.config));
            }
        }
        let first = layers.values().map(|[a, ..]| a.value.dims()[0]).sum();
        match self.config.budget(step, first, self.config.target_r * layers.len()) {
            Some(budget) => self.cut(budget),
            None if step <= last_cut => return BTreeMap::new(),
            None => {}
        }
        if step >= last_cut {
            self.scores.clear();
        }
        let masked = |(layer, kept): (&String, &Vec<bool>)| {
            let [_, _, e] = layers.get(layer)?;
            let lost: Vec<bool> = kept.iter().map(|kept| !kept).collect();
            let lost = Tensor::<2, Bool>::from_data(TensorData::new(lost, [kept.len(), 1]), &e.value.device());
            Some((key(layer, PARTS[2]), e.value.clone().mask_fill(lost, 0.0)))
        };
        self.kept.iter().filter_map(masked).collect()
    }

    /// The adapter with the ranks that are left, in tensors of their own size.
    fn finish(&self, tensors: BTreeMap<TensorKey, Tensor<2>>) -> Option<Finished> {
        if self.kept.is_empty() {
            return None;
        }
        let mut cut = BTreeMap::new();
        let mut layers = layers(tensors);
        for (layer, kept) in &self.kept {
            let Some(parts) = layers.remove(layer) else { continue };
            for (part, tensor) in PARTS.into_iter().zip(parts) {
                let dim = if part == "lora_B" { 1 } else { 0 };
                cut.insert(key(layer, part), of_kept(tensor, kept, dim));
            }
        }
        let config = AdaLoraConfig { rank_pattern: self.rank_pattern(), ..self.config.clone() };
        Some(Finished { method: Arc::new(config), tensors: cut })
    }

    /// Of each layer whether a rank is kept, `LAYER.kept`; and before the last cut the averages of each of its tensors,
    /// `LAYER.lora_A.sensitivity` and `LAYER.lora_A.uncertainty`.
    fn state(&self) -> BTreeMap<String, TensorData> {
        let mut state = BTreeMap::new();
        for (layer, kept) in &self.kept {
            let length = kept.len();
            state.insert(format!("{layer}.kept"), TensorData::new(kept.clone(), [length]));
        }
        for (layer, scores) in &self.scores {
            for (part, Smoothed { sensitivity, uncertainty }) in PARTS.into_iter().zip(scores) {
                for (what, tensor) in [(SENSITIVITY, sensitivity), (UNCERTAINTY, uncertainty)] {
                    state.insert(format!("{layer}.{part}.{what}"), tensor.clone().into_data());
                }
            }
        }
        state
    }

    fn restore(
        &mut self,
        mut state: BTreeMap<String, TensorData>,
        tensors: BTreeMap<TensorKey, Tensor<2>>,
    ) -> Result<(), String> {
        (self.kept, self.scores) = (BTreeMap::new(), BTreeMap::new());
        let layers = layers(tensors);
        let parts_of = |layer: &str| layers.get(layer).ok_or_else(|| format!("the adapter has no layer {layer:?}"));
        while let Some((name, data)) = state.pop_first() {
            let unknown = || format!("{name:?} is unknown");
            let (layer, last) = name.rsplit_once('.').ok_or_else(unknown)?;
            if last == "kept" {
                let kept: Vec<bool> = data.try_into_vec().map_err(|_| format!("{name:?} holds no truth values"))?;
                let [_, _, e] = parts_of(layer)?;
                if kept.len() != e.dims()[0] {
                    return Err(format!("{name:?} has {} ranks, the layer {}", kept.len(), e.dims()[0]));
                }
                self.kept.insert(layer.to_owned(), kept);
                continue;
            }
            // The first name of a layer in order; the others of the layer follow from it.
            let (layer, _) = layer.rsplit_once('.').ok_or_else(unknown)?;
            state.insert(name.clone(), data);
            let mut take = |part: &str, what: &str, like: &Tensor<2>| {
                let name = format!("{layer}.{part}.{what}");
                let data = state.remove(&name).ok_or_else(|| format!("{name:?} is missing"))?;
                if *data.shape() != like.shape() {
                    let (found, expected) = (data.shape().as_slice(), like.shape());
                    return Err(format!("{name:?} has the shape {found:?}, expected {:?}", expected.as_slice()));
                }
                let dtype = data.dtype();
                Ok(Tensor::<2>::from_data(data, (&like.device().inner(), dtype)))
            };
            let mut of_part = |part, like| {
                Ok::<_, String>(Smoothed {
                    sensitivity: take(part, SENSITIVITY, like)?,
                    uncertainty: take(part, UNCERTAINTY, like)?,
                })
            };
            let [a, b, e] = parts_of(layer)?;
            let scores = [of_part(PARTS[0], a)?, of_part(PARTS[1], b)?, of_part(PARTS[2], e)?];
            if state.contains_key(&name) {
                return Err(unknown());
            }
            self.scores.insert(layer.to_owned(), scores);
        }
        Ok(())
    }

    fn boxed(&self) -> Box<dyn TrainingHook> {
        Box::new(self.clone())
    }
}

/// The rows, or columns, of the ranks that are left.
fn of_kept(tensor: Tensor<2>, kept: &[bool], dim: usize) -> Tensor<2> {
    let mut dims = tensor.dims();
    dims[dim] = kept.iter().filter(|kept| **kept).count();
    if dims[dim] == 0 {
        let none = Tensor::<2>::from_data(TensorData::new(Vec::<f32>::new(), dims), &tensor.device());
        return in_dtype(none, tensor.dtype());
    }
    let ranks = tensor.split(1, dim).into_iter().zip(kept).filter_map(|(rank, kept)| kept.then_some(rank));
    Tensor::cat(ranks.collect(), dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], dims: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), dims), &burn::tensor::Device::flex())
    }

    fn values(tensor: &Tensor<2>) -> Vec<f32> {
        tensor.to_data().try_into_vec().unwrap()
    }

    /// One layer of two ranks, with numbers small enough to follow by hand.
    #[test]
    fn the_least_important_rank_goes_first() {
        let tensors = |e: [f32; 2]| {
            let [a, b] = [[2, 1], [1, 2]].map(|dims| (tensor(&[1.0, 1.0], dims), tensor(&[0.5, -0.5], dims)));
            let parts = [a, b, (tensor(&e, [2, 1]), tensor(&[1.0, 1.0], [2, 1]))];
            let named = PARTS.map(|part| key("q", part)).into_iter().zip(parts);
            named.map(|(name, (value, gradient))| (name, Updated { value, gradient })).collect()
        };
        let config = AdaLoraConfig { init_r: 2, target_r: 1, tinit: 1, tfinal: 1, ..AdaLoraConfig::new(["q"], 4) };
        let mut allocator = RankAllocator::new(&config);
        assert!(allocator.after_update(0, tensors([3.0, -2.0])).is_empty());
        assert!(allocator.after_update(1, tensors([3.0, -2.0])).is_empty() && allocator.rank_pattern().is_empty());
        let masked = |changed: BTreeMap<TensorKey, Tensor<2>>| values(&changed[&key("q", "lora_E")]);
        let changed = allocator.after_update(2, tensors([-2.0, 3.0]));
        assert_eq!(allocator.rank_pattern()["q"], [true, false], "it mattered for longer");
        assert_eq!(masked(changed), [-2.0, 0.0]);
        allocator.after_update(3, tensors([1.0, 1.0]));
        assert_eq!(masked(allocator.after_update(4, tensors([4.0, 5.0]))), [4.0, 0.0], "lost for good");
    }

    #[test]
    fn what_is_left_of_an_adapter() {
        let config = AdaLoraConfig {
            init_r: 4,
            rank_pattern: BTreeMap::from([("v".to_owned(), vec![true, false, true, true])]),
            ..AdaLoraConfig::new(["q", "v", "o"], 4)
        };
        let mut allocator = RankAllocator::new(&config);
        allocator.kept = BTreeMap::from([("q".to_owned(), vec![false; 4]), ("v".to_owned(), vec![true, false, true])]);
        let parts = |layer: &str, r: usize| {
            let numbers: Vec<f32> = (0..2 * r).map(|number| number as f32).collect();
            let parts = [tensor(&numbers, [r, 2]), tensor(&numbers, [2, r]), tensor(&numbers[..r], [r, 1])];
            PARTS.map(|part| key(layer, part)).into_iter().zip(parts).collect::<Vec<_>>()
        };
        let tensors = [parts("q", 4), parts("v", 3), parts("o", 4)].concat();
        let Finished { method, tensors } = allocator.finish(tensors.into_iter().collect()).unwrap();
        let pattern = &method.downcast_ref::<AdaLoraConfig>().unwrap().rank_pattern;
        // A layer that had lost ranks before has its pattern among all ranks, not among those that it had left.
        let expected = [("q", [false; 4]), ("v", [true, false, false, true])];
        assert_eq!(*pattern, expected.map(|(layer, kept)| (layer.to_owned(), kept.to_vec())).into());
        let found = |layer: &str, part: &str| values(&tensors[&key(layer, part)]);
        assert_eq!(tensors.len(), 6, "`o` stays as it is");
        assert_eq!(PARTS.map(|part| tensors[&key("q", part)].dims()), [[0, 2], [2, 0], [0, 1]]);
        assert_eq!(found("v", "lora_A"), [0.0, 1.0, 4.0, 5.0]);
        assert_eq!(found("v", "lora_B"), [0.0, 2.0, 3.0, 5.0]);
        assert_eq!(found("v", "lora_E"), [0.0, 2.0]);
    }
}
