//! Which examples each training step sees.

use std::{cmp::Reverse, collections::BTreeMap};

use sideburn_batch::Key;

use crate::error::DataError;

/// Batches of example numbers, every example at most once per epoch.
///
/// Any step's batch can be asked for at any time: it is a pure function of the sampler and the step. So a run resumes
/// in mid-epoch without replaying or saving anything.
pub trait Sampler {
    /// How many batches an epoch has; at least 1.
    fn batches_per_epoch(&self) -> usize;

    /// The example numbers of `step`, which counts from 0 through all epochs.
    fn batch(&self, step: u64) -> Vec<usize>;

    /// The epoch that `step` is in; both count from 0.
    fn epoch_of(&self, step: u64) -> u64 {
        step / self.batches_per_epoch() as u64
    }
}

impl<S: Sampler + ?Sized> Sampler for &S {
    fn batches_per_epoch(&self) -> usize {
        (**self).batches_per_epoch()
    }

    fn batch(&self, step: u64) -> Vec<usize> {
        (**self).batch(step)
    }
}

/// The key of the order in which examples come. The name keeps it apart from dropout, which starts from the same seed.
fn order_key(seed: u64) -> Key {
    Key::from_seed(seed).fold_in_name("sample order")
}

/// Batches of one number of examples, put together anew in each epoch, in an order that is a pure function of the seed
/// and the epoch.
///
/// ```
/// use sideburn_data::{Sampler, ShuffledSampler};
///
/// let sampler = ShuffledSampler::new(10, 4, 42)?;
/// assert_eq!(sampler.batches_per_epoch(), 3);
/// assert_eq!(sampler.batch(2).len(), 2, "the last batch of an epoch is what is left");
/// assert_eq!(sampler.epoch_of(3), 1);
/// assert_eq!(sampler.batch(3), ShuffledSampler::new(10, 4, 42)?.batch(3));
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShuffledSampler {
    len: usize,
    batch_size: usize,
    batches: usize,
    key: Key,
}

impl ShuffledSampler {
    /// Batches of `batch_size` out of `len` examples. The last batch of an epoch is smaller if `len` is not a multiple.
    ///
    /// # Errors
    /// If `len` or `batch_size` is zero.
    pub fn new(len: usize, batch_size: usize, seed: u64) -> Result<Self, DataError> {
        if len == 0 || batch_size == 0 {
            return Err(DataError::NoBatches { len, batch_size, drop_last: false });
        }
        Ok(Self { len, batch_size, batches: len.div_ceil(batch_size), key: order_key(seed) })
    }

    /// The same, with full batches only: each epoch leaves out the last `len % batch_size` examples of its order.
    ///
    /// # Errors
    /// If there are fewer examples than a batch holds.
    pub fn drop_last(self) -> Result<Self, DataError> {
        let Self { len, batch_size, .. } = self;
        match len / batch_size {
            0 => Err(DataError::NoBatches { len, batch_size, drop_last: true }),
            batches => Ok(Self { batches, ..self }),
        }
    }
}

impl Sampler for ShuffledSampler {
    fn batches_per_epoch(&self) -> usize {
        self.batches
    }

    /// The epoch's order is made anew each time: microseconds for a data set of tens of thousands, for which there is
    /// no state that could be wrong.
    fn batch(&self, step: u64) -> Vec<usize> {
        let order = self.key.fold_in(self.epoch_of(step)).permutation(self.len);
        let start = (step % self.batches as u64) as usize * self.batch_size;
        order[start..self.len.min(start.saturating_add(self.batch_size))].to_vec()
    }
}

/// Batches that are put together once, by the lengths of the examples, and come in another order in each epoch, which
/// is a pure function of the seed and the epoch. (`fairseq` does the same.)
///
/// ```
/// use sideburn_data::{GroupedSampler, Sampler};
///
/// let tokens = [100, 20, 30, 90, 40, 15];
/// let sampler = GroupedSampler::by_tokens(&tokens, 120, 42)?;
/// for step in 0..sampler.batches_per_epoch() as u64 {
///     assert!(sampler.batch(step).iter().map(|example| tokens[*example]).sum::<usize>() <= 120);
/// }
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupedSampler {
    batches: Vec<Vec<usize>>,
    key: Key,
}

