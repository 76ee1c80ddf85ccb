//! Weights to begin with.

use std::collections::HashMap;

use sideburn::adapters::WeightMut;
use sideburn::prelude::*;

/// The heads of every layer that copy from the source to begin with.
const COPYING: usize = 2;

/// Position biases by which the encoder's first head looks at the token before, the last heads everywhere, and the
/// others at their neighbourhood, after ALiBi (Press et al., 2022): learnt from nothing, in steps of the learning rate,
/// they would take the better part of a short run.
fn nearness([buckets, heads]: [usize; 2], encoder: bool, device: &Device) -> Tensor<2> {
    let bias = |bucket: usize, head: usize| match (encoder, head) {
        (true, 0) if bucket == 1 => 0.0,
        (true, 0) => -8.0,
        (_, head) if head + 1 == heads => 0.0,
        (true, head) => -0.5f32.powi(head as i32) * (bucket % (buckets / 2)) as f32,
        (false, head) => -0.5f32.powi(head as i32) * bucket as f32,
    };
    let biases: Vec<f32> = (0..buckets).flat_map(|bucket| (0..heads).map(move |head| bias(bucket, head))).collect();
    Tensor::<1>::from_floats(biases.as_slice(), device).reshape([buckets, heads])
}

/// Prepares fresh weights for a short run of AdamW, whose steps have one size for all of them; T5's own are made for
/// Adafactor, whose steps grow with the weights. The embedding, which is the output head as well, is made small, and so
/// is what each layer adds to it.
///
/// What a small model takes longest to find stands in it from the start: an induction circuit (Olsson et al., 2022).
/// The encoder's first head looks at the token before. The decoder's first [`COPYING`] heads over the source look for
/// what that head wrote of the token that the decoder wrote last, so that they find what followed it in the source; and
/// they write it again, as the outgoing weights of these heads are their incoming ones transposed.
pub(crate) fn prepare(model: &mut T5) {
    const FIRST: &str = "encoder.block.0.layer.0.SelfAttention";
    let d_kv = model.config().d_kv;
    let fresh: HashMap<String, Tensor<2>> =
        model.linears().into_iter().map(|(name, site)| (name, site.weight().dense().inner())).collect();
    let first_head = |projection| fresh[&format!("{FIRST}.{projection}")].clone();
    let previous = first_head("v").narrow(0, 0, d_kv);
    let written = first_head("o").narrow(1, 0, d_kv).transpose();
    // The weights of the copying heads, and behind them those of the others.
    let rows = |head: &Tensor<2>, others: &Tensor<2>| {
        let free = others.dims()[0] - COPYING * d_kv;
        Tensor::cat(vec![head.clone().repeat_dim(0, COPYING), others.clone().narrow(0, COPYING * d_kv, free)], 0)
    };
    for (name, weight) in model.weights_mut() {
        if let WeightMut::Vector(_) = weight {
            continue;
        }
        let weight = weight.into_weight_mut();
        let drawn = weight.dense().inner();
        let (place, last) = name.rsplit_once('.').expect("a weight has a place");
        let prepared = match last {
            _ if name == "shared.weight" => drawn * (1.0 / 12.0),
            _ if place.ends_with("relative_attention_bias") => {
                nearness(drawn.dims(), name.starts_with("encoder"), &drawn.device())
            }
            "q" if place.ends_with("EncDecAttention") => rows(&(previous.clone() * 0.3), &drawn),
            "k" if place.ends_with("EncDecAttention") => rows(&written, &drawn),
            "o" if place.ends_with("EncDecAttention") => {
                let free = drawn.dims()[1] - COPYING * d_kv;
                let incoming = fresh[&format!("{place}.v")].clone().narrow(0, 0, COPYING * d_kv).transpose();
                Tensor::cat(vec![incoming * 0.5, drawn.narrow(1, COPYING * d_kv, free) * 0.03], 1)
            }
            "o" if place == FIRST => {
                let inner = drawn.dims()[1];
                Tensor::cat(vec![written.clone().transpose() * 0.1, drawn.narrow(1, d_kv, inner - d_kv) * 0.03], 1)
            }
            "o" | "wo" => drawn * 0.03,
            _ => continue,
        };
        weight.replace(prepared);
    }
}
