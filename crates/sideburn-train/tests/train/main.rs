//! The training loop against `torch` and `peft`, and how it stops.

mod adalora;
mod export_to_peft;
mod stopping;
mod trajectories;
