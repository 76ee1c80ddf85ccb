//! What must hold for any numbers.

use proptest::prelude::*;
use sideburn_eval::{BootstrapConfig, bootstrap};

proptest! {
    #[test]
    fn intervals_are_ordered_and_repeatable(values in prop::collection::vec(-1e3..1e3, 1..40), seed: u64) {
        let config = BootstrapConfig { samples: 50, seed, ..BootstrapConfig::default() };
        let found = bootstrap(&values, &config).unwrap();
        prop_assert!(found.low <= found.median && found.median <= found.high);
        let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), value| (a.min(*value), b.max(*value)));
        prop_assert!(found.low >= least - 1e-9 && found.high <= most + 1e-9);
        prop_assert_eq!(bootstrap(&values, &config).unwrap(), found);
    }

    #[test]
    fn numbers_on_another_scale_have_the_same_interval_there(values in prop::collection::vec(0.0..1.0, 1..40)) {
        let config = BootstrapConfig { samples: 50, ..BootstrapConfig::default() };
        let doubled: Vec<f64> = values.iter().map(|value| 2.0 * value).collect();
        let [found, doubled] = [values, doubled].map(|values| bootstrap(&values, &config).unwrap());
        prop_assert_eq!(2.0 * found.high, doubled.high);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let values: Vec<f64> = (0..500).map(|index| f64::from(index * 7 % 31) / 31.0).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bootstrap(&values, &BootstrapConfig::default()).unwrap())
    };
    assert_eq!(run(1), run(4));
}
