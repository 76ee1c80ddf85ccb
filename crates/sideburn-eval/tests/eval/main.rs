//! From outputs to results.

mod goldens;
mod intervals;
mod outside;