impl GroupedSampler {
    /// Shuffled batches of at most `max_tokens` tokens, where example `i` has `tokens[i]` of them
    /// ([`TokenizedSet::token_counts`](crate::TokenizedSet::token_counts)); an example of more is a batch of its own.
    ///
    /// For devices that pad nothing, as the CPU: steps take about the same time, and lengths may be mixed freely.
    ///
    /// # Errors
    /// If there are no examples, or `max_tokens` is zero.
    pub fn by_tokens(tokens: &[usize], max_tokens: usize, seed: u64) -> Result<Self, DataError> {
        let key = checked_key(tokens, max_tokens, seed)?;
        let (mut batches, mut held) = (vec![Vec::new()], 0usize);
        for example in key.permutation(tokens.len()) {
            if held > 0 && held.saturating_add(tokens[example]) > max_tokens {
                batches.push(Vec::new());
                held = 0;
            }
            held = held.saturating_add(tokens[example]);
            batches.last_mut().expect("never empty").push(example);
        }
        Ok(Self { batches, key })
    }

    /// Packs: shuffled batches of at most `max_tokens` tokens, as few as can be found, by putting the longest examples first,
    /// each into the fullest pack that has room for it (best-fit decreasing, Ding et al., *Fewer Truncations Improve Language
    /// Modeling*, 2024; `packing_strategy="bfd"` of `trl`). Of equals, chance decides. An example of more is a pack of its own.
    ///
    /// For decoders alone on the CPU, whose rows lie behind each other in one matrix: a pack is a long row of `max_tokens` that
    /// has next to no room left, and in which no example sees another. On a GPU, which pads rows, choose
    /// [`by_padded_tokens`](Self::by_padded_tokens).
    ///
    /// ```
    /// use sideburn_data::{GroupedSampler, Sampler};
    ///
    /// let tokens = [70, 60, 50, 40, 30, 30, 20];
    /// assert_eq!(GroupedSampler::packed(&tokens, 100, 42)?.batches_per_epoch(), 3, "300 tokens in 3 packs of 100");
    /// # Ok::<(), sideburn_data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// If there are no examples, or `max_tokens` is zero.
    pub fn packed(tokens: &[usize], max_tokens: usize, seed: u64) -> Result<Self, DataError> {
        let key = checked_key(tokens, max_tokens, seed)?;
        let mut order = key.permutation(tokens.len());
        order.sort_by_key(|example| Reverse(tokens[*example]));
        // The packs that have so much room.
        let (mut batches, mut by_room) = (Vec::<Vec<usize>>::new(), BTreeMap::<usize, Vec<usize>>::new());
        for example in order {
            let fitting = by_room.range_mut(tokens[example]..).next().map(|(room, packs)| (*room, packs.pop()));
            let (room, pack) = match fitting {
                Some((room, Some(pack))) => (room, pack),
                _ => {
                    batches.push(Vec::new());
                    (max_tokens, batches.len() - 1)
                }
            };
            if by_room.get(&room).is_some_and(Vec::is_empty) {
                by_room.remove(&room);
            }
            batches[pack].push(example);
            if let Some(room) = room.checked_sub(tokens[example]) {
                by_room.entry(room).or_default().push(pack);
            }
        }
        Ok(Self { batches, key })
    }

    /// Batches that have at most `max_tokens` tokens with their padding, where example `i` has `lengths[i]`, of its prompt and of
    /// its target ([`TokenizedSet::lengths`](crate::TokenizedSet::lengths)): as many rows as there are, times the longest of
    /// both. Examples of like lengths come together; of equals, chance decides. An example of more is a batch of its own.
    ///
    /// For devices that pad rows to the longest of a batch, as GPUs do here: steps take about the same time and memory, and
    /// little of it is padding.
    ///
    /// ```
    /// use sideburn_data::{GroupedSampler, Sampler};
    ///
    /// // Two of 40 tokens, padded to 30 + 12; one of 100 alone.
    /// let sampler = GroupedSampler::by_padded_tokens(&[[30, 10], [90, 10], [28, 12]], 100, 42)?;
    /// assert_eq!(sampler.batches_per_epoch(), 2);
    /// # Ok::<(), sideburn_data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// If there are no examples, or `max_tokens` is zero.
    pub fn by_padded_tokens(lengths: &[[usize; 2]], max_tokens: usize, seed: u64) -> Result<Self, DataError> {
        let key = checked_key(lengths, max_tokens, seed)?;
        let mut order = key.permutation(lengths.len());
        order.sort_by_key(|example| lengths[*example]);
        let (mut batches, mut longest) = (vec![Vec::new()], [0; 2]);
        for example in order {
            let batch: &mut Vec<usize> = batches.last_mut().expect("never empty");
            let with: [usize; 2] = std::array::from_fn(|part| lengths[example][part].max(longest[part]));
            let tokens = with[0].saturating_add(with[1]).saturating_mul(batch.len() + 1);
            if tokens <= max_tokens || batch.is_empty() {
                batch.push(example);
                longest = with;
            } else {
                batches.push(vec![example]);
                longest = lengths[example];
            }
        }
        Ok(Self { batches, key })
    }

