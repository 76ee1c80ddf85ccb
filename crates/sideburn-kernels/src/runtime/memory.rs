//! Memory for results, used again: a fresh page costs the kernel more time to clear than most operations take to fill.
//!
//! A step of training makes and drops the same few hundred tensors again and again. Buffers of dropped tensors wait
//! here for the next result of about their size. What waits and what is in use together never exceed what was in use at
//! the busiest moment by more than an eighth, or 64 MiB: before a new buffer is made, waiting ones that do not fit are
//! freed. Without this room, buffers of different sizes drive each other out again and again where most is in use.
//!
//! They are pages of their own, which the system has back at once. A general allocator keeps what lies between two
//! pieces that are in use: of full fine-tuning a fifth of the resident memory was that.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Bytes, DType, TensorData};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};
use memmap2::MmapMut;

use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;

/// What a cache line holds. Buffers begin at one, so that no vector of a product straddles two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// Buffers below this many lines (64 KiB) are left to the allocator, which keeps them.
const SMALLEST: usize = if cfg!(feature = "unpooled") { usize::MAX } else { 1024 };

/// The size of a buffer for this many lines, up to an eighth more: what differs a little, as batches of different
/// lengths do, can take each other's place. The system makes no page that is never touched.
fn rounded(lines: usize) -> usize {
    lines.next_multiple_of((lines.next_power_of_two() / 16).max(1))
}

/// Lines that may wait at least beside the most that was in use: 64 MiB.
const ROOM: usize = (64 << 20) / size_of::<Line>();

/// Memory that was cleared when it was made.
enum Memory {
    Heap(Vec<Line>),
    Pages(MmapMut),
}

impl Memory {
    /// Pages, or memory of the allocator where the system has none to give.
    fn pages(lines: usize) -> Self {
        MmapMut::map_anon(lines * size_of::<Line>()).map_or_else(|_| Self::heap(lines), Self::Pages)
    }

    fn heap(lines: usize) -> Self {
        Self::Heap(vec![Line([0.0; LINE]); lines])
    }

    /// Its size in lines.
    fn lines(&self) -> usize {
        match self {
            Self::Heap(lines) => lines.len(),
            Self::Pages(pages) => pages.len() / size_of::<Line>(),
        }
    }

    /// Where it begins: at a line.
    fn place(&self) -> *const f32 {
        match self {
            Self::Heap(lines) => lines.as_ptr().cast(),
            Self::Pages(pages) => pages.as_ptr().cast(),
        }
    }

    fn place_mut(&mut self) -> *mut f32 {
        match self {
            Self::Heap(lines) => lines.as_mut_ptr().cast(),
            Self::Pages(pages) => pages.as_mut_ptr().cast(),
        }
    }
}

/// Memory that waits, by its lines.
struct Pool {
    waiting: BTreeMap<usize, Vec<Memory>>,
    waiting_lines: usize,
    used_lines: usize,
    most_used_lines: usize,
    asked: u64,
    again: u64,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    waiting: BTreeMap::new(),
    waiting_lines: 0,
    used_lines: 0,
    most_used_lines: 0,
    asked: 0,
    again: 0,
});

fn pool() -> std::sync::MutexGuard<'static, Pool> {
    // The counts are changed by code that cannot panic, so that a poisoned pool is a whole one.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A buffer that waits and is at most a quarter larger than asked for.
    fn take(&mut self, lines: usize) -> Option<Memory> {
        let (&size, buffers) = self.waiting.range_mut(lines..=lines + lines / 4).next()?;
        let buffer = buffers.pop().expect("a size is listed while a buffer has it");
        if buffers.is_empty() {
            self.waiting.remove(&size);
        }
        self.waiting_lines -= size;
        Some(buffer)
    }

    /// Buffers to be freed, so that `lines` more fit below the most that was in use and the room beside it.
    fn make_room(&mut self, lines: usize) -> Vec<Memory> {
        self.most_used_lines = self.most_used_lines.max(self.used_lines + lines);
        let limit = self.most_used_lines + (self.most_used_lines / 8).max(ROOM);
        let mut freed = Vec::new();
        while self.used_lines + lines + self.waiting_lines > limit {
            let Some(mut entry) = self.waiting.last_entry() else { break };
            freed.extend(entry.get_mut().pop());
            self.waiting_lines -= entry.key();
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        freed
    }
}

/// Gives memory that waits to be used again back to the system.
pub fn release_memory() {
    let mut pool = pool();
    let freed = std::mem::take(&mut pool.waiting);
    (pool.waiting_lines, pool.most_used_lines) = (0, pool.used_lines);
    drop(pool);
    drop(freed);
}

