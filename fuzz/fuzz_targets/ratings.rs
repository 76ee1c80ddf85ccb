#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sideburn_fuzz::run("ratings", bytes));
