//! `sideburn adapter check`: whether an adapter is whole, and fits a base.

use std::fmt;
use std::path::PathBuf;

use anyhow::ensure;
use serde::Serialize;
use sideburn::adapters::{AdapterDir, AdapterError, LoraConfig, Outline, fingerprint};
use sideburn::prelude::*;

use super::tensors::lora_updates;
use crate::report::{Finding, Verdict, count, table};

/// Check that an adapter is whole and fits a base model
///
/// Fails if its files are broken, its configuration asks for what Sideburn does not have, a value is infinite or not a
/// number, or its tensors are not those that the configuration means on this base. Warns if a LoRA was never trained at a
/// site (B is zero), if a name in target_modules matches nothing on this base, and if the adapter was saved on another base:
/// adapters that Sideburn saves remember a fingerprint of the base's weights. The same base stored in another precision has
/// another fingerprint, so that this alone is no error.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the adapter
    #[arg(value_name = "DIR")]
    adapter: PathBuf,
    /// Directory of the base model
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Let warnings fail, too
    #[arg(long)]
    strict: bool,
}

/// The checks, in their order.
const CHECKS: [&str; 8] = ["configuration", "file", "values", "training", "places", "names", "shapes", "fingerprint"];

#[derive(Serialize)]
pub(crate) struct Checkup {
    adapter: String,
    base: String,
    strict: bool,
    passed: bool,
    /// Names in `target_modules` that nothing in the base has.
    unmatched_targets: Vec<String>,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    check: &'static str,
    verdict: Verdict,
    detail: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Checkup> {
    ensure!(args.adapter.is_dir(), "{} is not a directory", args.adapter.display());
    let mut base = T5::from_dir(&args.base, &parse_device("flex")?)?;
    let mut found = Found::default();
    match AdapterDir::open(&args.adapter) {
        Ok(adapter) => look_into(&adapter, args, &mut base, &mut found)?,
        Err(AdapterError::Weights(error)) => found.add("file", Verdict::Failed, error.to_string()),
        Err(error) => found.add("configuration", Verdict::Failed, error.to_string()),
    }
    let checks: Vec<Check> = CHECKS.into_iter().map(|check| found.take(check)).collect();
    let any = |verdict| checks.iter().any(|check| check.verdict == verdict);
    let spoilt = any(Verdict::Failed) || (args.strict && any(Verdict::Warning));
    let [adapter, base] = [&args.adapter, &args.base].map(|path| path.display().to_string());
    let unmatched_targets = found.unmatched_targets;
    Ok(Checkup { adapter, base, strict: args.strict, passed: !spoilt, unmatched_targets, checks })
}

fn look_into(adapter: &AdapterDir, args: &Args, base: &mut T5, found: &mut Found) -> anyhow::Result<()> {
    let tensors = adapter.tensors();
    let file = tensors.path().file_name().unwrap_or_default().to_string_lossy();
    found.add("file", Verdict::Ok, format!("{} in {file}", count(tensors.names().len(), "tensor")));
    match broken_values(adapter) {
        Ok(broken) if broken.is_empty() => found.add("values", Verdict::Ok, "all are finite"),
        Ok(broken) => found.add("values", Verdict::Failed, broken.join("\n")),
        Err(error) => found.add("values", Verdict::Failed, error.to_string()),
    }
    let method = match adapter.method() {
        Ok(method) => method,
        Err(error) => {
            found.add("configuration", Verdict::Failed, error.to_string());
            return Ok(());
        }
    };
    found.add("configuration", Verdict::Ok, method.peft_type());
    if found.failed() {
        return Ok(());
    }
    match method.downcast_ref::<LoraConfig>() {
        Some(lora) => check_training(adapter, lora, found)?,
        None => found.add("training", Verdict::NotChecked, "only LoRA shows it"),
    }
    let own = fingerprint(base);
    let targets = method.targets();
    found.unmatched_targets = targets.map(|targets| targets.unmatched(&Outline::of(base))).unwrap_or_default();
    check_fit(args, base, found);
    check_fingerprint(adapter.base_fingerprint(), &own, found);
    Ok(())
}

fn check_training(adapter: &AdapterDir, lora: &LoraConfig, found: &mut Found) -> anyhow::Result<()> {
    let updates = lora_updates(adapter, lora)?;
    let idle = updates.iter().filter(|(_, update)| update.norm == 0.0).count();
    match idle {
        0 => found.add("training", Verdict::Ok, "no site is as it was before training"),
        _ => {
            let detail = format!("a factor is zero at {idle} of {}: never trained", count(updates.len(), "site"));
            found.add("training", Verdict::Warning, detail);
        }
    }
    Ok(())
}

/// Whether the tensors are those that the configuration means on this base.
fn check_fit(args: &Args, base: &mut T5, found: &mut Found) {
    match load_adapter(base, "default", &args.adapter) {
        Ok(()) => {
            found.add_places();
            found.add("names", Verdict::Ok, "none is missing or unexpected");
            found.add("shapes", Verdict::Ok, "as the base has them");
        }
        Err(AdapterError::TensorsDoNotFit { missing, unexpected, misshapen, .. }) => {
            found.add_places();
            let names = [("missing", missing), ("unexpected", unexpected)];
            let names = names.iter().flat_map(|(what, names)| names.iter().map(move |name| format!("{what}: {name}")));
            found.add_list("names", "none is missing or unexpected", names);
            found.add_list("shapes", "as the base has them", misshapen.iter().map(ToString::to_string));
        }
        Err(error) => found.add("places", Verdict::Failed, error.to_string()),
    }
}

/// Whether the fingerprint that was `saved` is the base's `own`. If all else fits, another one is no error.
fn check_fingerprint(saved: Option<&str>, own: &str, found: &mut Found) {
    match saved {
        None => {
            found.add("fingerprint", Verdict::Warning, "the file has none: which base it was saved on is not known")
        }
        Some(saved) if saved == own => found.add("fingerprint", Verdict::Ok, "that of the base"),
        Some(saved) => {
            let (verdict, reason) = match found.failed() {
                true => (Verdict::Failed, "it was made on another base"),
                false => (Verdict::Warning, "it was made on another base, or on this one in another precision"),
            };
            found.add("fingerprint", verdict, format!("{saved} in the file, {own} of the base: {reason}"));
        }
    }
}

/// The tensors that have values which are not finite, each with the first of these.
fn broken_values(adapter: &AdapterDir) -> anyhow::Result<Vec<String>> {
    let tensors = adapter.tensors();
    let mut broken = Vec::new();
    for name in tensors.names() {
        let values = tensors.read_f32(name)?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            broken.push(format!("{name}: element {index} is {}", values[index]));
        }
    }
    Ok(broken)
}

