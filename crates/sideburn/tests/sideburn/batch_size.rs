//! The largest micro-batch that there is memory for.

use std::path::Path;

use sideburn::data::TokenizedSet;
use sideburn::plan::{BatchShape, Place, plan_training};
use sideburn::prelude::*;
use sideburn::{BatchSize, BatchSizeError, find_batch_size};

fn model_and_set() -> (T5, TokenizedSet) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/t5-mini");
    let tokenizer = Tokenizer::from_dir(&directory).unwrap();
    let mut model = T5::from_dir(&directory, &Device::flex().autodiff()).unwrap();
    model.attach("default", LoraConfig::new(["q", "v"]), Key::from_seed(0)).unwrap();
    let example = |number: usize| Example {
        id: number.to_string(),
        fields: Fields::from([("dialogue".to_owned(), "Did it rain? ".repeat(60))]),
        targets: vec!["It did.".to_owned()],
    };
    let examples: Vec<Example> = (0..12).map(example).collect();
    let template = &Dataset::dialogsum().template;
    (model, tokenize(&examples, &tokenizer, template, Limits::default()).unwrap())
}

#[test]
fn a_step_has_as_many_examples_whatever_fits() {
    let (model, set) = model_and_set();
    let config = TrainConfig::new(1);
    let needed = |rows, gradient_checkpointing| {
        let [prompt, target] = set.lengths()[0];
        let plan = plan_training(&model, None, BatchShape { rows, prompt, target, gradient_checkpointing }, Place::Cpu);
        plan.optimizer + plan.activations + plan.workspace
    };
    let wanted = BatchSize { examples: 12, micro_batches: 2 };
    for (rows, parts) in [(12, 1), (6, 2), (4, 3), (3, 4), (2, 6), (1, 12)] {
        let expected = BatchSize { examples: rows, micro_batches: 2 * parts };
        let find = |memory| find_batch_size(&model, &set, wanted, &config, Some(memory)).unwrap();
        assert_eq!(find(needed(rows, false)), expected);
        if rows < 12 {
            assert_eq!(find(needed(rows + 1, false) - 1), expected);
        }
    }
    // The same memory holds more where blocks are run again.
    let less = TrainConfig { gradient_checkpointing: true, ..config.clone() };
    let memory = Some(needed(12, true));
    assert_eq!(find_batch_size(&model, &set, wanted, &less, memory).unwrap(), wanted);
    assert!(find_batch_size(&model, &set, wanted, &config, memory).unwrap().examples < 12);
    // There are no more examples than these.
    let many = BatchSize { examples: 1 << 20, micro_batches: 1 };
    assert_eq!(find_batch_size(&model, &set, many, &config, Some(needed(12, false))).unwrap(), many);

    let error = find_batch_size(&model, &set, wanted, &config, Some(needed(1, false) - 1)).unwrap_err();
    assert!(matches!(error, BatchSizeError::NothingFits { .. }));
    assert!(
        error.to_string().starts_with("not even a micro-batch of one example fits: beside the model, a step takes")
    );
}
