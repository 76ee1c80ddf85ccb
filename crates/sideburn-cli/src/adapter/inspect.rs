//! `sideburn adapter inspect`: what is in an adapter.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use sideburn::adapters::{AdapterDir, LoraConfig};

use super::tensors::{Name, Norms, Update, lora_updates, norm};
use crate::report::{Finding, count, grouped, number, table};

/// Show what is in an adapter: its configuration, its size, and how large its tensors are
///
/// No base model is needed. Norms are Frobenius norms; for LoRA there is also that of s B A, which is what a site's weight
/// changes by. An adapter of a method that Sideburn does not have is shown as far as its tensors go.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory with adapter_config.json and adapter_model.safetensors or adapter_model.bin
    #[arg(value_name = "DIR")]
    adapter: PathBuf,
    /// List the sites, for LoRA with rank, scaling s and the norm of s B A
    #[arg(long)]
    sites: bool,
}

#[derive(Serialize)]
pub(crate) struct Inspection {
    adapter: String,
    file: String,
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    task_type: Option<String>,
    peft_version: Option<String>,
    modules_to_save: Vec<String>,
    /// Why Sideburn cannot load it, if it cannot.
    unsupported: Option<String>,
    base_fingerprint: Option<String>,
    ranks: BTreeSet<usize>,
    sites: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    site_list: Option<Vec<Site>>,
    tensors: usize,
    dtypes: BTreeSet<String>,
    parameters: usize,
    bytes: usize,
    /// By what the tensors are at their sites.
    norms: BTreeMap<String, Norms>,
    /// Those of s B A.
    updates: Option<Norms>,
}

#[derive(Serialize)]
struct Site {
    site: String,
    #[serde(flatten)]
    update: Option<Update>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Inspection> {
    let adapter = AdapterDir::open(&args.adapter)?;
    let (method, tensors) = (adapter.method(), adapter.tensors());
    let mut sites = BTreeSet::new();
    let (mut dtypes, mut ranks, mut norms) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::<_, Norms>::new());
    let (mut parameters, mut bytes) = (0, 0);
    for tensor in tensors.names() {
        let (info, Name { site, part }) = (tensors.info(tensor).expect("a name of the file"), Name::parse(tensor));
        sites.extend(site);
        if ["lora_A.weight", "lora_embedding_A", "lora_A"].contains(&part) {
            ranks.extend(info.shape.first());
        }
        dtypes.insert(format!("{:?}", info.dtype));
        parameters += info.num_elements();
        bytes += info.num_elements() * info.dtype.bitsize() / 8;
        norms.entry(part.to_owned()).or_default().add(norm(&tensors.read_f32(tensor)?));
    }
    let lora = method.as_ref().ok().and_then(|method| method.downcast_ref::<LoraConfig>());
    let updates = lora.map(|lora| lora_updates(&adapter, lora)).transpose()?.map(BTreeMap::from_iter);
    let site_list = args.sites.then(|| {
        let update = |site: &str| updates.as_ref()?.get(site).cloned();
        sites.iter().map(|site| Site { site: (*site).to_owned(), update: update(site) }).collect()
    });
    let field = |name: &str| adapter.config().get(name).and_then(Value::as_str).map(str::to_owned);
    let to_save = adapter.config().get("modules_to_save").and_then(Value::as_array);
    Ok(Inspection {
        adapter: args.adapter.display().to_string(),
        file: tensors.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        peft_type: field("peft_type"),
        base_model_name_or_path: field("base_model_name_or_path"),
        task_type: field("task_type"),
        peft_version: field("peft_version"),
        modules_to_save: to_save.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        unsupported: method.as_ref().err().map(ToString::to_string),
        base_fingerprint: adapter.base_fingerprint().map(str::to_owned),
        ranks,
        sites: sites.len(),
        site_list,
        tensors: tensors.names().len(),
        dtypes,
        parameters,
        bytes,
        norms,
        updates: updates.map(|updates| {
            let mut norms = Norms::default();
            updates.values().for_each(|update| norms.add(update.norm));
            norms
        }),
    })
}

impl Finding for Inspection {}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "not given".to_owned());
        let listed = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        let mut rows = vec![
            ["adapter", &self.adapter].map(str::to_owned),
            ["type".to_owned(), or_none(&self.peft_type)],
            ["base".to_owned(), or_none(&self.base_model_name_or_path)],
            ["task".to_owned(), or_none(&self.task_type)],
            ["PEFT version".to_owned(), or_none(&self.peft_version)],
        ];
        let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
        if let Some(fingerprint) = &self.base_fingerprint {
            row("fingerprint", format!("{fingerprint} (of the base)"));
        }
        if let Some(reason) = &self.unsupported {
            row("unsupported", reason.clone());
        }
        if !self.ranks.is_empty() {
            row("rank", listed(&mut self.ranks.iter().map(usize::to_string)));
        }
        row("sites", grouped(self.sites));
        if !self.modules_to_save.is_empty() {
            row("saved whole", self.modules_to_save.join(", "));
        }
        let dtypes = listed(&mut self.dtypes.iter().cloned());
        row("parameters", format!("{} in {}", grouped(self.parameters), count(self.tensors, "tensor")));
        row("bytes", format!("{} as {dtypes} in {}", grouped(self.bytes), self.file));
        table(f, &rows)?;

        let norms = self.norms.iter().map(|(part, norms)| (part.as_str(), norms));
        let updates = self.updates.iter().filter(|updates| updates.tensors > 0).map(|updates| ("s B A", updates));
        let mut rows = vec![["norm of", "how many", "largest", "mean"].map(str::to_owned)];
        rows.extend(norms.chain(updates).map(|(part, Norms { tensors, largest, mean })| {
            [part.to_owned(), grouped(*tensors), number(*largest), number(*mean)]
        }));
        writeln!(f)?;
        table(f, &rows)?;

        let Some(sites) = &self.site_list else { return Ok(()) };
        writeln!(f)?;
        if self.updates.is_none() {
            return sites.iter().try_for_each(|site| writeln!(f, "{}", site.site));
        }
        let mut rows = vec![["site", "rank", "s", "norm of s B A"].map(str::to_owned)];
        rows.extend(sites.iter().map(|Site { site, update }| match update {
            Some(Update { rank, scaling, norm }) => [site.clone(), rank.to_string(), number(*scaling), number(*norm)],
            None => [site.as_str(), "", "", ""].map(str::to_owned),
        }));
        table(f, &rows)
    }
}
