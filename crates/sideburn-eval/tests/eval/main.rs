//! From outputs to results.

mod comparing;
mod goldens;
mod intervals;
mod outside;
