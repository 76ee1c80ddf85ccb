//! Everything that can go wrong with weights on disk.
//!
//! Names that come from a file are shown quoted and escaped, and text about its content by [`printable`], so that a
//! hostile file cannot write control characters to a terminal. Lists are complete: a person who fixes one name should not meet the next one only on the next run.

use std::path::PathBuf;

use safetensors::Dtype;

use sideburn_files::{FileError, printable};

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file cannot be opened, read or written, whatever it holds.
    #[error(transparent)]
    File(#[from] FileError),

    /// The file ends before what it declares.
    #[error("{path:?} is cut short: {part} needs {expected} bytes, the file has {found}; copy or download it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The part that does not fit: the header's length, the header, or the tensors.
        part: &'static str,
        /// The size that the file must have, or (for the first two parts) have at least, in bytes.
        expected: u64,
        /// The size that it has, in bytes.
        found: u64,
    },

    /// The file goes on after its last tensor.
    #[error(
        "{path:?} is too long: header and tensors take {expected} bytes, the file has {found}; it is damaged or has \
         something appended, copy or download it again"
    )]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// The size that header and tensors take, in bytes.
        expected: u64,
        /// The size that the file has, in bytes.
        found: u64,
    },

    /// The declared length of the header is above the cap, which the reference implementation has too.
    #[error(
        "{path:?} declares a header of {found} bytes, more than the limit of {limit}; it is not a safetensors file, or \
         a damaged one"
    )]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// The declared length, in bytes.
        found: u64,
        /// The cap, in bytes.
        limit: u64,
    },

    /// The header is not the JSON object that the format asks for.
    #[error("the header of {path:?} is not valid: {}; copy, download or convert the file again", printable(detail))]
    BadHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong and where in the header.
        detail: String,
    },

    /// A JSON object has a key twice. Most parsers keep the last one without a word.
    #[error("{path:?} has the same JSON key twice: {}; write the file again, each name once", quoted(keys))]
    DuplicateKeys {
        /// The safetensors file or the index.
        path: PathBuf,
        /// All keys that appear more than once.
        keys: Vec<String>,
    },

    /// A tensor's dtype, shape and byte range contradict each other or those of its neighbours.
    #[error("tensor {tensor:?} of {path:?}: {}; the file is damaged or forged, do not use it", printable(detail))]
    TensorLayout {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Expected and found.
        detail: String,
    },

    /// A PyTorch file is not what `torch.save` writes.
    #[error(
        "{path:?} is not a valid PyTorch file: {}; copy or download it again, or re-save it as safetensors in Python",
        printable(detail)
    )]
    BadTorchFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        detail: String,
    },

    /// The pickle of a PyTorch file wants to do what a state dict of tensors does not need.
    #[error(
        "the pickle in {path:?} asks for {} at byte {at}, and that is not for a state dict of tensors. A pickle is a \
         program, and nothing of this one was run. If you trust where it comes from, load it in Python and re-save the \
         tensors alone: `safetensors.torch.save_file(state_dict, path)`",
        printable(found)
    )]
    UnsafePickle {
        /// The file.
        path: PathBuf,
        /// The global, the opcode, the call or the persistent id, by name.
        found: String,
        /// The position of the instruction in the pickle, in bytes (in the file, if it is not a zip archive).
        at: usize,
    },

    /// A PyTorch file that a training run keeps for itself.
    #[error(
        "{path:?} is the state of a training run (its optimiser, schedule, settings or random numbers) and holds no weights; \
         these are in another file, model.safetensors or adapter_model.safetensors"
    )]
    RunState {
        /// The file.
        path: PathBuf,
    },

    /// A PyTorch file holds something else than a dict from names to tensors.
    #[error(
        "{path:?} is not a state dict of tensors: {}; save the weights alone, in Python: \
         `safetensors.torch.save_file(model.state_dict(), path)`",
        printable(detail)
    )]
    NotAStateDict {
        /// The file.
        path: PathBuf,
        /// What it holds.
        detail: String,
    },

    /// No tensor has that name.
    #[error("{path:?} has no tensor {tensor:?}; it has {count} tensors{}", hint(nearest))]
    TensorNotFound {
        /// The file or directory.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
        /// How many tensors there are.
        count: usize,
        /// The name most like the one asked for, if one is alike.
        nearest: Option<String>,
    },

    /// The tensor does not hold floating-point numbers that can be converted.
    #[error(
        "{what} has dtype {found:?}, expected F32, F16, BF16 or F64; if these are quantised weights, load the \
         unquantised model"
    )]
    NotFloat {
        /// The tensor: by file and name if it was read from a file, else by its shape.
        what: String,
        /// Its dtype, or the dtype that a conversion asked for.
        found: Dtype,
    },

    /// Shape and data of a tensor do not fit each other.
    #[error("a {dtype:?} tensor of shape {shape:?} takes {expected}, found {found}; give the shape that the data has")]
    ShapeMismatch {
        /// The dtype.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
        /// What the shape asks for, with its unit.
        expected: String,
        /// What was given, with its unit.
        found: String,
    },

    /// Tensors that cannot be written under the names they were given.
    #[error(
        "cannot write {path:?}: tensor names must differ from each other and from \"__metadata__\"; these do not: {}",
        quoted(names)
    )]
    BadNames {
        /// The file that was to be written.
        path: PathBuf,
        /// All names at fault.
        names: Vec<String>,
    },

    /// A directory has no weights in a format that is read.
    #[error(
        "{dir:?} has neither model.safetensors nor pytorch_model.bin, nor an index of either (….index.json){}",
        others(found)
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// Other files of weights in it, sorted.
        found: Vec<String>,
    },

    /// A directory has none of the files that named tensors may be in.
    #[error("{dir:?} has neither {} nor {}; check the path", names[0], names[1])]
    NoStateDict {
        /// The directory.
        dir: PathBuf,
        /// The names of the files looked for.
        names: [String; 2],
    },

    /// The shard index is not the JSON object that it must be.
    #[error("the shard index {path:?} is not valid: {}; download it again", printable(detail))]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// What is wrong and where.
        detail: String,
    },

    /// The shard index names files in a way that could leave its directory.
    #[error(
        "the shard index {path:?} names files it must not: {}; a shard is a file of weights inside the index's \
         directory, do not use this model unless you know where it comes from",
        pairs(names)
    )]
    UnsafeShardNames {
        /// The index.
        path: PathBuf,
        /// All names at fault, each with the reason.
        names: Vec<(String, String)>,
    },

    /// A shard is a symbolic link that leads out of the directory.
    #[error(
        "the shard index {path:?} names symbolic links that lead outside its directory: {}; put the files themselves \
         there (links into the blobs of the same Hugging Face cache entry are accepted)",
        targets(shards)
    )]
    ShardOutside {
        /// The index.
        path: PathBuf,
        /// All shards at fault, each with the place it leads to.
        shards: Vec<(String, PathBuf)>,
    },

    /// Shards that the index names are not there.
    #[error("shards named by {path:?} are missing: {}; download them into the same directory", quoted(missing))]
    MissingShards {
        /// The index.
        path: PathBuf,
        /// All missing files, sorted.
        missing: Vec<String>,
    },

    /// Tensors that more than one shard holds.
    #[error(
        "tensors of {path:?} are in more than one shard: {}; shards of two models are mixed, download all of them again",
        held(tensors)
    )]
    TensorTwice {
        /// The index.
        path: PathBuf,
        /// All such tensors, each with the shards that hold it.
        tensors: Vec<(String, Vec<String>)>,
    },

    /// Index and shards disagree about where tensors are.
    #[error(
        "the shard index {path:?} and its shards disagree. In another shard than the index names: {}. In a shard, not \
         in the index: {}. Index and shards are of different models, download all of them again",
        pairs(misplaced),
        pairs(unlisted)
    )]
    IndexMismatch {
        /// The index.
        path: PathBuf,
        /// All tensors that are in another shard, each with the shard named and the shard that holds it.
        misplaced: Vec<(String, String)>,
        /// All tensors that the index lacks, each with the shard that holds it.
        unlisted: Vec<(String, String)>,
    },
}

fn list<T>(items: &[T], one: impl Fn(&T) -> String) -> String {
    if items.is_empty() { "none".to_owned() } else { items.iter().map(one).collect::<Vec<_>>().join(", ") }
}

fn quoted(names: &[String]) -> String {
    list(names, |name| format!("{name:?}"))
}

fn pairs(items: &[(String, String)]) -> String {
    list(items, |(name, note)| format!("{name:?} ({note})"))
}

fn targets(items: &[(String, PathBuf)]) -> String {
    list(items, |(name, target)| format!("{name:?} -> {target:?}"))
}

fn held(items: &[(String, Vec<String>)]) -> String {
    list(items, |(name, shards)| format!("{name:?} (in {})", quoted(shards)))
}

fn hint(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!(", the nearest name is {name:?}"),
        None => ", and none with a similar name".to_owned(),
    }
}

fn others(found: &[String]) -> String {
    if found.is_empty() {
        "; is this the directory of a model?".to_owned()
    } else {
        format!("; it has {}, give the path of the file you mean", quoted(found))
    }
}
