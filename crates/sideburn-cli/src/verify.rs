//! `sideburn verify`: whether a model computes here what it computed elsewhere.

use std::fmt;
use std::path::PathBuf;

use anyhow::ensure;
use serde::Serialize;
use sideburn::kernels::{MatmulPrecision, set_matmul_precision};
use sideburn::prelude::*;

use crate::hub;
use crate::model::{logits, max_difference, mean_loss, open_on, write};
use crate::reference::{Rectangle, Reference};
use crate::report::{Finding, Verdict, count, in_line, number, shown, table};

/// Hold a model, with or without an adapter, against what transformers and peft have computed
///
/// The reference is a safetensors file with `input_ids` and `attention_mask` (padded on the right), `decoder_input_ids`
/// and `logits`; and, if you like, `labels` (-100 where there are none) and `loss`, and `greedy_ids` and `beam4_ids` as
/// generate returns them with one beam and with four. docs/verify.md has the lines of Python that write one from your own model. Fails if a number differs by more
/// than the tolerance, or any token. Rounding grows with the size of the logits, so the tolerance does by default: it is a
/// share of their spread, which is the standard deviation of all logits of the reference.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of the model, or its id on the hub
    #[arg(long, value_name = "DIR|ID")]
    model: PathBuf,
    /// Directory of an adapter for it, or its id on the hub
    #[arg(long, value_name = "DIR|ID")]
    adapter: Option<PathBuf>,
    /// File of inputs and of what they must give
    #[arg(long, value_name = "FILE")]
    reference: PathBuf,
    /// The largest absolute difference that passes, in place of one relative to the spread
    #[arg(long, value_name = "DIFFERENCE", value_parser = not_negative, conflicts_with = "relative_tolerance")]
    tolerance: Option<f64>,
    /// The largest difference that passes, as a share of the spread: 1e-4 lets logits whose spread is 8 differ by 8e-4
    #[arg(long, value_name = "SHARE", value_parser = not_negative, default_value_t = 1e-4)]
    relative_tolerance: f64,
    /// Where to compute: flex (the CPU), wgpu, vulkan, metal or cuda, with :INDEX behind a GPU's
    #[arg(long, default_value = "flex")]
    device: String,
    /// How exactly a GPU multiplies f32: highest, or high or medium, which lets tensor cores round (TF32)
    #[arg(long, default_value_t)]
    matmul_precision: MatmulPrecision,
}

#[derive(Serialize)]
pub(crate) struct Verification {
    model: String,
    adapter: Option<String>,
    reference: String,
    /// The largest absolute difference that passes; `null` in JSON if the spread is not a number.
    tolerance: f64,
    /// The same as a share of the spread, unless an absolute one was asked for.
    relative_tolerance: Option<f64>,
    /// The standard deviation of the reference's logits.
    spread: f64,
    passed: bool,
    tensors: Vec<Check>,
}

/// What became of one tensor of the reference.
#[derive(Serialize)]
struct Check {
    tensor: String,
    verdict: Verdict,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    /// `null` in JSON if it is not a number.
    Numbers {
        largest_difference: f32,
        /// As a share of the spread of the logits.
        relative_difference: f64,
    },
    Tokens {
        rows: usize,
        rows_that_differ: usize,
        first_difference: Option<TokenDifference>,
    },
    NotChecked {
        reason: String,
    },
}