    /// Batches of `batch_size` examples of about one length, where example `i` has the length `lengths[i]`; the last,
    /// of the longest, may be smaller. Of equals, chance decides.
    ///
    /// For devices that pad rows to the longest of a batch, as GPUs do here.
    ///
    /// # Errors
    /// If there are no examples, or `batch_size` is zero.
    pub fn by_length(lengths: &[usize], batch_size: usize, seed: u64) -> Result<Self, DataError> {
        let key = checked_key(lengths, batch_size, seed)?;
        let mut order = key.permutation(lengths.len());
        order.sort_by_key(|example| lengths[*example]);
        Ok(Self { batches: order.chunks(batch_size).map(<[usize]>::to_vec).collect(), key })
    }
}

fn checked_key<T>(lengths: &[T], batch_size: usize, seed: u64) -> Result<Key, DataError> {
    match (lengths.len(), batch_size) {
        (0, _) | (_, 0) => Err(DataError::NoBatches { len: lengths.len(), batch_size, drop_last: false }),
        _ => Ok(order_key(seed)),
    }
}

impl Sampler for GroupedSampler {
    fn batches_per_epoch(&self) -> usize {
        self.batches.len()
    }

    fn batch(&self, step: u64) -> Vec<usize> {
        let order = self.key.fold_in_name("batches").fold_in(self.epoch_of(step)).permutation(self.batches.len());
        self.batches[order[(step % self.batches.len() as u64) as usize]].clone()
    }
}

/// The part of each batch of a sampler that one of several processes (ranks) has: every `ranks`-th example, from the
/// `rank`-th on. All ranks together have each example of the batch once.
///
/// A batch of fewer examples than ranks leaves nothing to some; [`ShuffledSampler::drop_last`] has none such.
///
/// ```
/// use sideburn_data::{Sampler, ShardedSampler, ShuffledSampler};
///
/// let whole = ShuffledSampler::new(100, 8, 42)?;
/// let second = ShardedSampler::new(whole.clone(), 1, 2)?;
/// let batch = whole.batch(0);
/// assert_eq!(second.batch(0), [batch[1], batch[3], batch[5], batch[7]]);
/// # Ok::<(), sideburn_data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardedSampler<S> {
    sampler: S,
    rank: usize,
    ranks: usize,
}

impl<S: Sampler> ShardedSampler<S> {
    /// The part of `rank`, which counts from 0, of `ranks`. Every rank must be given an equal `sampler`.
    ///
    /// # Errors
    /// If `rank` is not below `ranks`.
    pub fn new(sampler: S, rank: usize, ranks: usize) -> Result<Self, DataError> {
        if rank < ranks { Ok(Self { sampler, rank, ranks }) } else { Err(DataError::NoSuchRank { rank, ranks }) }
    }
}

impl<S: Sampler> Sampler for ShardedSampler<S> {
    fn batches_per_epoch(&self) -> usize {
        self.sampler.batches_per_epoch()
    }

