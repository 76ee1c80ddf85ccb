//! What configurations ask for that cannot be had, rows that nothing may follow, and what ends rows.

use std::cell::Cell;

use sideburn_generate::{
    ConfigError, EarlyStopping, GenerateError, Generation, GenerationConfig, MaxTime, Sequence, StoppingCriterion,
    generate,
};
use sideburn_testing::written;

use crate::script::{garden_path, script, wants};

fn refused(config: GenerationConfig) -> String {
    generate(script(&[&[0]], garden_path), &config).unwrap_err().to_string()
}

#[test]
fn values_that_mean_nothing_are_refused_by_field() {
    let new = || GenerationConfig::new(5);
    assert_eq!(
        refused(GenerationConfig { num_beams: 0, ..new() }),
        "`num_beams` is 0, expected a number of at least 1"
    );
    let cold = GenerationConfig { do_sample: true, temperature: 0.0, ..new() };
    assert_eq!(refused(cold), "`temperature` is 0, expected a number above 0");
    assert_eq!(refused(GenerationConfig { top_p: 1.5, ..new() }), "`top_p` is 1.5, expected a number from 0 to 1");
    assert_eq!(
        refused(GenerationConfig { max_time: Some(-1.0), ..new() }),
        "`max_time` is -1, expected a number of seconds of at least 0"
    );
    assert_eq!(
        refused(GenerationConfig { bad_words_ids: vec![vec![]], ..new() }),
        "`bad_words_ids` is a list with an empty sequence, expected sequences of at least one token"
    );
    let nan = GenerationConfig { repetition_penalty: f64::NAN, ..new() };
    assert_eq!(refused(nan), "`repetition_penalty` is NaN, expected a number above 0");
}

#[test]
fn contradictions_are_refused() {
    let new = || GenerationConfig::new(5);
    let lengths = GenerationConfig { min_length: 9, max_length: Some(8), ..GenerationConfig::default() };
    assert_eq!(refused(lengths), "`min_length` is 9, above `max_length`, which is 8");
    let least = GenerationConfig { min_new_tokens: Some(6), ..new() };
    assert_eq!(refused(least), "`min_new_tokens` is 6, above `max_new_tokens`, which is 5");
    // The history counts in one of them and not in the other.
    let least = refused(GenerationConfig { min_length: 8, ..new() });
    assert!(least.starts_with("prompt 0 must be answered with 7 tokens at least"), "{least}");
    let groups = GenerationConfig { num_beams: 4, num_beam_groups: 3, diversity_penalty: 1.0, ..new() };
    assert_eq!(refused(groups), "`num_beams` is 4, which `num_beam_groups`, 3, does not divide");
    let alike = GenerationConfig { num_beams: 4, num_beam_groups: 2, ..new() };
    assert_eq!(refused(alike), "`diversity_penalty` is 0: all groups would be the same; raise it");
    let many = GenerationConfig { num_beams: 2, num_return_sequences: 3, ..new() };
    assert_eq!(refused(many), "`num_return_sequences` is 3, above `num_beams`, which is 2");
    let greedy = refused(GenerationConfig { num_return_sequences: 2, ..new() });
    assert!(greedy.starts_with("`num_return_sequences` is 2, but greedy and contrastive search have one"), "{greedy}");
    let full = GenerationConfig { max_length: Some(1), ..GenerationConfig::default() };
    assert_eq!(
        generate(script(&[&[0]], garden_path), &full),
        Err(GenerateError::Config(ConfigError::NoRoom { prompt: 0, length: 1, max_length: 1 }))
    );
    let stop_strings = GenerationConfig { stop_strings: vec!["x".to_owned()], ..new() };
    assert_eq!(generate(script(&[&[0]], garden_path), &stop_strings), Err(GenerateError::Config(ConfigError::NoText)));
    let alpha = GenerationConfig { penalty_alpha: Some(0.6), top_k: 4, ..new() };
    assert_eq!(generate(script(&[&[0]], garden_path), &alpha), Err(GenerateError::NoHiddenStates));
}

