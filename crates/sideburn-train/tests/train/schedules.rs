//! Learning rates over a run, against `transformers.get_scheduler`.

use sideburn_train::Schedule;

#[test]
fn factors_are_those_of_transformers() {
    let text = std::fs::read_to_string(sideburn_testing::path("lr_schedules.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, schedule) in [
        ("linear_w10_t100", Schedule::Linear),
        ("cosine_w10_t100", Schedule::Cosine),
        ("constant_w10", Schedule::Constant),
    ] {
        let factors: Vec<f64> = serde_json::from_value(golden[name].clone()).unwrap();
        assert_eq!(factors.len(), 100);
        for (step, expected) in factors.into_iter().enumerate() {
            let factor = schedule.factor(step as u64, 10, 100);
            assert!((factor - expected).abs() < 1e-12, "{name}, step {step}: {factor} is not {expected}");
        }
    }
}
