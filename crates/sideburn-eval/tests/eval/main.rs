//! From outputs to results.

mod browser;
mod comparing;
mod goldens;
mod intervals;
mod outside;
mod report;
mod whole_data;
