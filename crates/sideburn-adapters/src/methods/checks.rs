//! Whether the numbers of a configuration mean something.

use crate::AdapterError;

pub(crate) fn check_rank(field: &'static str, r: usize) -> Result<(), AdapterError> {
    check(field, r, (1..=1_000_000).contains(&r), "a rank of at least 1, and at most 1000000")
}

pub(super) fn check_probability(field: &'static str, probability: f64) -> Result<(), AdapterError> {
    check(field, probability, (0.0..1.0).contains(&probability), "a probability in [0, 1)")
}

pub(super) fn check_finite(field: &'static str, number: f64) -> Result<(), AdapterError> {
    check(field, number, number.is_finite(), "a finite number")
}

pub(super) fn check(
    field: &'static str,
    found: impl ToString,
    is_right: bool,
    expected: &'static str,
) -> Result<(), AdapterError> {
    if is_right { Ok(()) } else { Err(AdapterError::InvalidField { field, found: found.to_string(), expected }) }
}
