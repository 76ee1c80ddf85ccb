//! The scores against Python's `rouge_score`, and what must hold for any text.

mod invariants;
mod parity;
mod punkt;