/// The checks that were made.
#[derive(Default)]
struct Found {
    checks: Vec<Check>,
    unmatched_targets: Vec<String>,
}

impl Found {
    fn add(&mut self, check: &'static str, verdict: Verdict, detail: impl Into<String>) {
        self.checks.push(Check { check, verdict, detail: detail.into() });
    }

    /// That the base has places for the adapter, if not for every name.
    fn add_places(&mut self) {
        match self.unmatched_targets.join(", ") {
            none if none.is_empty() => self.add("places", Verdict::Ok, "the base has them"),
            names => {
                self.add("places", Verdict::Warning, format!("target_modules that nothing in the base has: {names}"))
            }
        }
    }

    /// A check that has failed if there is anything in `wrong`.
    fn add_list(&mut self, check: &'static str, ok: &str, wrong: impl Iterator<Item = String>) {
        let wrong: Vec<String> = wrong.collect();
        match wrong.is_empty() {
            true => self.add(check, Verdict::Ok, ok),
            false => self.add(check, Verdict::Failed, wrong.join("\n")),
        }
    }

    fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.verdict == Verdict::Failed)
    }

    fn take(&mut self, check: &'static str) -> Check {
        match self.checks.iter().position(|found| found.check == check) {
            Some(index) => self.checks.swap_remove(index),
            None => Check { check, verdict: Verdict::NotChecked, detail: "because of what has failed".to_owned() },
        }
    }
}

impl Finding for Checkup {
    fn passed(&self) -> bool {
        self.passed
    }
}

impl fmt::Display for Checkup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |check: &Check| [check.verdict.to_string(), check.check.to_owned(), check.detail.clone()];
        table(f, &self.checks.iter().map(row).collect::<Vec<_>>())?;
        let warnings = self.checks.iter().filter(|check| check.verdict == Verdict::Warning).count();
        match (self.passed, warnings) {
            (true, 0) => write!(f, "\n{} fits {}", self.adapter, self.base),
            (true, _) => write!(f, "\n{} fits {}, with {}", self.adapter, self.base, count(warnings, "warning")),
            (false, _) => write!(f, "\n{} does not pass", self.adapter),
        }
    }
}
