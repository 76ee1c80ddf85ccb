//! Files by their paths, and what their names say of them.

use std::{
    io::BufReader,
    path::{Path, PathBuf},
};

use sideburn_files::open_regular;

use crate::{
    columns::{Columns, Gatherer},
    csv,
    dataset::Dataset,
    error::DataError,
    jsonl,
    loaded::Loaded,
    split::Split,
};

/// The forms of a file, by the ending of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Separated,
    Json,
    Parquet,
}

/// The form of a file of this name, and the name without its ending.
pub(crate) fn format_of(name: &str) -> Option<(Format, &str)> {
    let (stem, ending) = name.rsplit_once('.')?;
    let format = match ending.to_ascii_lowercase().as_str() {
        "csv" | "tsv" => Format::Separated,
        "json" | "jsonl" | "ndjson" => Format::Json,
        "parquet" => Format::Parquet,
        _ => return None,
    };
    Some((format, stem))
}

/// Reads a file of any data set: `.csv` and `.tsv` as [`parse_csv`](crate::parse_csv) does, `.json`, `.jsonl` and `.ndjson`
/// as [`parse_jsonl`](crate::parse_jsonl) does, and `.parquet` with the feature `parquet`: texts, and lists of texts for
/// several references. Columns that are not asked for are not looked at.
///
/// # Errors
/// If the name ends otherwise; if the file is missing, no regular file, unreadable or damaged; those of
/// [`parse_csv`](crate::parse_csv) and [`parse_jsonl`](crate::parse_jsonl); [`DataError::Bomb`] if a Parquet file unpacks to
/// more than 200 times its size and 64 MiB.
pub fn read_examples(path: impl AsRef<Path>, columns: &Columns) -> Result<Loaded, DataError> {
    let path = path.as_ref();
    read_all(&[path.to_path_buf()], columns)
}

/// Reads files that are one data set, of which there is at least one.
fn read_all(paths: &[PathBuf], columns: &Columns) -> Result<Loaded, DataError> {
    let (mut gatherer, mut has_header) = (Gatherer::new(columns), true);
    for path in paths {
        // What is not there has no wrong name.
        let (file, size) = open_regular(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((format, _)) = format_of(&name) else { return Err(DataError::UnknownFormat { path: path.clone() }) };
        has_header = format == Format::Separated;
        match format {
            Format::Separated => csv::read_into(&mut gatherer, path, BufReader::new(file))?,
            Format::Json => jsonl::read_into(&mut gatherer, path, BufReader::new(file))?,
            #[cfg(feature = "parquet")]
            Format::Parquet => crate::parquet::read_into(&mut gatherer, path, file, size)?,
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                let _ = size;
                return Err(DataError::NotBuilt { path: path.clone(), feature: "parquet" });
            }
        }
    }
    gatherer.finish(&paths[0], has_header)
}

/// Whether a file called `name` is what `wanted` says: a name, or one without the ending. The parts of a file that is in
/// several (`train-00000-of-00002.parquet`) are what their whole is.
pub(crate) fn is_called(name: &str, wanted: &str) -> bool {
    if format_of(wanted).is_some() {
        return name.eq_ignore_ascii_case(wanted);
    }
    format_of(name).is_some_and(|(_, stem)| without_part(stem).0.eq_ignore_ascii_case(wanted))
}

/// A name without `-00000-of-00002`, and these numbers.
fn without_part(stem: &str) -> (&str, Option<[u32; 2]>) {
    let numbers = |text: &str| -> Option<u32> {
        text.parse().ok().filter(|_| text.len() >= 4 && text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let parts = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, index) = rest.rsplit_once('-')?;
        Some((name, [numbers(index)?, numbers(count)?]))
    };
    parts().map_or((stem, None), |(name, part)| (name, Some(part)))
}

