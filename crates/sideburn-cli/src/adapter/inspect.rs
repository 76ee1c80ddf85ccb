//! `sideburn adapter inspect`: what is in an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use sideburn::adapters::methods::LoraConfig;
use sideburn::weights::TensorSource;

use super::halves::{Halves, base_fingerprint, is_float};
use super::tensors::{Name, Norms, Update, lora_updates, norm};
use crate::hub;
use crate::report::{Finding, count, grouped, in_line, number, shown, table};

/// Show what is in an adapter: its configuration, its size, and how large its tensors are
///
/// No base model is needed. Norms are Frobenius norms; for LoRA there is also that of s B A, which is what a site's weight
/// changes by. An adapter of a method that Sideburn does not have is shown as far as its tensors go; one whose
/// configuration or tensors are missing or broken is shown as far as the other half goes, and fails.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory with adapter_config.json and adapter_model.safetensors or adapter_model.bin, or an id on the hub
    #[arg(value_name = "DIR|ID")]
    adapter: PathBuf,
    /// List the sites, for LoRA with rank, scaling s and the norm of s B A
    #[arg(long)]
    sites: bool,
}

#[derive(Serialize)]
pub(crate) struct Inspection {
    adapter: String,
    file: Option<String>,
    /// What could not be read, and why.
    problems: Vec<String>,
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    task_type: Option<String>,
    peft_version: Option<String>,
    modules_to_save: Vec<String>,
    /// Why Sideburn cannot load it, if it cannot.
    unsupported: Option<String>,
    base_fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    site_list: Option<Vec<Site>>,
    #[serde(flatten)]
    contents: Contents,
    /// Those of s B A.
    updates: Option<Norms>,
}

/// What the tensors of a file are, whatever they mean.
#[derive(Default, Serialize)]
struct Contents {
    ranks: BTreeSet<usize>,
    sites: usize,
    tensors: usize,
    dtypes: BTreeSet<String>,
    parameters: usize,
    bytes: usize,
    /// By what the tensors are at their sites.
    norms: BTreeMap<String, Norms>,
    /// Tensors of other dtypes than floating-point numbers, which have no norm.
    without_norm: BTreeMap<String, usize>,
    #[serde(skip)]
    site_names: BTreeSet<String>,
}

#[derive(Serialize)]
struct Site {
    site: String,
    #[serde(flatten)]
    update: Option<Update>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Inspection> {
    let directory = hub::adapter(&args.adapter)?;
    let halves = Halves::open(&directory)?;
    let method = halves.method(&directory);
    let config = halves.config.as_ref().unwrap_or(&Value::Null);
    let mut problems = Vec::new();
    problems.extend(halves.config.as_ref().err().map(ToString::to_string));
    problems.extend(halves.tensors.as_ref().err().map(ToString::to_string));

    let tensors = halves.tensors.as_ref().ok();
    let contents = tensors.map(|tensors| Contents::of(tensors, &mut problems)).unwrap_or_default();
    let lora = method.as_ref().and_then(|method| method.as_ref().ok()?.downcast_ref::<LoraConfig>());
    let updates = match (tensors, lora) {
        (Some(tensors), Some(lora)) => match lora_updates(tensors, lora) {
            Ok(updates) => Some(BTreeMap::from_iter(updates)),
            // Where a factor cannot be read, that has been said.
            Err(error) => {
                problems.extend(problems.is_empty().then(|| error.to_string()));
                None
            }
        },
        _ => None,
    };
    let site_list = args.sites.then(|| {
        let update = |site: &str| updates.as_ref()?.get(site).cloned();
        contents.site_names.iter().map(|site| Site { site: site.clone(), update: update(site) }).collect()
    });
    let field = |name: &str| config.get(name).and_then(Value::as_str).map(str::to_owned);
    let to_save = config.get("modules_to_save").and_then(Value::as_array);
    Ok(Inspection {
        adapter: shown(&args.adapter),
        file: tensors.map(|tensors| tensors.path().file_name().unwrap_or_default().to_string_lossy().into_owned()),
        peft_type: field("peft_type"),
        base_model_name_or_path: field("base_model_name_or_path"),
        task_type: field("task_type"),
        peft_version: field("peft_version"),
        modules_to_save: to_save.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        unsupported: method.and_then(Result::err).map(|error| error.to_string()),
        base_fingerprint: base_fingerprint(&directory),
        site_list,
        contents,
        updates: updates.map(|updates| {
            let mut norms = Norms::default();
            updates.values().for_each(|update| norms.add(update.norm));
            norms
        }),
        problems,
    })
}

impl Contents {
    /// Goes through a file. What cannot be read is added to `problems`.
    fn of(file: &dyn TensorSource, problems: &mut Vec<String>) -> Self {
        let mut contents = Self { tensors: file.names().len(), ..Self::default() };
        for tensor in file.names() {
            let (info, Name { site, part }) = (file.info(tensor).expect("a name of the file"), Name::parse(tensor));
            contents.site_names.extend(site.map(str::to_owned));
            if ["lora_A.weight", "lora_embedding_A", "lora_A"].contains(&part) {
                contents.ranks.extend(info.shape.first());
            }
            contents.dtypes.insert(format!("{:?}", info.dtype));
            contents.parameters += info.num_elements();
            contents.bytes += info.num_elements() * info.dtype.bitsize() / 8;
            if !is_float(info.dtype) {
                *contents.without_norm.entry(part.to_owned()).or_default() += 1;
                continue;
            }
            match file.read_f32(tensor) {
                Ok(values) => contents.norms.entry(part.to_owned()).or_default().add(norm(&values)),
                Err(error) => problems.push(error.to_string()),
            }
        }
        contents.sites = contents.site_names.len();
        contents
    }