/// How the CPU kernels use memory. Results below 64 KiB are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// How many results there were since the process began.
    pub asked: u64,
    /// How many of these took memory that an earlier result had left.
    pub again: u64,
    /// Bytes in use.
    pub used: usize,
    /// Bytes that wait to be used again.
    pub waiting: usize,
    /// Bytes that were in use at the busiest moment since [`release_memory`].
    pub most_used: usize,
}

/// How the CPU kernels use memory now.
pub fn memory_use() -> MemoryUse {
    let Pool { waiting_lines, used_lines, most_used_lines, asked, again, .. } = *pool();
    let [used, waiting, most_used] =
        [used_lines, waiting_lines, most_used_lines].map(|lines| lines * size_of::<Line>());
    MemoryUse { asked, again, used, waiting, most_used }
}

/// Memory for `f32` values.
pub(crate) struct Buffer {
    memory: Memory,
    len: usize,
}

impl Buffer {
    /// Memory for `len` values, of earlier results or zero; it is never uninitialised.
    pub(crate) fn new(len: usize) -> Self {
        let lines = len.div_ceil(LINE);
        if lines < SMALLEST {
            return Self { memory: Memory::heap(lines), len };
        }
        let lines = rounded(lines);
        let mut pool = pool();
        let (buffer, freed) = match pool.take(lines) {
            Some(buffer) => (Some(buffer), Vec::new()),
            None => (None, pool.make_room(lines)),
        };
        let size = buffer.as_ref().map_or(lines, Memory::lines);
        pool.asked += 1;
        pool.again += u64::from(buffer.is_some());
        pool.used_lines += size;
        drop(pool);
        drop(freed);
        Self { memory: buffer.unwrap_or_else(|| Memory::pages(lines)), len }
    }

    /// Memory for `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut buffer = Self::new(len);
        buffer.fill(0.0);
        buffer
    }

    /// The tensor of this shape that the values make.
    pub(crate) fn into_tensor(self, shape: impl Into<burn::tensor::Shape>) -> FloatTensor<Flex> {
        let len = self.len * size_of::<f32>();
        // SAFETY: the first `len` bytes of a buffer are initialised, as all of its memory is from the start.
        let bytes = unsafe { Bytes::from_controller(Box::new(self), len) };
        FloatTensor::<Flex>::from_data(TensorData::from_bytes(bytes, shape, DType::F32))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = self.memory.lines();
        if lines < SMALLEST {
            return;
        }
        let memory = std::mem::replace(&mut self.memory, Memory::heap(0));
        let mut pool = pool();
        pool.used_lines -= lines;
        pool.waiting_lines += lines;
        pool.waiting.entry(lines).or_default().push(memory);
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is sixteen floats without padding, and there are lines for `len` floats.
        unsafe { std::slice::from_raw_parts(self.memory.place(), self.len) }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; the memory is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.place_mut(), self.len) }
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        align_of::<Line>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let len = self.len * size_of::<f32>();
        // SAFETY: any initialised memory may be seen as bytes; that only initialised ones are written is for the
        // caller.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory.place_mut().cast(), len) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        // SAFETY: any initialised memory may be seen as bytes.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.place().cast(), self.len * size_of::<f32>()) })
    }
}

#[cfg(all(test, not(feature = "unpooled")))]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_used_again() {
        // Sizes that no other test of this process uses.
        let len = SMALLEST * LINE + 3333;
        let mut first = Buffer::new(len);
        first.fill(7.0);
        let place = first.as_ptr();
        drop(first);
        let second = Buffer::new(len - 100);
        assert_eq!((second.as_ptr(), second[5]), (place, 7.0));
        let third = Buffer::new(len);
        assert_ne!(third.as_ptr(), place, "it is in use");
    }

    #[test]
    fn a_tensor_gives_its_memory_back() {
        let len = SMALLEST * LINE * 3 + 77;
        let mut buffer = Buffer::new(len);
        buffer.iter_mut().enumerate().for_each(|(index, value)| *value = index as f32);
        let place = buffer.as_ptr();
        let tensor = buffer.into_tensor([len]);
        assert_eq!(tensor.as_slice::<f32>().unwrap()[len - 1], (len - 1) as f32);
        let mut copy = tensor.clone();
        copy.storage_mut::<f32>()[0] = 5.0;
        assert_eq!(tensor.as_slice::<f32>().unwrap()[0], 0.0, "what is shared is copied before it is written to");
        drop(tensor);
        assert_eq!(Buffer::new(len).as_ptr(), place);
    }

    #[test]
    fn an_empty_buffer_is_fine() {
        assert!(Buffer::new(0).is_empty() && Buffer::zeros(1).len() == 1);
    }
}
