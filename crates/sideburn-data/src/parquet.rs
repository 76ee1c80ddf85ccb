//! Rows of a Parquet file.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use parquet::{
    basic::{ConvertedType, LogicalType, Repetition, Type as Physical},
    data_type::{ByteArray, ByteArrayType},
    errors::ParquetError,
    file::{
        reader::{FileReader, SerializedFileReader},
        writer::SerializedFileWriter,
    },
    record::Field,
    schema::types::Type,
};
use serde_json::Value;
use sideburn_files::write_atomic;

use crate::{
    columns::{Gatherer, Layout, Names},
    error::{DataError, Place},
    example::Example,
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
            values[*place] = value(field, &mut held).ok_or_else(|| {
                fail(ParquetError::General(format!("row {}: {:?} is not UTF-8", number + 1, names[*place])))
            })?;
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
/// so. None if it is bytes that are no text.
fn value(field: Field, held: &mut u64) -> Option<Value> {
    *held += 16;
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Str(text) => {
            *held += text.len() as u64;
            text.into()
        }
        // A text of a writer that has not said so.
        Field::Bytes(bytes) => {
            *held += bytes.len() as u64;
            std::str::from_utf8(bytes.data()).ok()?.into()
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
        Field::ListInternal(list) => {
            list.elements().iter().map(|element| value(element.clone(), held)).collect::<Option<_>>()?
        }
        _ => Value::Object(Default::default()),
    })
}

/// Writes examples, the texts of `fields` each in a column, and the references in `target`: a list, if any example has
/// several.
pub(crate) fn write(path: &Path, examples: &[Example], fields: &[&str], target: &str) -> Result<(), DataError> {
    let bytes = encode(examples, fields, target).map_err(|error| damaged(path, error))?;
    Ok(write_atomic(path, &bytes)?)
}

/// The values of a column, and of each how much of its path is there, and whether it goes on with a list.
struct Column {
    values: Vec<ByteArray>,
    definitions: Vec<i16>,
    repetitions: Option<Vec<i16>>,
}

fn encode(examples: &[Example], fields: &[&str], target: &str) -> Result<Vec<u8>, ParquetError> {
    let text = |name: &str, repetition| {
        Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
            .with_repetition(repetition)
            .with_logical_type(Some(LogicalType::String))
            .with_converted_type(ConvertedType::UTF8)
            .build()
            .map(Arc::new)
    };
    let is_list = examples.iter().any(|example| example.targets.len() > 1);
    let mut types = vec![text("id", Repetition::OPTIONAL)?];
    for name in fields {
        types.push(text(name, Repetition::OPTIONAL)?);
    }
    types.push(match is_list {
        false => text(target, Repetition::OPTIONAL)?,
        true => {
            let list = Type::group_type_builder("list").with_repetition(Repetition::REPEATED);
            let list = list.with_fields(vec![text("element", Repetition::OPTIONAL)?]).build()?;
            let group = Type::group_type_builder(target)
                .with_repetition(Repetition::OPTIONAL)
                .with_logical_type(Some(LogicalType::List))
                .with_converted_type(ConvertedType::LIST);
            Arc::new(group.with_fields(vec![Arc::new(list)]).build()?)
        }
    });
    let schema = Arc::new(Type::group_type_builder("examples").with_fields(types).build()?);

    let flat = |text: &dyn Fn(&Example) -> Option<&str>| {
        let texts: Vec<Option<&str>> = examples.iter().map(text).collect();
        Column {
            values: texts.iter().flatten().map(|text| ByteArray::from(*text)).collect(),
            definitions: texts.iter().map(|text| i16::from(text.is_some())).collect(),
            repetitions: None,
        }
    };
    let mut columns = vec![flat(&|example| Some(example.id.as_str()))];
    columns.extend(fields.iter().map(|name| flat(&|example| example.field(name))));
    columns.push(match is_list {
        false => flat(&|example| example.targets.first().map(String::as_str)),
        true => {
            let targets = || examples.iter().flat_map(|example| example.targets.iter().enumerate());
            Column {
                values: targets().map(|(_, target)| ByteArray::from(target.as_str())).collect(),
                // The group, the list and the text are there.
                definitions: targets().map(|_| 3).collect(),
                repetitions: Some(targets().map(|(at, _)| i16::from(at > 0)).collect()),
            }
        }
    });

    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Default::default())?;
    let mut group = writer.next_row_group()?;
    for Column { values, definitions, repetitions } in &columns {
        let mut column = group.next_column()?.ok_or_else(|| ParquetError::General("a column is missing".to_owned()))?;
        column.typed::<ByteArrayType>().write_batch(values, Some(definitions), repetitions.as_deref())?;
        column.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(bytes)
}
