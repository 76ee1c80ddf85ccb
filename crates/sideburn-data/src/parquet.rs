//! Rows of a Parquet file.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
    schema::types::Type,
};
use serde_json::Value;

use crate::{
    columns::{Gatherer, Layout, Names},
    error::{DataError, Place},
};

/// How much larger than the file what is in it may be. Encodings of repeated values make no text 200 times smaller.
const RATIO: u64 = 200;
const ALWAYS: u64 = 64 << 20;

pub(crate) fn read_into(gatherer: &mut Gatherer<'_>, path: &Path, file: File, size: u64) -> Result<(), DataError> {
    // The library panics on some files that are damaged.
    catch_unwind(AssertUnwindSafe(|| read_rows(gatherer, path, file, size)))
        .unwrap_or_else(|_| Err(damaged(path, "the library panicked on it")))
}

fn damaged(path: &Path, reason: impl ToString) -> DataError {
    DataError::Container { path: path.to_path_buf(), reason: reason.to_string() }
}

fn read_rows(gatherer: &mut Gatherer<'_>, path: &Path, file: File, size: u64) -> Result<(), DataError> {
    let fail = |error: ParquetError| damaged(path, error);
    let limit = size.saturating_mul(RATIO).saturating_add(ALWAYS);
    let bomb = || DataError::Bomb { path: path.to_path_buf(), limit };
    let reader = SerializedFileReader::new(file).map_err(fail)?;
    let stated = reader.metadata().row_groups().iter().map(|group| group.total_byte_size().unsigned_abs());
    if stated.fold(0, u64::saturating_add) > limit {
        return Err(bomb());
    }
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<String> = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
    let header = Place::row(path, 0);
    let layout = Layout::new(gatherer.columns(), Names { names: &names, at: &header, is_header: true })?;
    // What is not asked for may be of any type and size: it is not read.
    let wanted: Vec<usize> = (0..names.len()).filter(|place| layout.has(*place)).collect();
    let fields: Vec<Arc<Type>> = wanted.iter().map(|&place| schema.get_fields()[place].clone()).collect();
    let projected = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(fail)?;
    let mut held = 0u64;
    for (number, row) in reader.get_row_iter(Some(projected)).map_err(fail)?.enumerate() {
        let mut values = vec![Value::Null; names.len()];
        for (place, (_, field)) in wanted.iter().zip(row.map_err(fail)?.into_columns()) {
            values[*place] = value(field, &mut held);
        }
        if held > limit {
            return Err(bomb());
        }
        let at = Place::row(path, number as u64 + 1);
        gatherer.take(&at, |gatherer| gatherer.add(&at, &names, &layout, &values))?;
    }
    Ok(())
}

/// A value as JSON has it; its bytes are added to `held`. What has no counterpart is of its kind, so that an error can say
/// so.
fn value(field: Field, held: &mut u64) -> Value {
    *held += 16;
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Str(text) => {
            *held += text.len() as u64;
            text.into()
        }
        // A text of a writer that has not said so.
        Field::Bytes(bytes) => {
            *held += bytes.len() as u64;
            String::from_utf8_lossy(bytes.data()).into()
        }
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) | Field::Date(number) | Field::TimeMillis(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::TimeMicros(number) | Field::TimestampMillis(number) | Field::TimestampMicros(number) => number.into(),
        Field::Float(number) => number.into(),
        Field::Double(number) => number.into(),
        Field::Float16(_) | Field::Decimal(_) => 0.5.into(),
        Field::ListInternal(list) => list.elements().iter().map(|element| value(element.clone(), held)).collect(),
        _ => Value::Object(Default::default()),
    }
}
