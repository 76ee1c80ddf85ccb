//! `sideburn adapter check`: whether an adapter is whole, and fits a base.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::ensure;
use serde::Serialize;
use serde_json::Value;
use sideburn::adapters::methods::LoraConfig;
use sideburn::adapters::{AdapterError, Adapters, Method};
use sideburn::prelude::*;
use sideburn::weights::TensorSource;

use super::halves::{Halves, base_fingerprint, is_float};
use super::on_base::OnBase;
use super::tensors::lora_updates;
use crate::model::open;
use crate::report::{Finding, Verdict, count, in_line, shown, table};

/// Check that an adapter is whole and fits a base model
///
/// Fails if its files are broken, its configuration asks for what Sideburn does not have, a value is infinite or not a
/// number, or its tensors are not those that the configuration means on this base. Warns if a LoRA was never trained at a
/// site (B is zero), if a name in target_modules matches nothing on this base, and if the adapter was saved on another base:
/// adapters that Sideburn saves remember a fingerprint of the base's weights. The same base stored in another precision has
/// another fingerprint, so that this alone is no error. What is not looked at, such as the fingerprint of an adapter that
/// peft has saved, is listed as not checked, which --strict lets pass.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    on: OnBase,
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
    let (directory, base) = args.on.directories()?;
    ensure!(directory.is_dir(), "{} is not a directory", shown(&directory));
    let mut model = open(&base)?;
    let mut found = Found::default();
    look_into(&directory, &mut model, &mut found);
    let checks: Vec<Check> = CHECKS.into_iter().map(|check| found.take(check)).collect();
    let any = |verdict| checks.iter().any(|check| check.verdict == verdict);
    let spoilt = any(Verdict::Failed) || (args.strict && any(Verdict::Warning));
    let OnBase { adapter, base } = &args.on;
    let [adapter, base] = [adapter, base].map(|path| shown(path));
    let unmatched_targets = found.unmatched_targets;
    Ok(Checkup { adapter, base, strict: args.strict, passed: !spoilt, unmatched_targets, checks })
}

/// Makes the checks, up to those that need what has failed.
fn look_into(adapter: &Path, base: &mut AutoModel, found: &mut Found) {
    let halves = match Halves::open(adapter) {
        Ok(halves) => halves,
        Err(error) => return found.add("configuration", Verdict::Failed, error.to_string()),
    };
    match &halves.tensors {
        Ok(tensors) => {
            let file = tensors.path().file_name().unwrap_or_default().to_string_lossy();
            found.add("file", Verdict::Ok, format!("{} in {file}", count(tensors.names().len(), "tensor")));
            check_values(tensors, found);
        }
        Err(error) => found.add("file", Verdict::Failed, error.to_string()),
    }
    if let Err(error) = &halves.config {
        found.add("configuration", Verdict::Failed, error.to_string());
    }
    let method = match halves.method(adapter) {
        Some(Ok(method)) => method,
        Some(Err(error)) => return found.add("configuration", Verdict::Failed, error.to_string()),
        None => return,
    };
    found.add("configuration", Verdict::Ok, method.peft_type());
    let (Ok(tensors), false) = (&halves.tensors, found.failed()) else { return };
    check_training(tensors, halves.config.as_ref().unwrap_or(&Value::Null), method.downcast_ref(), found);
    let own = base.fingerprint();
    let targets = method.targets();
    found.unmatched_targets = targets.map(|targets| targets.unmatched(&base.outline())).unwrap_or_default();
    check_fit(adapter, method.as_ref(), tensors, base, found);
    check_fingerprint(base_fingerprint(adapter).as_deref(), &own, found);
}

/// Whether all floating-point numbers are finite.
fn check_values(tensors: &dyn TensorSource, found: &mut Found) {
    let (mut finite, mut broken) = (0, Vec::new());
    // How many tensors there are of each dtype that is not looked at.
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    for name in tensors.names() {
        let dtype = tensors.info(name).expect("a name of the file").dtype;
        if !is_float(dtype) {
            *others.entry(format!("{dtype:?}")).or_default() += 1;
            continue;
        }
        match tensors.read_f32(name) {
            Ok(values) => match values.iter().position(|value| !value.is_finite()) {
                Some(index) => broken.push(format!("{}: element {index} is {}", in_line(name), values[index])),
                None => finite += 1,
            },
            Err(error) => broken.push(error.to_string()),
        }
    }
    let others: Vec<String> =
        others.iter().map(|(dtype, tensors)| format!("{} of {dtype}", count(*tensors, "tensor"))).collect();
    let others = others.join(", ");
    match (broken.is_empty(), finite, others.is_empty()) {
        (false, ..) => found.add("values", Verdict::Failed, broken.join("\n")),
        (true, 0, true) => found.add("values", Verdict::NotChecked, "there are none"),
        (true, 0, false) => found.add("values", Verdict::NotChecked, others),
        (true, _, true) => found.add("values", Verdict::Ok, "all are finite"),
        (true, _, false) => {
            let detail = format!("{} finite; not checked: {others}", count(finite, "tensor"));
            found.add("values", Verdict::Ok, detail);
        }
    }
}

