//! The training loop against `torch` and `peft`, how it stops, and how it goes on.

mod adalora;
mod checkpointing;
mod export_to_peft;
mod killing;
mod observing;
mod optimizers;
mod quantized;
mod ranks;
mod resuming;
mod run_dir;
mod schedules;
mod settings;
mod stopping;
mod trajectories;
