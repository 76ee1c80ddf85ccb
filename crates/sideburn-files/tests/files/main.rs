//! Files and directories: what is opened, what is replaced, and what a killed process leaves.

mod directories;
mod killed;
mod reading;
mod writing;