    fn batch(&self, step: u64) -> Vec<usize> {
        self.sampler.batch(step).into_iter().skip(self.rank).step_by(self.ranks).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The batches of an epoch, in which every example comes once; the same whatever was asked before.
    fn epoch(sampler: &impl Sampler, len: usize, epoch: u64) -> Vec<Vec<usize>> {
        let per_epoch = sampler.batches_per_epoch() as u64;
        let steps: Vec<u64> = (epoch * per_epoch..(epoch + 1) * per_epoch).collect();
        let batches: Vec<Vec<usize>> = steps.iter().map(|&step| sampler.batch(step)).collect();
        assert!(steps.iter().all(|&step| sampler.epoch_of(step) == epoch));
        let mut seen = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..len).collect::<Vec<_>>());
        for (step, batch) in steps.iter().zip(&batches).rev() {
            assert_eq!(&sampler.batch(*step), batch, "the batch must not depend on what was asked before");
        }
        batches
    }

    proptest! {
        #[test]
        fn every_example_comes_once_per_epoch(
            len in 1usize..60,
            batch_size in 1usize..20,
            seed: u64,
            at in 0u64..1 << 40,
        ) {
            let batches = epoch(&ShuffledSampler::new(len, batch_size, seed).unwrap(), len, at);
            prop_assert!(batches.iter().all(|batch| !batch.is_empty() && batch.len() <= batch_size));
        }

        #[test]
        fn ranks_cover_each_batch_without_overlap(
            lengths in prop::collection::vec(0usize..50, 1..60),
            batch_size in 1usize..20,
            ranks in 1usize..6,
            seed: u64,
            step in 0u64..1 << 40,
        ) {
            let shuffled = ShuffledSampler::new(lengths.len(), batch_size, seed).unwrap();
            let grouped = GroupedSampler::by_tokens(&lengths, 60, seed).unwrap();
            for whole in [&shuffled as &dyn Sampler, &grouped] {
                let parts: Vec<Vec<usize>> =
                    (0..ranks).map(|rank| ShardedSampler::new(whole, rank, ranks).unwrap().batch(step)).collect();
                prop_assert!(parts.iter().all(|part| part.len().abs_diff(parts[0].len()) <= 1));
                let (mut together, mut batch) = (parts.concat(), whole.batch(step));
                together.sort_unstable();
                batch.sort_unstable();
                prop_assert_eq!(together, batch);
            }
            prop_assert!(ShardedSampler::new(shuffled, ranks, ranks).is_err());
        }

        #[test]
        fn drop_last_leaves_full_batches_only(len in 1usize..60, batch_size in 1usize..20, step in 0u64..500) {
            match ShuffledSampler::new(len, batch_size, 1).unwrap().drop_last() {
                Ok(sampler) => prop_assert_eq!(sampler.batch(step).len(), batch_size),
                Err(_) => prop_assert!(len < batch_size),
            }
        }

        #[test]
        fn batches_keep_to_their_tokens(
            tokens in prop::collection::vec(0usize..50, 1..60),
            max_tokens in 1usize..120,
            seed: u64,
            at in 0u64..1 << 40,
        ) {
            let sampler = GroupedSampler::by_tokens(&tokens, max_tokens, seed).unwrap();
            let batches = epoch(&sampler, tokens.len(), at);
            let held = |batch: &[usize]| batch.iter().map(|example| tokens[*example]).sum::<usize>();
            let fits = |batch: &Vec<usize>| held(batch) <= max_tokens || tokens[batch[batch.len() - 1]] > max_tokens;
            prop_assert!(batches.iter().all(|batch| !batch.is_empty() && fits(batch)));
            let neighbours = sampler.batches.windows(2);
            let full = |pair: &[Vec<usize>]| held(&pair[0]) + tokens[pair[1][0]] > max_tokens;
            prop_assert!(neighbours.into_iter().all(full), "no batch ends before it is full");
        }

        #[test]
        fn packs_are_full(
            tokens in prop::collection::vec(0usize..50, 1..60),
            max_tokens in 1usize..120,
            seed: u64,
            at in 0u64..1 << 40,
        ) {
            let sampler = GroupedSampler::packed(&tokens, max_tokens, seed).unwrap();
            let batches = epoch(&sampler, tokens.len(), at);
            let held = |batch: &[usize]| batch.iter().map(|example| tokens[*example]).sum::<usize>();
            prop_assert!(batches.iter().all(|batch| held(batch) <= max_tokens || batch.len() == 1));
            let fits = |a: &Vec<usize>, b: &Vec<usize>| held(a) + held(b) <= max_tokens;
            let mut pairs = (0..batches.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
            prop_assert!(!pairs.any(|(a, b)| fits(&batches[a], &batches[b])), "no two packs are one");
        }

        #[test]
        fn padded_batches_keep_to_their_tokens(
            lengths in prop::collection::vec([0usize..40, 0usize..20], 1..60),
            max_tokens in 1usize..200,
            seed: u64,
            at in 0u64..1 << 40,
        ) {
            let sampler = GroupedSampler::by_padded_tokens(&lengths, max_tokens, seed).unwrap();
            for batch in epoch(&sampler, lengths.len(), at) {
                let longest = |part: usize| batch.iter().map(|example| lengths[*example][part]).max().unwrap();
                prop_assert!(batch.len() == 1 || batch.len() * (longest(0) + longest(1)) <= max_tokens);
            }
        }

        #[test]
        fn batches_are_of_one_length(
            lengths in prop::collection::vec(0usize..50, 1..60),
            batch_size in 1usize..20,
            seed: u64,
            at in 0u64..1 << 40,
        ) {
            let sampler = GroupedSampler::by_length(&lengths, batch_size, seed).unwrap();
            let batches = epoch(&sampler, lengths.len(), at);
            prop_assert!(batches.iter().filter(|batch| batch.len() < batch_size).count() <= 1);
            // Whatever is in a batch is nowhere between the shortest and the longest of another.
            let mut ranges: Vec<[usize; 2]> = Vec::new();
            for batch in &batches {
                let of_batch = || batch.iter().map(|example| lengths[*example]);
                ranges.push([of_batch().min().unwrap(), of_batch().max().unwrap()]);
            }
            ranges.sort_unstable();
            prop_assert!(ranges.windows(2).all(|pair| pair[0][1] <= pair[1][0]), "{:?}", ranges);
        }
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let sampler = ShuffledSampler::new(100, 100, 1).unwrap();
        assert_ne!(sampler.batch(0), sampler.batch(1));
        assert_ne!(sampler.batch(0), ShuffledSampler::new(100, 100, 2).unwrap().batch(0));
        assert_ne!(sampler.batch(0), Key::from_seed(1).fold_in(0).permutation(100), "that key may be dropout's");

        let lengths: Vec<usize> = (0..100).map(|example| 10 + example % 7).collect();
        let grouped = |seed| GroupedSampler::by_tokens(&lengths, 60, seed).unwrap();
        assert_ne!(epoch(&grouped(1), 100, 0), epoch(&grouped(1), 100, 1));
        assert_ne!(epoch(&grouped(1), 100, 0), epoch(&grouped(2), 100, 0));
    }

    /// Lengths such as those of dialogues with summaries.
    #[test]
    fn packs_have_next_to_no_room_left() {
        let key = Key::from_seed(3);
        let tokens: Vec<usize> = (0..2000).map(|at| (160.0 * (0.5 * key.normal(at)).exp()) as usize).collect();
        let filled = |sampler: &GroupedSampler| {
            tokens.iter().sum::<usize>() as f64 / (1024 * sampler.batches_per_epoch()) as f64
        };
        let packed = filled(&GroupedSampler::packed(&tokens, 1024, 1).unwrap());
        assert!(packed > 0.99, "{packed}");
        let greedy = filled(&GroupedSampler::by_tokens(&tokens, 1024, 1).unwrap());
        assert!(greedy < packed, "{greedy}");
        let sampler = |seed| GroupedSampler::packed(&tokens, 1024, seed).unwrap();
        assert_ne!(sampler(1).batch(0), sampler(1).batch(sampler(1).batches_per_epoch() as u64));
        assert_ne!(sampler(1).batch(0), sampler(2).batch(0));
    }

    #[test]
    fn nothing_to_sample_is_an_error() {
        assert!(ShuffledSampler::new(0, 4, 0).is_err());
        assert!(ShuffledSampler::new(4, 0, 0).is_err());
        assert_eq!(ShuffledSampler::new(3, usize::MAX, 0).unwrap().batch(5).len(), 3);
        let message = ShuffledSampler::new(3, 4, 0).unwrap().drop_last().unwrap_err().to_string();
        assert!(message.starts_with("3 examples in batches of 4 make no full batch"), "{message}");
        assert!(GroupedSampler::by_tokens(&[], 4, 0).is_err() && GroupedSampler::by_tokens(&[1], 0, 0).is_err());
        assert!(GroupedSampler::packed(&[], 4, 0).is_err() && GroupedSampler::packed(&[1], 0, 0).is_err());
        assert_eq!(GroupedSampler::packed(&[usize::MAX, 1, 1], 2, 0).unwrap().batches_per_epoch(), 2);
        assert!(GroupedSampler::by_padded_tokens(&[], 4, 0).is_err());
        assert!(GroupedSampler::by_padded_tokens(&[[1, 1]], 0, 0).is_err());
        let huge = [[usize::MAX; 2]; 2];
        assert_eq!(GroupedSampler::by_padded_tokens(&huge, usize::MAX - 1, 0).unwrap().batches_per_epoch(), 2);
        assert!(GroupedSampler::by_length(&[], 4, 0).is_err() && GroupedSampler::by_length(&[1], 0, 0).is_err());
        assert_eq!(GroupedSampler::by_tokens(&[usize::MAX, usize::MAX], 1, 0).unwrap().batches_per_epoch(), 2);
    }
}
