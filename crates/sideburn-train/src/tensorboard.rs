//! Event files that TensorBoard reads.
//!
//! A file is a sequence of records (`tensorflow/core/lib/io/record_writer.h`): the length of an event as `u64`, the masked
//! CRC-32C of these eight bytes, the event, its masked CRC-32C, all little-endian. An event is a protocol buffer
//! (`tensorflow/core/util/event.proto`) of four fields: the time, the step, and the version of the file or a summary of one
//! value. That is less to write down than to choose a crate for: those there are bring an encoder of images and generated code.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::TrainError;

/// A file of events.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl EventFile {
    /// Makes a file in the place of the one that may be there.
    pub(crate) fn create(path: &Path) -> Result<Self, TrainError> {
        let file = File::create(path).map_err(|source| TrainError::Log { path: path.to_owned(), source })?;
        let mut events = Self { path: path.to_owned(), writer: BufWriter::new(file) };
        events.write(&event(0, |event| text(event, 3, b"brain.Event:2")))?;
        Ok(events)
    }

    /// Adds numbers of a step.
    pub(crate) fn add<'a>(
        &mut self,
        step: u64,
        numbers: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), TrainError> {
        for (name, number) in numbers {
            let mut value = Vec::new();
            text(&mut value, 1, name.as_bytes());
            tag(&mut value, 2, 5);
            value.extend((number as f32).to_le_bytes());
            let mut summary = Vec::new();
            text(&mut summary, 1, &value);
            self.write(&event(step, |event| text(event, 5, &summary)))?;
        }
        self.writer.flush().map_err(|source| self.failed(source))
    }

    fn write(&mut self, event: &[u8]) -> Result<(), TrainError> {
        let length = (event.len() as u64).to_le_bytes();
        let parts = [&length[..], &masked_crc(&length), event, &masked_crc(event)];
        let written: io::Result<()> = parts.into_iter().try_for_each(|part| self.writer.write_all(part));
        written.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> TrainError {
        TrainError::Log { path: self.path.clone(), source }
    }
}

/// An event of a step, with one more field.
fn event(step: u64, what: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut event = Vec::new();
    // A clock before 1970 is not worth an error.
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    tag(&mut event, 1, 1);
    event.extend(time.as_secs_f64().to_le_bytes());
    tag(&mut event, 2, 0);
    number(&mut event, step);
    what(&mut event);
    event
}

/// The number of a field, and how it is stored: 0 as a number, 1 as eight bytes, 2 by its length, 5 as four bytes.
fn tag(to: &mut Vec<u8>, field: u8, kind: u8) {
    to.push(field << 3 | kind);
}

/// Seven bits a byte, the lowest first.
fn number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn text(to: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    tag(to, field, 2);
    number(to, bytes.len() as u64);
    to.extend(bytes);
}

/// CRC-32C (Castagnoli), turned and shifted, so that a checksum of checksums is another (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    };
    let crc = !bytes.iter().fold(u32::MAX, step);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}
