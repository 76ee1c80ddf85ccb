//! The training loop against `torch` and `peft`, how it stops, and how it goes on.

mod adalora;
mod export_to_peft;
mod observing;
mod quantized;
mod resuming;
mod schedules;
mod stopping;
mod trajectories;