#[test]
fn what_has_no_effect_is_told() {
    let config = GenerationConfig {
        temperature: 0.7,
        top_k: 10,
        min_p: Some(0.1),
        early_stopping: EarlyStopping::Never,
        length_penalty: 2.0,
        ..GenerationConfig::new(5)
    };
    let sampling = ["temperature` is 0.7", "top_k` is 10", "min_p` is 0.1"]
        .map(|field| format!("`{field}, which only sampling uses; set `do_sample`"));
    let beams = ["length_penalty` is 2", "early_stopping` is \"never\""]
        .map(|field| format!("`{field}, which only beams use; set `num_beams`"));
    assert_eq!(config.without_effect(), [&sampling[..], &beams].concat());
    assert_eq!(GenerationConfig { do_sample: true, num_beams: 2, ..config }.without_effect(), [""; 0]);
}

#[test]
fn rows_that_nothing_can_follow_are_an_error() {
    let sampling = GenerationConfig { do_sample: true, ..GenerationConfig::new(5) };
    let configs = [
        GenerationConfig::new(5),
        GenerationConfig { num_beams: 2, ..GenerationConfig::new(5) },
        GenerationConfig { num_beams: 2, num_beam_groups: 2, diversity_penalty: 1.0, ..GenerationConfig::new(5) },
        GenerationConfig { num_beams: 2, ..sampling.clone() },
        sampling,
    ];
    for config in configs {
        for nothing in [f32::NAN, f32::NEG_INFINITY] {
            // The second row cannot go on behind its first token.
            let scores = move |fed: &[u32]| if fed.len() == 2 && fed[0] == 1 { vec![nothing; 10] } else { wants(4) };
            let error = generate(script(&[&[0], &[1]], scores), &config).unwrap_err();
            assert_eq!(error, GenerateError::NoToken { prompt: 1, written: 1 });
            assert!(error.to_string().starts_with("no token can follow what is written behind prompt 1 (1 tokens)"));
        }
    }
}

#[test]
fn beams_find_what_greed_misses() {
    let greedy = GenerationConfig { eos_token_id: vec![1], ..GenerationConfig::new(5) };
    let decoder = || script(&[&[0], &[8]], garden_path);
    assert_eq!(written(decoder(), &greedy), [[2, 6, 1], [2, 6, 1]]);
    let beams = GenerationConfig { num_beams: 2, num_return_sequences: 2, output_scores: true, ..greedy };
    let answers = generate(decoder(), &beams).unwrap();
    assert_eq!(answers[0].tokens, [3, 7, 1]);
    assert!((answers[0].score.unwrap() - 0.4f32.ln() / 3.0).abs() < 1e-6);
    assert!((answers[0].log_probs[0] - 0.4f32.ln()).abs() < 1e-6 && answers[0].log_probs[1..] == [0.0, 0.0]);
    assert_eq!(
        answers.iter().map(|answer| (answer.prompt, answer.rank)).collect::<Vec<_>>(),
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    );
    // No token is sure before the end; then all are.
    let mut generation = Generation::new(decoder(), &beams).unwrap();
    assert_eq!(generation.next().unwrap().unwrap().tokens, []);
    let steps: Vec<_> = generation.map(|step| step.unwrap().tokens).filter(|tokens| !tokens.is_empty()).collect();
    assert_eq!(steps.concat(), [(0, 3), (0, 7), (0, 1), (1, 3), (1, 7), (1, 1)]);
}

#[test]
fn a_stop_string_ends_a_row_though_the_last_token_goes_beyond_it() {
    let pieces = ["", "", "ab", "cd", "ef", "g", "h", "i", "j", "k"];
    let text = |ids: &[u32]| ids.iter().map(|id| pieces[*id as usize]).collect::<String>();
    let counting = |fed: &[u32]| wants(fed[fed.len() - 1] + 1);
    let config = |stop: &str| GenerationConfig { stop_strings: vec![stop.to_owned()], ..GenerationConfig::new(6) };
    let write = |stop: &str| {
        let generation = Generation::with_text(script(&[&[1]], counting), &config(stop), text).unwrap();
        generation.finish().unwrap().remove(0).tokens
    };
    assert_eq!(write("bc"), [2, 3]);
    assert_eq!(write("cde"), [2, 3, 4]);
    assert_eq!(write("never"), [2, 3, 4, 5, 6, 7], "a string that does not come ends nothing");
}

