//! What an adapter's tensors say without a model.

use serde::Serialize;
use sideburn::adapters::methods::LoraConfig;
use sideburn::weights::TensorSource;

/// How an adapter's own part of a tensor's name begins, in all methods of `peft` 0.21; before it stands the place in the base.
const OWN: [&str; 38] = [
    "adamss_",
    "base_layer",
    "beft_",
    "boft_",
    "c3a_",
    "deft_",
    "delora_",
    "fourierft_",
    "frod_",
    "glora_",
    "gralora_",
    "hada_",
    "hira_",
    "hra_",
    "ia3_",
    "lily_",
    "ln_tuning_",
    "lokr_",
    "lora_",
    "miss_",
    "oft_",
    "osf_",
    "peanut_",
    "poly_",
    "psoft_",
    "pvera_",
    "randlora_",
    "road_",
    "shadow_",
    "shira_",
    "supertuning_",
    "tinylora_",
    "token_adapter",
    "trainable_tokens_",
    "unilora_",
    "vblora_",
    "vera_",
    "waveft_",
];

/// The name of a tensor in an adapter's file, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    /// The place in the base that the method adapts with this tensor, if it is not the whole model.
    pub(crate) site: Option<&'a str>,
    /// What it is there, such as `lora_A.weight`.
    pub(crate) part: &'a str,
}

impl<'a> Name<'a> {
    pub(crate) fn parse(name: &'a str) -> Self {
        let inside = ["base_model.model.", "base_model."].iter().find_map(|prefix| name.strip_prefix(prefix));
        let Some(inside) = inside else { return Self { site: None, part: name } };
        let mut starts = std::iter::once(0).chain(inside.match_indices('.').map(|(dot, _)| dot + 1));
        let own = starts.find(|start| OWN.iter().any(|own| inside[*start..].starts_with(own)));
        match own {
            Some(0) => Self { site: None, part: inside },
            Some(start) => Self { site: Some(&inside[..start - 1]), part: &inside[start..] },
            // A part of the base of which the adapter has a copy.
            None => Self { site: None, part: "modules_to_save" },
        }
    }
}

/// The sizes of several norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Norms {
    pub(crate) tensors: usize,
    pub(crate) largest: f64,
    pub(crate) mean: f64,
}

impl Norms {
    /// Takes in one more.
    pub(crate) fn add(&mut self, norm: f64) {
        self.tensors += 1;
        self.largest = if norm > self.largest || norm.is_nan() { norm } else { self.largest };
        self.mean += (norm - self.mean) / self.tensors as f64;
    }
}

/// The Frobenius norm.
pub(crate) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// What LoRA does at one site.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Update {
    pub(crate) rank: usize,
    pub(crate) scaling: f64,
    /// The Frobenius norm of what is added to the weight, `scaling * B A`.
    pub(crate) norm: f64,
}

/// What LoRA does at each site whose two factors fit each other.
pub(crate) fn lora_updates(tensors: &dyn TensorSource, lora: &LoraConfig) -> anyhow::Result<Vec<(String, Update)>> {
    let mut updates = Vec::new();
    for a in tensors.names() {
        let Name { site: Some(site), part } = Name::parse(a) else { continue };
        let other = match part {
            "lora_A.weight" => "lora_B.weight",
            "lora_embedding_A" => "lora_embedding_B",
            _ => continue,
        };
        let b = a.replace(part, other);
        let shape = |name: &str| tensors.info(name).map(|info| info.shape.as_slice());
        let (Some(&[rank, _]), Some(&[_, columns])) = (shape(a), shape(&b)) else { continue };
        if rank == columns && rank > 0 {
            let (_, scaling) = lora.rank_and_scaling(site)?;
            let norm = scaling.abs() * product_norm(&tensors.read_f32(a)?, &tensors.read_f32(&b)?, rank);
            updates.push((site.to_owned(), Update { rank, scaling, norm }));
        }
    }
    Ok(updates)
}

/// The Frobenius norm of `B A` for `A [r, in]` and `B [out, r]`, whose square is the trace of `(B^T B) (A A^T)`: nothing
/// of the shape of the weight is formed.
fn product_norm(a: &[f32], b: &[f32], r: usize) -> f64 {
    let width = a.len() / r;
    let transposed = (0..width).flat_map(|column| (0..r).map(move |row| a[row * width + column])).collect::<Vec<_>>();
    let products = gram(b, r).into_iter().zip(gram(&transposed, r)).map(|(b, a)| a * b);
    // Rounding must not make a square negative; something that is not a number stays so.
    let square = products.sum::<f64>();
    if square < 0.0 { 0.0 } else { square.sqrt() }
}

/// `M^T M`, `[r, r]`, of a matrix `M [n, r]`.
fn gram(matrix: &[f32], r: usize) -> Vec<f64> {
    let mut gram = vec![0.0; r * r];
    let mut wide = vec![0.0; r];
    for row in matrix.chunks_exact(r) {
        wide.iter_mut().zip(row).for_each(|(wide, x)| *wide = f64::from(*x));
        for (sums, x) in gram.chunks_exact_mut(r).zip(&wide) {
            sums.iter_mut().zip(&wide).for_each(|(sum, y)| *sum += x * y);
        }
    }
    gram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_kind() {
        let q = "encoder.block.0.layer.0.SelfAttention.q";
        let parsed = |name: &str, site, part| assert_eq!(Name::parse(name), Name { site, part }, "{name}");
        parsed(&format!("base_model.model.{q}.lora_A.weight"), Some(q), "lora_A.weight");
        parsed(&format!("base_model.model.{q}.lora_magnitude_vector"), Some(q), "lora_magnitude_vector");
        parsed("base_model.model.shared.lora_embedding_B", Some("shared"), "lora_embedding_B");
        parsed("base_model.model.lm_head.base_layer.weight", Some("lm_head"), "base_layer.weight");
        let norm = "base_model.model.decoder.final_layer_norm.ln_tuning_layers.weight";
        parsed(norm, Some("decoder.final_layer_norm"), "ln_tuning_layers.weight");
        parsed("base_model.model.lm_head.weight", None, "modules_to_save");
        parsed(&format!("base_model.model.{q}.shira_indices"), Some(q), "shira_indices");
        parsed("base_model.vera_A", None, "vera_A");
        parsed("prompt_embeddings", None, "prompt_embeddings");
    }

    #[test]
    fn the_norm_of_a_product_that_is_never_formed() {
        let (a, b) = ([1.0, -2.0, 0.5, 3.0, 0.25, -1.0], [2.0, 1.0, -1.0, 0.5, 4.0, -3.0, 0.0, 1.5]);
        let mut product = Vec::new();
        for row in b.chunks(2) {
            product.extend((0..3).map(|column| row[0] * a[column] + row[1] * a[3 + column]));
        }
        assert!((product_norm(&a, &b, 2) - norm(&product)).abs() < 1e-12);
        assert_eq!(product_norm(&a, &[0.0; 8], 2), 0.0);
        assert!(product_norm(&a, &[f32::NAN; 8], 2).is_nan());
    }
}