/// Whether `B A` of LoRA has left the zero that training begins with.
fn check_training(tensors: &dyn TensorSource, config: &Value, lora: Option<&LoraConfig>, found: &mut Found) {
    let Some(lora) = lora else { return found.add("training", Verdict::NotChecked, "only LoRA shows it") };
    // Others (orthogonal, MiCA, PiSSA, ...) begin with a B of their own, and which one is only said in the file.
    let began = config.get("init_lora_weights").unwrap_or(&Value::Null);
    if !matches!(began, Value::Null | Value::Bool(true)) && !["gaussian", "eva"].iter().any(|name| began == name) {
        let detail = "B A need not be zero before training, as init_lora_weights says";
        return found.add("training", Verdict::NotChecked, detail);
    }
    let updates = match lora_updates(tensors, lora) {
        Ok(updates) => updates,
        Err(error) => return found.add("training", Verdict::Failed, error.to_string()),
    };
    let idle = updates.iter().filter(|(_, update)| update.norm == 0.0).count();
    let sites = count(updates.len(), "site");
    match (updates.len(), idle) {
        (0, _) => found.add("training", Verdict::NotChecked, "the file has no two factors of LoRA that fit each other"),
        (_, 0) => found.add("training", Verdict::Ok, format!("B A is not zero at any of {sites}")),
        _ => found.add("training", Verdict::Warning, format!("a factor is zero at {idle} of {sites}: never trained")),
    }
}

/// Whether the tensors are those that the configuration means on this base.
fn check_fit(adapter: &Path, method: &dyn Method, tensors: &dyn TensorSource, base: &mut AutoModel, found: &mut Found) {
    match base.load_adapter("default", adapter) {
        Ok(()) => {
            found.add_places(method);
            let carried = base.adapters().list().iter().flat_map(|entry| entry.carried()).cloned().collect::<Vec<_>>();
            let names = match carried.is_empty() {
                true => "none is missing or unexpected".to_owned(),
                false => format!(
                    "none is missing; the adapter has its own {}, which differs from the base's",
                    carried.join(" and ")
                ),
            };
            found.add("names", Verdict::Ok, names);
            found.add("shapes", Verdict::Ok, "as the base has them");
        }
        Err(AdapterError::TensorsDoNotFit { missing, unexpected, misshapen, .. }) => {
            found.add_places(method);
            let with_place = tensors.names().len().saturating_sub(unexpected.len());
            let names = [("missing", missing), ("unexpected", unexpected)];
            let names = names
                .iter()
                .flat_map(|(what, names)| names.iter().map(move |name| format!("{what}: {}", in_line(name))));
            found.add_list("names", "none is missing or unexpected", names);
            match with_place {
                0 => found.add("shapes", Verdict::NotChecked, "no tensor of the file has a place in the base"),
                _ => {
                    let ok =
                        format!("as the base has them, of {} that it has a place for", count(with_place, "tensor"));
                    found.add_list("shapes", &ok, misshapen.iter().map(ToString::to_string));
                }
            }
        }
        Err(error) => found.add("places", Verdict::Failed, error.to_string()),
    }
}

/// Whether the fingerprint that was `saved` is the base's `own`. If all else fits, another one is no error.
fn check_fingerprint(saved: Option<&str>, own: &str, found: &mut Found) {
    match saved {
        None => {
            let detail = "the file has none, as peft writes none: which base it was saved on is not known";
            found.add("fingerprint", Verdict::NotChecked, detail);
        }
        Some(saved) if saved == own => found.add("fingerprint", Verdict::Ok, "that of the base"),
        Some(saved) => {
            let (verdict, reason) = match found.failed() {
                true => (Verdict::Failed, "it was made on another base"),
                false => (Verdict::Warning, "it was made on another base, or on this one in another precision"),
            };
            let saved = in_line(saved);
            found.add("fingerprint", verdict, format!("{saved} in the file, {own} of the base: {reason}"));
        }
    }
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

    /// That the base has places for the adapter, if not for every name. A method without `target_modules` has its own
    /// places, which every base has.
    fn add_places(&mut self, method: &dyn Method) {
        match self.unmatched_targets.join(", ") {
            _ if method.targets().is_none() => {
                self.add("places", Verdict::NotChecked, format!("{} has no target_modules", method.peft_type()));
            }
            none if none.is_empty() => self.add("places", Verdict::Ok, "the base has them"),
            names => {
                let detail = format!("target_modules that nothing in the base has: {}", in_line(&names));
                self.add("places", Verdict::Warning, detail);
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
        let unchecked = self.checks.iter().filter(|check| check.verdict == Verdict::NotChecked);
        let unchecked = unchecked.map(|check| check.check).collect::<Vec<_>>().join(", ");
        let [adapter, base] = [&self.adapter, &self.base].map(|path| in_line(path));
        match (self.passed, warnings) {
            (true, 0) => write!(f, "\n{adapter} fits {base}")?,
            (true, _) => write!(f, "\n{adapter} fits {base}, with {}", count(warnings, "warning"))?,
            (false, _) => write!(f, "\n{adapter} does not pass")?,
        }
        if unchecked.is_empty() { Ok(()) } else { write!(f, "; not checked: {unchecked}") }
    }
}