#[test]
fn time_ends_all_rows() {
    let row = Sequence::new(0, 0, &[1]);
    assert!(!MaxTime::from_now(std::time::Duration::from_secs(3600)).ends(&row));
    let config = GenerationConfig { max_time: Some(0.0), ..GenerationConfig::new(50) };
    assert_eq!(written(script(&[&[1], &[2]], |_| wants(4)), &config), [[4], [4]]);
    let config = GenerationConfig { num_beams: 2, ..config };
    assert_eq!(written(script(&[&[1]], |_| wants(4)), &config), [[4]]);
    // And a closure can, in the middle.
    let steps = Cell::new(0);
    let generation = Generation::new(script(&[&[1]], |_| wants(4)), &GenerationConfig::new(50)).unwrap();
    let stops = generation.with_stopping(|_: &Sequence| steps.replace(steps.get() + 1) == 2);
    assert_eq!(stops.finish().unwrap()[0].tokens, [4, 4, 4]);
}

#[test]
fn draws_have_the_probabilities_of_the_scores() {
    const DRAWS: usize = 100_000;
    let scores = [0.3f32, 1.2, -0.7, 2.0, 0.0, 1.0, -2.0, 0.5, 1.7, -1.0];
    let config =
        GenerationConfig { do_sample: true, temperature: 0.8, top_k: 8, seed: 11, ..GenerationConfig::new(100) };
    let histories = vec![[0u32].as_slice(); DRAWS / 100];
    let mut counts = [0u32; 10];
    for row in written(script(&histories, move |_| scores.to_vec()), &config) {
        row.iter().for_each(|token| counts[*token as usize] += 1);
    }
    // What `top_k` leaves, in the definition of the processors.
    let weights: Vec<f64> =
        scores.iter().map(|score| if *score > -1.0 { (f64::from(*score) / 0.8).exp() } else { 0.0 }).collect();
    let total: f64 = weights.iter().sum();
    let mut chi_square = 0.0;
    for (count, weight) in counts.iter().zip(&weights) {
        let expected = weight / total * DRAWS as f64;
        match *weight == 0.0 {
            true => assert_eq!(*count, 0),
            false => chi_square += (f64::from(*count) - expected).powi(2) / expected,
        }
    }
    // With 7 degrees of freedom, more than 24.32 has a probability of 0.001.
    assert!(chi_square < 24.32, "{chi_square}: {counts:?}");
}

#[test]
fn draws_follow_from_the_seed_and_the_place() {
    let config = |seed| GenerationConfig { do_sample: true, seed, ..GenerationConfig::new(40) };
    let decoder = |rows: &[&[u32]]| script(rows, |_| vec![0.0; 10]);
    let together = written(decoder(&[&[0], &[1], &[2]]), &config(1));
    assert_ne!(together[0], together[1]);
    assert_ne!(together, written(decoder(&[&[0], &[1], &[2]]), &config(2)));
    let alone = Generation::new(decoder(&[&[9]]), &config(1)).unwrap().with_numbers(&[2]).finish().unwrap();
    assert_eq!(alone[0].tokens, together[2]);
}

/// Beams that draw never draw the same token behind the same row twice.
#[test]
fn beams_draw_different_rows() {
    let config = GenerationConfig {
        do_sample: true,
        num_beams: 4,
        num_return_sequences: 4,
        seed: 2,
        ..GenerationConfig::new(6)
    };
    let answers = generate(script(&[&[0], &[1]], |_| vec![0.0; 10]), &config).unwrap();
    let rows: std::collections::BTreeSet<_> = answers.iter().map(|answer| (answer.prompt, &answer.tokens)).collect();
    assert_eq!(rows.len(), 8);
    assert_eq!(answers, generate(script(&[&[0], &[1]], |_| vec![0.0; 10]), &config).unwrap());
}
