//! What can go wrong with adapters and base weights.

use std::fmt;
use std::path::PathBuf;

use sideburn_files::{FileError, printable, printable_lines};
use sideburn_quant::QuantError;
use sideburn_weights::WeightsError;

/// A tensor whose shape is not that of its site in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name in the file.
    pub tensor: String,
    /// Its shape in the file.
    pub found: Vec<usize>,
    /// The shape that the model has.
    pub expected: Vec<usize>,
}

impl fmt::Display for Misshapen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:?}, the model has {:?}", printable(&self.tensor), self.found, self.expected)
    }
}

/// Why an adapter or base weights could not be made, loaded or saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// Targets that mean no site, or none that the method can adapt.
    #[error(
        "target_modules {targets:?} match{} nothing in the model that can be adapted so; choose among: {}",
        if targets.len() == 1 { "es" } else { "" },
        sites.join(", ")
    )]
    UnmatchedTargets {
        /// The targets.
        targets: Vec<String>,
        /// The sites of the model that could be targeted.
        sites: Vec<String>,
    },
    /// A method for the tokens of a model that embeds none.
    #[error(
        "{} has nothing to adapt: the model has no embedding; choose a method for its layers",
        printable(peft_type)
    )]
    NoEmbedding {
        /// Its method.
        peft_type: String,
    },
    /// Names in `modules_to_save` that name nothing.
    #[error(
        "modules_to_save {names:?} name{} nothing in the model; choose among: {}",
        if names.len() == 1 { "s" } else { "" },
        sites.join(", ")
    )]
    UnmatchedModulesToSave {
        /// The names.
        names: Vec<String>,
        /// All sites of the model.
        sites: Vec<String>,
    },
    /// A pattern for names of sites that is not a regular expression, or one that takes too long.
    #[error("{field} {pattern:?} is not a regular expression that is supported here: {}", printable_lines(message))]
    TargetPattern {
        /// The field, as `peft` calls it.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// A field with a value that means nothing.
    #[error("`{field}` is {}, expected {expected}; correct the configuration", printable(found))]
    InvalidField {
        /// The field, as `peft` calls it.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A field that would change the result and is not supported.
    #[error(
        "`{}` is {}, which this version does not support; it may change what the adapter computes",
        printable(field),
        printable(value)
    )]
    UnsupportedField {
        /// The field, as `peft` calls it.
        field: String,
        /// Its value.
        value: String,
    },
    /// A method that this version does not have.
    #[error("`peft_type` is {peft_type:?}, which this version does not have; it has {}", known.join(", "))]
    UnknownMethod {
        /// The method, as `peft` calls it.
        peft_type: String,
        /// Those that there are.
        known: Vec<&'static str>,
    },
    /// A folder that is not there, or holds no adapter.
    #[error("{}: {}", printable(path), printable(reason))]
    NoAdapter {
        /// The folder.
        path: PathBuf,
        /// What is there instead, and what to do.
        reason: String,
    },
    /// An adapter that is too large to be meant.
    #[error(
        "the adapter would have {elements} elements, {largest} of them in {tensor}; its base has {base}, beside which at \
         most {most} can be; correct the rank or the number of tokens"
    )]
    TooLarge {
        /// How many elements its tensors have together, or `u128::MAX` if they cannot be counted.
        elements: u128,
        /// The largest tensor.
        tensor: String,
        /// How many elements that one has.
        largest: u128,
        /// How many elements the base has.
        base: u128,
        /// How many an adapter of this base may have.
        most: u128,
    },
    /// A configuration that cannot be read.
    #[error("{}: the adapter configuration cannot be read: {}", printable(path), printable(message))]
    UnreadableConfig {
        /// The file.
        path: PathBuf,
        /// The reason.
        message: String,
    },
    /// A configuration beside tensors that were saved with another one.
    #[error(
        "{}: this is not the configuration that {} was saved with (its hash is {found}, that one's {}); take both files \
         from one adapter, or undo the change",
        printable(path),
        printable(tensors),
        printable(saved_with)
    )]
    OtherHalf {
        /// The file of the configuration.
        path: PathBuf,
        /// The hash of what it says.
        found: String,
        /// The file of the tensors.
        tensors: PathBuf,
        /// The hash of the configuration that they were saved with.
        saved_with: String,
    },
    /// An adapter of another configuration than that of the one whose tensors it would replace.
    #[error(
        "{}: this is another configuration than that of the adapter {name:?}: {}; attach it under a name of its own",
        printable(path),
        printable(&differences.join(", "))
    )]
    OtherConfiguration {
        /// The file.
        path: PathBuf,
        /// The adapter in the model.
        name: String,
        /// The fields that differ, with what they are in the file and in the model.
        differences: Vec<String>,
    },
    /// A Burn module without adapters of Burn's.
    #[error(
        "the module has no LoRA adapter of Burn's (`Module::apply_lora`), only the parameters {}",
        parameters.join(", ")
    )]
    NoBurnLora {
        /// The matrices of the module, by Burn's paths.
        parameters: Vec<String>,
    },
    /// Two weights of a Burn module for one layer of `peft`.
    #[error("{weight} is the second weight that is called {site:?}; give each a name of its own")]
    SiteTaken {
        /// The second weight, by Burn's path.
        weight: String,
        /// The name.
        site: String,
    },
    /// An error in the content of a file.
    #[error("{}: {source}", printable(path))]
    InFile {
        /// The file.
        path: PathBuf,
        /// The error.
        source: Box<AdapterError>,
    },
    /// An adapter that no file holds all of.
    #[error("`{field}` is {}, which draws at random what no file holds; {remedy}", printable(value))]
    NotStorable {
        /// The field, as `peft` calls it.
        field: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// An adapter name that is in use.
    #[error("the model already has an adapter called {name:?}; choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// An adapter name that is not in use.
    #[error("the model has no adapter called {name:?}; it has {known:?}")]
    NoSuchAdapter {
        /// The name.
        name: String,
        /// The names that are in use.
        known: Vec<String>,
    },
    /// A name that cannot be an adapter's.
    #[error("an adapter cannot be called {name:?}: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// Adapters that cannot be active at once.
    #[error(
        "the adapters {} cannot be active at once: {reason}; activate one of them",
        adapters.iter().map(|(name, kind)| format!("{name:?} ({kind})")).collect::<Vec<_>>().join(" and ")
    )]
    CannotCombine {
        /// Their names and kinds.
        adapters: Vec<(String, &'static str)>,
        /// Why not.
        reason: &'static str,
    },
    /// An adapter of which no other can be made.
    #[error("no other adapter can be made of {name:?}: {reason}")]
    NotCombinable {
        /// The adapter.
        name: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// An adapter that cannot begin as what quantising has lost.
    #[error("the adapter {name:?} cannot begin as what quantising has lost: {}", printable(reason))]
    NoLoftq {
        /// The adapter.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A pass that names adapters for another number of rows than the batch has.
    #[error("the pass names adapters for {named} rows, the batch has {rows}; name one, or none, for each row")]
    RowsWithoutAdapters {
        /// For how many rows adapters are named.
        named: usize,
        /// How many rows there are.
        rows: usize,
    },
    /// An adapter that cannot be chosen row by row.
    #[error(
        "the adapter {name:?} ({kind}) cannot be chosen for single rows of a batch: {reason}; make it active instead"
    )]
    NotByRow {
        /// The adapter.
        name: String,
        /// Its kind.
        kind: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// What an adapter's training remembered, which is not of this adapter.
    #[error(
        "the training of the adapter {name:?} cannot go on: {message}; give the state of a run over the same adapters"
    )]
    TrainingState {
        /// The adapter.
        name: String,
        /// What does not fit.
        message: String,
    },
    /// An adapter that is merged into the base.
    #[error("the adapter {name:?} is merged into the base; unmerge it first")]
    IsMerged {
        /// Its name.
        name: String,
    },
    /// An adapter that cannot be merged.
    #[error("the adapter {name:?} cannot be merged into {site}: {reason}; use it unmerged")]
    CannotMerge {
        /// Its name.
        name: String,
        /// The site.
        site: String,
        /// Why not, as the end of a sentence.
        reason: &'static str,
    },
    /// A merge that would give weights that are not finite.
    #[error("merging {name:?} would make {site} not finite; check the adapter's weights for NaN and infinity")]
    MergeNotFinite {
        /// The adapter.
        name: String,
        /// The site.
        site: String,
    },
    /// Tensors of a file that do not fit the model.
    #[error(
        "{}: the tensors do not fit the model{}{}{}",
        printable(path),
        listed("missing", missing),
        listed("unexpected", unexpected),
        listed("misshapen", misshapen)
    )]
    TensorsDoNotFit {
        /// The file or directory.
        path: PathBuf,
        /// Tensors that the model needs and the file lacks.
        missing: Vec<String>,
        /// Tensors of the file that the model has no place for.
        unexpected: Vec<String>,
        /// Tensors of another shape.
        misshapen: Vec<Misshapen>,
    },
    /// Too little memory for a model.
    #[error(
        "{}: loading takes {:.2} GB of memory, {:.2} GB of it for weights that stay, and {:.2} GB are left; quantise the model as it \
         is read, free memory, or take a smaller one",
        printable(path),
        gigabytes(*needed),
        gigabytes(*weights),
        gigabytes(*available)
    )]
    TooLittleMemory {
        /// The file or directory.
        path: PathBuf,
        /// Bytes of the weights as they are to be in memory.
        weights: u64,
        /// Bytes that loading takes at most.
        needed: u64,
        /// Bytes that the process can still have.
        available: u64,
    },
    /// An embedding of another vocabulary than the model's.
    #[error(
        "{}: {tensor} has {found} rows, the model embeds {expected} tokens: the vocabulary was resized before the adapter was \
         trained; give the base {found} tokens first, in Python by `model.resize_token_embeddings({found})`, and save it",
        printable(path)
    )]
    OtherVocabulary {
        /// The file.
        path: PathBuf,
        /// The embedding or head.
        tensor: String,
        /// How many rows it has.
        found: usize,
        /// How many the model has.
        expected: usize,
    },
    /// A value that is infinite or not a number.
    #[error(
        "{}: element {index} of {} is {value}; the adapter is broken, train or fetch it anew",
        printable(path),
        printable(tensor)
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The position of the first such value, in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Values that are not as many as a tensor has.
    #[error("{tensor} has the shape {shape:?}, which {found} values do not fill")]
    WrongLength {
        /// The tensor.
        tensor: String,
        /// How many values there are.
        found: usize,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A tensor that should repeat another and does not.
    #[error("{}: {tensor} is not equal to {of}, of which it must be a copy", printable(path))]
    NotACopy {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it should equal.
        of: String,
    },
    /// A file or directory that cannot be read or written, whatever it holds.
    #[error(transparent)]
    File(#[from] FileError),
    /// An error in reading or writing weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Weights that cannot be quantised, or quantised ones that cannot be read.
    #[error(transparent)]
    Quant(#[from] QuantError),
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn listed<T: fmt::Display>(what: &str, items: &[T]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: Vec<String> = items.iter().map(|item| printable(&item.to_string()).to_string()).collect();
    format!("\n  {what} ({}): {}", items.len(), items.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_files_are_shown_and_not_obeyed() {
        let hostile = "x\u{1b}[2J".to_owned();
        let path = PathBuf::from(&hostile);
        let misshapen = Misshapen { tensor: hostile.clone(), found: vec![1], expected: vec![2] };
        let (missing, unexpected) = (vec![hostile.clone()], vec![hostile.clone()]);
        let errors = [
            AdapterError::UnreadableConfig { path: path.clone(), message: hostile.clone() },
            AdapterError::UnsupportedField { field: hostile.clone(), value: hostile.clone() },
            AdapterError::TargetPattern {
                field: "target_modules",
                pattern: hostile.clone(),
                message: format!("regex:\n  {hostile}\n  ^"),
            },
            AdapterError::NoAdapter { path: path.clone(), reason: hostile.clone() },
            AdapterError::UnknownMethod { peft_type: hostile.clone(), known: vec!["LORA"] },
            AdapterError::TensorsDoNotFit { path: path.clone(), missing, unexpected, misshapen: vec![misshapen] },
            AdapterError::NotFinite { path, tensor: hostile, index: 0, value: f32::NAN },
        ];
        for error in errors {
            let message = error.to_string();
            assert!(message.contains(r"x\u{1b}[2J") && !message.contains('\u{1b}'), "{message:?}");
        }
    }
}