#[derive(Serialize)]
struct TokenDifference {
    row: usize,
    column: usize,
    found: i64,
    expected: i64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Verification> {
    let mut reference = Reference::open(&args.reference)?;
    set_matmul_precision(args.matmul_precision);
    let mut model = open_on(&hub::model(&args.model)?, &args.device)?;
    if let Some(adapter) = &args.adapter {
        model.load_adapter("default", hub::adapter(adapter)?)?;
    }
    let (expected, spread) = read_logits(&mut reference)?;
    let limit = Limit { spread, tolerance: args.tolerance.unwrap_or(args.relative_tolerance * spread) };
    let mut tensors = check_all(&model, &mut reference, &expected, &limit)?;
    for tensor in reference.into_unread() {
        let reason = match tensor.as_str() {
            "labels" => "there is no `loss`",
            "loss" => "there are no `labels`",
            _ => "the name is unknown",
        };
        tensors.push(Check::none(tensor, reason));
    }
    Ok(Verification {
        model: shown(&args.model),
        adapter: args.adapter.as_deref().map(shown),
        reference: shown(&args.reference),
        tolerance: limit.tolerance,
        relative_tolerance: args.tolerance.is_none().then_some(args.relative_tolerance),
        spread,
        passed: tensors.iter().all(|check| check.verdict != Verdict::Failed),
        tensors,
    })
}

/// A number of at least 0.
fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        Ok(_) => Err("expected a number of at least 0".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// What differences are held against.
struct Limit {
    /// The standard deviation of the reference's logits.
    spread: f64,
    /// The largest absolute difference that passes.
    tolerance: f64,
}

/// The logits of a reference with their shape.
struct Logits {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// The logits that are expected, and their standard deviation over all rows, columns and tokens.
fn read_logits(reference: &mut Reference) -> anyhow::Result<(Logits, f64)> {
    let (shape, values) = reference.floats("logits")?;
    let count = values.len() as f64;
    let mean = values.iter().copied().map(f64::from).sum::<f64>() / count;
    let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    Ok((Logits { shape, values }, variance.sqrt()))
}

fn check_all(
    model: &AutoModel,
    reference: &mut Reference,
    expected: &Logits,
    limit: &Limit,
) -> anyhow::Result<Vec<Check>> {
    let mask = reference.integers("attention_mask")?;
    ensure!(mask.values.iter().all(|kept| matches!(kept, 0 | 1)), "`attention_mask` has other values than 0 and 1");
    let source = reference.integers("input_ids")?;
    ensure!(
        [source.rows, source.columns] == [mask.rows, mask.columns],
        "`attention_mask` is {} x {}, `input_ids` is {} x {}",
        mask.rows,
        mask.columns,
        source.rows,
        source.columns
    );
    let source = source.cut(&mask.lengths(|kept| kept == 0)?)?;
    let rows = source.len();

    let input = reference.integers("decoder_input_ids")?;
    ensure!(input.rows == rows, "`decoder_input_ids` has {} rows, `input_ids` has {rows}", input.rows);
    let Logits { shape, values: expected } = expected;
    let own_shape = [rows, input.columns, model.vocab_size()];
    ensure!(*shape == own_shape, "`logits` has the shape {shape:?}, those of this model have {own_shape:?}");
    let found = logits(model, &source, &input.whole()?)?;
    let mut checks = vec![Check::numbers("logits", max_difference(&found, expected), limit)];

    if reference.has("labels") && reference.has("loss") {
        let labels = reference.integers("labels")?;
        let (_, expected) = reference.floats("loss")?;
        ensure!(expected.len() == 1, "`loss` has {} values, expected one", expected.len());
        let target = labels.lengths(|label| label == -100).and_then(|lengths| labels.cut(&lengths));
        checks.push(match target {
            Ok(target) => {
                let found = mean_loss(model, source.clone(), target)?;
                Check::numbers("loss", max_difference(&[found], &expected), limit)
            }
            Err(error) => Check::none("loss".to_owned(), &format!("{error:#}")),
        });
    }
    for (name, num_beams) in [("greedy_ids", 1), ("beam4_ids", 4)] {
        if reference.has(name) {
            let expected = reference.integers(name)?;
            ensure!(expected.rows == rows, "`{name}` has {} rows, `input_ids` has {rows}", expected.rows);
            let found = write(model, &source, num_beams, expected.columns, &expected.values)?;
            checks.push(Check::tokens(name, &found, &expected));
        }
    }
    Ok(checks)
}

impl Check {
    fn numbers(tensor: &str, largest_difference: f32, limit: &Limit) -> Self {
        let found = f64::from(largest_difference);
        // What is not a number is not within any tolerance, and nothing is within one that is not a number.
        let verdict = if found <= limit.tolerance { Verdict::Ok } else { Verdict::Failed };
        // Equal is equal, also where there is no spread.
        let relative_difference = if found == 0.0 { 0.0 } else { found / limit.spread };
        let outcome = Outcome::Numbers { largest_difference, relative_difference };
        Self { tensor: tensor.to_owned(), verdict, outcome }
    }

    fn tokens(tensor: &str, found: &[i64], expected: &Rectangle) -> Self {
        let Rectangle { rows, columns, .. } = *expected;
        let row_pairs = || found.chunks(columns).zip(expected.values.chunks(columns));
        let rows_that_differ = row_pairs().filter(|(found, expected)| found != expected).count();
        let first = found.iter().zip(&expected.values).position(|(found, expected)| found != expected);
        let first_difference = first.map(|at| TokenDifference {
            row: at / columns,
            column: at % columns,
            found: found[at],
            expected: expected.values[at],
        });
        let verdict = if rows_that_differ == 0 { Verdict::Ok } else { Verdict::Failed };
        let outcome = Outcome::Tokens { rows, rows_that_differ, first_difference };
        Self { tensor: tensor.to_owned(), verdict, outcome }
    }

    fn none(tensor: String, reason: &str) -> Self {
        Self { tensor, verdict: Verdict::NotChecked, outcome: Outcome::NotChecked { reason: reason.to_owned() } }
    }
}

impl Finding for Verification {
    fn passed(&self) -> bool {
        self.passed
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers { largest_difference, relative_difference } => {
                let absolute = number((*largest_difference).into());
                write!(f, "differs by at most {absolute}, {} of the spread", number(*relative_difference))
            }
            Self::Tokens { rows, first_difference: None, .. } => write!(f, "{} equal", count(*rows, "row")),
            Self::Tokens { rows, rows_that_differ, first_difference: Some(first) } => {
                let TokenDifference { row, column, found, expected } = first;
                let rows = count(*rows, "row");
                write!(f, "{rows_that_differ} of {rows} differ, first row {row}, column {column}: ")?;
                write!(f, "{found}, expected {expected}")
            }
            Self::NotChecked { reason } => f.write_str(reason),
        }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |check: &Check| [check.verdict.to_string(), in_line(&check.tensor), check.outcome.to_string()];
        table(f, &self.tensors.iter().map(row).collect::<Vec<_>>())?;
        let verdict = if self.passed { "agrees" } else { "does not agree" };
        let adapter = self.adapter.iter().map(|adapter| format!(" with {}", in_line(adapter))).collect::<String>();
        let [model, reference] = [&self.model, &self.reference].map(|path| in_line(path));
        writeln!(f, "\n{model}{adapter} {verdict} with {reference}")?;
        let (spread, tolerance) = (number(self.spread), number(self.tolerance));
        write!(f, "tolerance {tolerance}")?;
        if let Some(share) = self.relative_tolerance {
            write!(f, ", which is {share:e} of the spread")?;
        }
        write!(f, "; the spread is {spread}, the standard deviation of the reference's logits")
    }
}
