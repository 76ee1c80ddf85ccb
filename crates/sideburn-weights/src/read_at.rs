//! Bytes that can be read at any position.

use std::io;
use std::sync::Arc;

/// Bytes of a known number that can be read at any position: a file, a slice in memory, ranges of something remote.
///
/// Readers ask for the description of tensors first and then for one tensor at a time, never for more. What is behind
/// this trait may be read from several threads at once.
///
/// ```
/// use std::io;
/// use sideburn_weights::{Dtype, ReadAt, SafetensorsFile, TensorSource};
///
/// /// 8 bytes of length, a header of 64, and an endless row of zeros that nobody stores.
/// struct Zeros;
/// const HEADER: &[u8; 64] = br#"{"zeros":{"dtype":"F16","shape":[1000],"data_offsets":[0,2000]}}"#;
///
/// impl ReadAt for Zeros {
///     fn size(&self) -> u64 {
///         8 + 64 + 2000
///     }
///     fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
///         let stored = [64u64.to_le_bytes().as_slice(), HEADER].concat();
///         buffer.fill(0);
///         for (byte, stored) in buffer.iter_mut().zip(stored.iter().skip(offset as usize)) {
///             *byte = *stored;
///         }
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), sideburn_weights::WeightsError> {
/// let file = SafetensorsFile::from_reader("zeros", Zeros)?;
/// assert_eq!(file.read_f32("zeros")?, [0.0; 1000]);
/// # Ok(())
/// # }
/// ```
pub trait ReadAt: Send + Sync {
    /// The number of bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes that begin at `offset`.
    ///
    /// # Errors
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if there are not as many, and whatever keeps them from being read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        match rest.and_then(|rest| rest.get(..buffer.len())) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buffer, offset)
    }
}

macro_rules! through {
    ($($pointer:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn size(&self) -> u64 {
                (**self).size()
            }

            fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
                (**self).read_exact_at(buffer, offset)
            }
        }
    )*};
}
through!(&T, Box<T>, Arc<T>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_end_where_they_end() {
        let bytes: Arc<[u8]> = Arc::from([1, 2, 3].as_slice());
        let mut two = [0; 2];
        bytes.read_exact_at(&mut two, 1).unwrap();
        assert_eq!((bytes.size(), two), (3, [2, 3]));
        bytes.read_exact_at(&mut [], 3).unwrap();
        for offset in [2, 3, 4, u64::MAX] {
            let error = vec![1, 2, 3].read_exact_at(&mut two, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
