//! `sideburn adapter combine`: one LoRA adapter out of several.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use sideburn::adapters::methods::LoraConfig;
use sideburn::adapters::{AdaptedModel, Adapters, Combination};
use sideburn::files::check_writable;
use sideburn::prelude::*;

use crate::hub;
use crate::model::open;
use crate::report::{Finding, grouped, in_line, shown, table};

/// Make one LoRA adapter of several
///
/// As add_weighted_adapter of peft, with one rank everywhere and a scaling of 1. Only cat and svd take adapters of
/// different ranks; cat alone keeps the exact sum of the weighted updates, at the rank of all together. Adapters that are
/// more than plain LoRA (DoRA, biases, modules_to_save) are refused. What dare_linear and dare_ties draw follows from the
/// seed and from the order of the adapters.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directories of the adapters, or their ids on the hub
    #[arg(value_name = "DIR|ID", required = true)]
    adapters: Vec<PathBuf>,
    /// Directory of the base model, or its id on the hub
    #[arg(long, value_name = "DIR|ID")]
    base: PathBuf,
    /// Directory to write to; a new one, or an empty one
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// What each adapter is multiplied by, such as 0.7,0.3; 1 by default
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', allow_hyphen_values = true)]
    weights: Vec<f64>,
    /// How they become one
    #[arg(long, value_enum, default_value_t = Type::Cat)]
    combination_type: Type,
    /// The rank of the new adapter, for svd; by default the largest of the adapters
    #[arg(long, value_name = "RANK")]
    svd_rank: Option<usize>,
    /// The share of elements that are kept, for ties, dare_linear, dare_ties and magnitude_prune
    #[arg(long, value_name = "SHARE")]
    density: Option<f64>,
    /// What dare_linear and dare_ties draw with; 0 by default
    #[arg(long)]
    seed: Option<u64>,
}

/// `combination_type`, in the words of `peft`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
enum Type {
    /// The factors one after the other: the exact sum
    Cat,
    /// The nearest to the exact sum that has a given rank
    Svd,
    /// Sums of the factors
    Linear,
    /// Sums of the largest elements, where their signs agree
    Ties,
    /// Sums of elements drawn at random
    DareLinear,
    /// Sums of elements drawn at random, where their signs agree
    DareTies,
    /// Sums of the largest elements
    MagnitudePrune,
}

#[derive(Serialize)]
pub(crate) struct Combined {
    output: String,
    combination_type: Type,
    adapters: Vec<Weighted>,
    rank: usize,
    sites: usize,
    parameters: usize,
    /// Where `peft` makes something else of the adapter.
    differences_in_peft: Vec<String>,
}

#[derive(Serialize)]
struct Weighted {
    adapter: String,
    weight: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Combined> {
    let how = args.combination()?;
    let weights = match args.weights.len() {
        0 => vec![1.0; args.adapters.len()],
        _ => args.weights.clone(),
    };
    let (given, needed) = (weights.len(), args.adapters.len());
    ensure!(given == needed, "--weights has {given} numbers for {needed} adapters; give one for each");
    ensure!(
        is_free(&args.output),
        "the output {} is there already; choose a directory that is new or empty",
        shown(&args.output)
    );
    check_writable(&args.output)?;
    let mut model = open(&hub::model(&args.base)?)?;
    // Adapters are called by their places in the list, so that nothing depends on where they lie.
    let names: Vec<String> = (1..=needed).map(|place| place.to_string()).collect();
    for (name, adapter) in names.iter().zip(&args.adapters) {
        model.load_adapter(name, hub::adapter(adapter)?)?;
    }
    let parts: Vec<(&str, f64)> = names.iter().map(String::as_str).zip(weights.iter().copied()).collect();
    model.combine("default", &parts, how).with_context(|| {
        let listed = |(name, adapter): (&String, &PathBuf)| format!("{name:?} is {}", shown(adapter));
        names.iter().zip(&args.adapters).map(listed).collect::<Vec<_>>().join(", ")
    })?;
    let differences = model.save_adapter("default", &args.output)?;
    let method = model.adapters().get("default")?.method();
    let tensors = model.adapter_tensors("default")?;
    let weighted = args.adapters.iter().zip(weights);
    Ok(Combined {
        output: shown(&args.output),
        combination_type: args.combination_type,
        adapters: weighted.map(|(adapter, weight)| Weighted { adapter: shown(adapter), weight }).collect(),
        rank: method.downcast_ref::<LoraConfig>().context("what is combined is LoRA")?.r,
        sites: tensors.len() / 2,
        parameters: tensors.values().map(|tensor| tensor.lazy_shape().num_elements()).sum(),
        differences_in_peft: differences.iter().map(ToString::to_string).collect(),
    })
}

/// Whether nothing is overwritten there.
fn is_free(output: &Path) -> bool {
    match output.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => output.symlink_metadata().is_err(),
    }
}

impl Args {
    /// What the options ask for; those that have no say in it are refused.
    fn combination(&self) -> anyhow::Result<Combination> {
        use Type::{Cat, DareLinear, DareTies, Linear, MagnitudePrune, Svd, Ties};
        let of = self.combination_type;
        let thins = matches!(of, Ties | DareLinear | DareTies | MagnitudePrune);
        let draws = matches!(of, DareLinear | DareTies);
        for (option, given, has_a_say) in [
            ("--svd-rank", self.svd_rank.is_some(), of == Svd),
            ("--density", self.density.is_some(), thins),
            ("--seed", self.seed.is_some(), draws),
        ] {
            if given && !has_a_say {
                bail!("{option} means nothing for this --combination-type; leave it out");
            }
        }
        let density = match self.density {
            None if thins => bail!("this --combination-type needs a --density, such as 0.5"),
            density => density.unwrap_or(1.0),
        };
        let key = Key::from_seed(self.seed.unwrap_or(0));
        Ok(match of {
            Cat => Combination::Cat,
            Svd => Combination::Svd { rank: self.svd_rank },
            Linear => Combination::Linear,
            Ties => Combination::Ties { density },
            DareLinear => Combination::DareLinear { density, key },
            DareTies => Combination::DareTies { density, key },
            MagnitudePrune => Combination::MagnitudePrune { density },
        })
    }
}

impl Finding for Combined {}

impl fmt::Display for Combined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |Weighted { adapter, weight }: &Weighted| format!("{weight} * {}", in_line(adapter));
        let how = self.combination_type.to_possible_value().expect("no type is hidden").get_name().to_owned();
        let parts = self.adapters.iter().map(part).collect::<Vec<_>>().join("\n");
        let mut rows = vec![
            ["written".to_owned(), in_line(&self.output)],
            [how, parts],
            ["rank".to_owned(), self.rank.to_string()],
            ["sites".to_owned(), grouped(self.sites)],
            ["parameters".to_owned(), grouped(self.parameters)],
        ];
        if !self.differences_in_peft.is_empty() {
            rows.push(["in peft".to_owned(), self.differences_in_peft.join("\n")]);
        }
        table(f, &rows)
    }
}
