//! A safetensors file of inputs, and of what another program has computed from them.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use sideburn::prelude::*;
use sideburn::weights::{Dtype, SafetensorsFile, TensorSource};

pub(crate) struct Reference {
    file: SafetensorsFile,
    /// The tensors that nobody has asked for yet.
    unread: BTreeSet<String>,
}

/// Whole numbers, row after row.
pub(crate) struct Rectangle {
    name: &'static str,
    pub(crate) values: Vec<i64>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Reference {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let unread = file.names().map(str::to_owned).collect();
        Ok(Self { file, unread })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.file.info(name).is_some()
    }

    pub(crate) fn into_unread(self) -> BTreeSet<String> {
        self.unread
    }

    /// Numbers with their shape.
    pub(crate) fn floats(&mut self, name: &'static str) -> anyhow::Result<(Vec<usize>, Vec<f32>)> {
        let values = self.file.read_f32(name)?;
        self.unread.remove(name);
        Ok((self.file.info(name).expect("just read").shape.clone(), values))
    }

    /// A rectangle of i64 or i32.
    pub(crate) fn integers(&mut self, name: &'static str) -> anyhow::Result<Rectangle> {
        let tensor = self.file.read(name)?;
        self.unread.remove(name);
        let bytes = tensor.bytes();
        let values: Vec<i64> = match tensor.dtype() {
            Dtype::I64 => bytes.as_chunks().0.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|chunk| i32::from_le_bytes(*chunk).into()).collect(),
            other => bail!("`{name}` has dtype {other:?}, expected I64 or I32"),
        };
        match *tensor.shape() {
            [rows, columns] if rows > 0 && columns > 0 => Ok(Rectangle { name, values, rows, columns }),
            ref shape => bail!("`{name}` has the shape {shape:?}, expected [rows, columns]"),
        }
    }
}

impl Rectangle {
    /// The rows, each as long as `lengths` says.
    pub(crate) fn cut(&self, lengths: &[usize]) -> anyhow::Result<TokenRows> {
        let Self { name, values, rows, columns } = self;
        ensure!(lengths.len() == *rows, "`{name}` has {rows} rows, expected {}", lengths.len());
        let real = lengths.iter().enumerate().map(|(row, length)| &values[row * columns..][..*length]);
        let rows = real.map(|row| row.iter().map(|id| u32::try_from(*id)).collect::<Result<Vec<u32>, _>>());
        let rows = rows.collect::<Result<Vec<_>, _>>().with_context(|| format!("`{name}` has an id below 0"))?;
        TokenRows::from_rows(rows).with_context(|| format!("in `{name}`"))
    }

    /// The rows at their full width.
    pub(crate) fn whole(&self) -> anyhow::Result<TokenRows> {
        self.cut(&vec![self.columns; self.rows])
    }

    /// How many values of each row come before those that `is_padding`.
    ///
    /// # Errors
    /// If there are others behind the padding.
    pub(crate) fn lengths(&self, is_padding: impl Fn(i64) -> bool) -> anyhow::Result<Vec<usize>> {
        let length = |(index, row): (usize, &[i64])| {
            let length = row.iter().position(|value| is_padding(*value)).unwrap_or(row.len());
            match row[length..].iter().all(|value| is_padding(*value)) {
                true => Ok(length),
                false => bail!("row {index} of `{}` is not padded on the right", self.name),
            }
        };
        self.values.chunks(self.columns).enumerate().map(length).collect()
    }
}
