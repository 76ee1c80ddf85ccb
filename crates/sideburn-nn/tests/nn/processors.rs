//! What a configuration does to scores, against `transformers`: each field alone, and every pair of them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;
use sideburn_generate::{Decision, Decoder, GenerateError, Generation, GenerationConfig, Rules, Sequence, Strategy};
use sideburn_nn::read_generation_config;
use sideburn_testing::Golden;

/// Has read the prompts, and gives the same scores whatever is written.
struct Given {
    scores: Tensor<2>,
    prompts: Vec<Vec<u32>>,
    written: Vec<Vec<u32>>,
}

impl Decoder for Given {
    type Error = Infallible;

    fn rows(&self) -> usize {
        self.prompts.len()
    }

    fn history(&self, row: usize) -> &[u32] {
        &self.written[row][..1]
    }

    fn prompt(&self, row: usize) -> &[u32] {
        &self.prompts[row]
    }

    fn next_logits(&mut self, _: &[u32]) -> Result<Tensor<2>, Infallible> {
        Ok(self.scores.clone())
    }

    fn select_rows(&mut self, _: &[usize]) {}

    fn forget(&mut self, _: usize) {}
}

/// Keeps the processed scores of rows that have written something, and ends.
struct Look(Arc<Mutex<Vec<f32>>>);

impl Strategy<Given> for Look {
    fn step(
        &mut self,
        decoder: &mut Given,
        rows: Vec<Sequence>,
        rules: &Rules<'_>,
    ) -> Result<Decision, GenerateError<Infallible>> {
        let written = rows.into_iter().zip(&decoder.written).map(|(mut row, tokens)| {
            tokens[1..].iter().for_each(|token| row.push(*token, None));
            row
        });
        let written: Vec<Sequence> = written.collect();
        let scores = rules.each(decoder.scores.clone(), &written, |_, scores| scores.to_vec())?;
        *self.0.lock().unwrap() = scores.concat();
        Ok(Decision::default())
    }
}

fn rows(golden: &Golden, name: &str) -> Vec<Vec<u32>> {
    let columns = golden.shape(name)[1];
    golden.integers(name).chunks(columns).map(|row| row.iter().map(|id| *id as u32).collect()).collect()
}

#[test]
fn every_field_and_every_pair_of_them() {
    let golden = Golden::open("generation/processors.safetensors");
    let text = std::fs::read_to_string(sideburn_testing::path("generation/processors.json")).unwrap();
    let configs: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(configs.len(), 21 + 21 * 20 / 2);
    let scores = golden.floats("scores");
    let (prompts, written) = (rows(&golden, "prompt"), rows(&golden, "written"));
    for (name, case) in configs {
        let fields = case["args"].as_object().unwrap();
        let config = read_generation_config(fields, &GenerationConfig::default()).unwrap();
        let tokens = case["written"].as_u64().unwrap() as usize;
        let decoder = Given {
            scores: Tensor::from_data(TensorData::new(scores.clone(), [3, 50]), &Device::flex()),
            prompts: prompts.clone(),
            written: written.iter().map(|row| row[..tokens].to_vec()).collect(),
        };
        let seen = Arc::new(Mutex::new(Vec::new()));
        Generation::with_strategy(decoder, Box::new(Look(seen.clone())), &config).unwrap().next().unwrap().unwrap();
        let (found, expected) = (seen.lock().unwrap(), golden.floats(&name));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Where an end is banned, the length decay of transformers makes a score that is no number of it. Here it stays so.
            let near = found == expected
                || (expected.is_nan() && *found == f32::NEG_INFINITY)
                || (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
            assert!(near, "{name}, place {place}: {found}, expected {expected}");
        }
    }
}