    fn write_norms(&self, updates: Option<&Norms>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let norms = self.norms.iter().map(|(part, norms)| (part.as_str(), norms));
        let updates = updates.filter(|updates| updates.tensors > 0).map(|updates| ("s B A", updates));
        let mut rows = vec![["norm of", "how many", "largest", "mean"].map(str::to_owned)];
        rows.extend(norms.chain(updates).map(|(part, Norms { tensors, largest, mean })| {
            [in_line(part), grouped(*tensors), number(*largest), number(*mean)]
        }));
        rows.extend(
            self.without_norm
                .iter()
                .map(|(part, tensors)| [in_line(part), grouped(*tensors), "-".to_owned(), "-".to_owned()]),
        );
        table(f, &rows)
    }
}

impl Finding for Inspection {
    fn passed(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &Option<String>| text.as_deref().map_or("not given".to_owned(), in_line);
        let listed = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        let mut rows = vec![["adapter".to_owned(), in_line(&self.adapter)]];
        let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
        for problem in &self.problems {
            row("UNREADABLE", problem.clone());
        }
        row("type", or_none(&self.peft_type));
        row("base", or_none(&self.base_model_name_or_path));
        row("task", or_none(&self.task_type));
        row("PEFT version", or_none(&self.peft_version));
        if let Some(fingerprint) = &self.base_fingerprint {
            row("fingerprint", format!("{} (of the base)", in_line(fingerprint)));
        }
        if let Some(reason) = &self.unsupported {
            row("unsupported", reason.clone());
        }
        if !self.modules_to_save.is_empty() {
            row("saved whole", in_line(&self.modules_to_save.join(", ")));
        }
        let Contents { ranks, sites, tensors, dtypes, parameters, bytes, .. } = &self.contents;
        if !ranks.is_empty() {
            row("rank", listed(&mut ranks.iter().map(usize::to_string)));
        }
        let Some(file) = &self.file else { return table(f, &rows) };
        row("sites", grouped(*sites));
        let dtypes = listed(&mut dtypes.iter().cloned());
        row("parameters", format!("{} in {}", grouped(*parameters), count(*tensors, "tensor")));
        row("bytes", format!("{} as {dtypes} in {}", grouped(*bytes), in_line(file)));
        table(f, &rows)?;
        writeln!(f)?;
        self.contents.write_norms(self.updates.as_ref(), f)?;

        let Some(sites) = &self.site_list else { return Ok(()) };
        writeln!(f)?;
        if self.updates.is_none() {
            return sites.iter().try_for_each(|site| writeln!(f, "{}", in_line(&site.site)));
        }
        let mut rows = vec![["site", "rank", "s", "norm of s B A"].map(str::to_owned)];
        rows.extend(sites.iter().map(|Site { site, update }| match update {
            Some(Update { rank, scaling, norm }) => [in_line(site), rank.to_string(), number(*scaling), number(*norm)],
            None => [in_line(site), String::new(), String::new(), String::new()],
        }));
        table(f, &rows)
    }
}
