//! Comparisons of systems against all there is to draw from.

use sideburn_data::Example;
use sideburn_eval::{BootstrapConfig, Evaluation, bootstrap, compare};
use sideburn_rouge::RougeScorer;

/// The share of all ways to give the differences their signs whose sum is at least as far from zero.
fn exact_p_value(differences: &[f64]) -> f64 {
    let sum = |signs: u32| -> f64 {
        let signed = differences.iter().enumerate().map(|(at, x)| if signs >> at & 1 == 0 { *x } else { -x });
        signed.sum::<f64>().abs()
    };
    let all = 1u32 << differences.len();
    (0..all).filter(|signs| sum(*signs) >= sum(0) - 1e-12).count() as f64 / f64::from(all)
}

#[test]
fn p_values_are_those_of_the_exact_test() {
    let config = BootstrapConfig { samples: 100_000, ..BootstrapConfig::default() };
    for first in [
        [0.31, 0.52, 0.48, 0.77, 0.12, 0.60, 0.44, 0.35, 0.58, 0.71, 0.40, 0.29],
        [0.35, 0.41, 0.52, 0.80, 0.10, 0.71, 0.50, 0.36, 0.57, 0.69, 0.49, 0.33],
        [0.50; 12],
    ] {
        let second = [0.30, 0.45, 0.41, 0.78, 0.10, 0.55, 0.40, 0.36, 0.49, 0.70, 0.35, 0.30];
        let differences: Vec<f64> = first.iter().zip(second).map(|(first, second)| first - second).collect();
        let (found, exact) = (compare(&first, &second, &config).unwrap(), exact_p_value(&differences));
        // Three standard deviations of a share of so many samples.
        let bound = 3.0 * (exact * (1.0 - exact) / 100_000.0).sqrt() + 1e-5;
        assert!((found.p_value - exact).abs() < bound, "{first:?}: found {}, exactly {exact}", found.p_value);
        assert_eq!(found.difference, bootstrap(&differences, &config).unwrap());
        let turned = compare(&second, &first, &config).unwrap();
        assert_eq!((turned.difference.mean, turned.p_value), (-found.difference.mean, found.p_value));
    }
}

#[test]
fn systems_that_do_not_differ_are_told_apart_by_nothing() {
    let found = compare(&[0.5, 0.25, 1.0], &[0.5, 0.25, 1.0], &BootstrapConfig::default()).unwrap();
    assert_eq!((found.difference.mean, found.difference.low, found.p_value), (0.0, 0.0, 1.0));
    assert_eq!(found.to_string(), "+0.00 [0.00, 0.00], p 1.000, n 3");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let unpaired = compare(&[0.5], &[], &BootstrapConfig::default()).unwrap_err().to_string();
    assert_eq!(unpaired, "there are 1 values of the first system and 0 of the second; score both on the same examples");
    assert!(compare(&[], &[], &BootstrapConfig::default()).is_err());

    let example = Example { id: "7".into(), fields: Default::default(), targets: vec!["a b".into()] };
    let mut evaluation = Evaluation::new([example], BootstrapConfig::default());
    evaluation.add("good", vec!["a b".into()], &[&RougeScorer::all()]).unwrap();
    evaluation.add("bad", vec!["a c".into()], &[&RougeScorer::all()]).unwrap();
    let difference = evaluation.compare("good", "bad", "rouge1").unwrap();
    assert_eq!(difference.comparison.difference.mean, 0.5);
    assert_eq!(difference.to_string(), "+50.00 [50.00, 50.00], p 1.000, n 1", "in percent");
    let error = evaluation.compare("good", "worse", "rouge1").unwrap_err().to_string();
    assert!(
        error.starts_with("no system called \"worse\" has a score \"rouge1\"; there are good with rouge1, "),
        "{error}"
    );
}