impl Dataset {
    /// Reads a split from `directory`, or from a 7z archive.
    ///
    /// Other files are passed over. A split in several parts, as the hub stores large ones (`train-00000-of-00002.parquet`),
    /// is read as one. An archive (`corpus.7z`), with the feature `7z`, is looked into if no file beside it is the split: it
    /// may hold 256 MiB a file, 512 MiB in all, and 100 times its own size.
    ///
    /// # Errors
    /// [`DataError::NoSplit`] if there is none of its files, [`DataError::AmbiguousSplit`] if there are several, or parts are
    /// missing, and those of [`read_examples`]. A split that is read is never empty.
    pub fn read(&self, directory: impl AsRef<Path>, split: Split) -> Result<Loaded, DataError> {
        let directory = directory.as_ref();
        if directory.is_file() {
            return match is_archive(&directory.to_string_lossy()) {
                true => self.read_archive(directory, split),
                false => Err(DataError::UnknownFormat { path: directory.to_path_buf() }),
            };
        }
        // An unreadable directory would otherwise look like an empty one.
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(|source| DataError::from_io(directory, source))? {
            let name = entry.map_err(|source| DataError::from_io(directory, source))?.file_name();
            names.extend(name.into_string());
        }
        // The order of a directory is any.
        names.sort_unstable();
        let files = self.files(split);
        let is_file = |name: &&String| files.iter().any(|wanted| is_called(name, wanted));
        let found: Vec<&String> = names.iter().filter(is_file).collect();
        if found.is_empty() {
            let archives: Vec<&String> = names.iter().filter(|name| is_archive(name)).collect();
            return match archives.as_slice() {
                [] => Err(self.no_split(directory, split)),
                [archive] => self.read_archive(&directory.join(archive), split),
                _ => Err(self.ambiguous(directory, split, &archives)),
            };
        }
        if found.len() > 1 && !are_parts(&found) {
            return Err(self.ambiguous(directory, split, &found));
        }
        let paths: Vec<PathBuf> = found.iter().map(|name| directory.join(name)).collect();
        read_all(&paths, &self.columns)
    }

    fn ambiguous(&self, directory: &Path, split: Split, found: &[&String]) -> DataError {
        let found = found.iter().map(|name| name.to_string()).collect();
        DataError::AmbiguousSplit { dataset: self.name.clone(), split, directory: directory.to_path_buf(), found }
    }

    pub(crate) fn no_split(&self, directory: &Path, split: Split) -> DataError {
        let shown = |name: &String| if format_of(name).is_some() { name.clone() } else { format!("{name}.*") };
        let looked_for = self.files(split).iter().map(shown).collect();
        DataError::NoSplit { dataset: self.name.clone(), split, directory: directory.to_path_buf(), looked_for }
    }

    #[cfg(not(feature = "7z"))]
    fn read_archive(&self, path: &Path, _: Split) -> Result<Loaded, DataError> {
        Err(DataError::NotBuilt { path: path.to_path_buf(), feature: "7z" })
    }

    #[cfg(feature = "7z")]
    fn read_archive(&self, path: &Path, split: Split) -> Result<Loaded, DataError> {
        let is_split = |name: &str| self.files(split).iter().any(|wanted| is_called(name, wanted));
        let Some((member, bytes)) = crate::archive::read_member(path, &is_split)? else {
            return Err(self.no_split(path, split));
        };
        let mut gatherer = Gatherer::new(&self.columns);
        match format_of(&member.to_string_lossy()).map(|(format, _)| format) {
            Some(Format::Separated) => csv::read_into(&mut gatherer, &member, bytes.as_slice())?,
            Some(Format::Json) => jsonl::read_into(&mut gatherer, &member, bytes.as_slice())?,
            Some(Format::Parquet) | None => return Err(DataError::UnknownFormat { path: member }),
        }
        gatherer.finish(&member, false)
    }
}

fn is_archive(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".7z")
}

/// Whether these names, in order, are all the parts of one file.
fn are_parts(names: &[&String]) -> bool {
    let (first, part) = without_part(format_of(names[0]).map_or("", |(_, stem)| stem));
    let count = part.map(|[_, count]| count);
    let is_next = |(index, name): (usize, &&String)| {
        let stem = format_of(name).map_or("", |(_, stem)| stem);
        without_part(stem) == (first, Some([index as u32, count.unwrap_or_default()]))
    };
    count == Some(names.len() as u32) && names.iter().enumerate().all(is_next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_with_any_ending_and_in_parts() {
        for name in ["train.csv", "Train.JSONL", "train-00000-of-00002.parquet", "train.ndjson"] {
            assert!(is_called(name, "train"), "{name}");
        }
        for name in ["train", "train.txt", "train.csv.bak", "train2.csv", "train-of-00002.parquet", "train-1-of-2.csv"]
        {
            assert!(!is_called(name, "train"), "{name}");
        }
        assert!(is_called("dev.jsonl", "dev.jsonl") && !is_called("dev.csv", "dev.jsonl"));
        let parts = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            are_parts(&names.iter().collect::<Vec<_>>())
        };
        assert!(parts(&["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]));
        assert!(!parts(&["train-00000-of-00003.parquet", "train-00001-of-00003.parquet"]), "one is missing");
        assert!(!parts(&["train-00000-of-00002.parquet", "val-00001-of-00002.parquet"]));
        assert!(!parts(&["train.csv", "train.json"]));
    }
}
