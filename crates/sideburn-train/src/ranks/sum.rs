//! The gradient of a step, shared out among ranks.

use std::error::Error;
use std::ops::Range;

use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor, TensorData};
use sideburn_adapters::{AdaptedModel, Parameter, parameters};

use super::{RankError, Ranks, first_failure};
use crate::{Differentiate, Differentiated, StepInfo};

/// A [`Differentiate`] that shares the micro-batches of a step out among ranks: each works on those that are its own, and all
/// get the sum.
///
/// Every rank is given all micro-batches of the step, and so knows the number of target tokens, by which the loss is divided,
/// without asking. Rank `r` of `n` works on `micro_batches_of(k, r, n)` of `k`. What is drawn in a micro-batch follows from its
/// number in the step ([`StepInfo::pass`]), so that the losses are the same with any number of ranks, and the gradient is but
/// for the order in which it is added up. One sum over ranks carries all gradients, all losses, and whether a rank has failed.
///
/// [`Trainer::over`](crate::Trainer::over) uses it; so can a loop of your own over [`Run::step`](crate::Run::step).
pub struct OverRanks<'a, L> {
    ranks: &'a dyn Ranks,
    differentiate: L,
}

impl<'a, L> OverRanks<'a, L> {
    /// Shares out what `differentiate` is given.
    pub fn new(ranks: &'a dyn Ranks, differentiate: L) -> Self {
        Self { ranks, differentiate }
    }
}

/// The micro-batches of a step that rank `rank` of `count` works on, of `micro_batches`: one behind the other, as many on each
/// rank, but for one.
///
/// ```
/// use sideburn_train::micro_batches_of;
///
/// let of_three: Vec<_> = (0..3).map(|rank| micro_batches_of(8, rank, 3)).collect();
/// assert_eq!(of_three, [0..2, 2..5, 5..8]);
/// ```
pub fn micro_batches_of(micro_batches: usize, rank: usize, count: usize) -> Range<usize> {
    let from = |rank: usize| (micro_batches as u128 * rank as u128 / count as u128) as usize;
    from(rank)..from(rank + 1)
}

impl<M, B, L> Differentiate<M, B> for OverRanks<'_, L>
where
    M: AdaptedModel,
    L: Differentiate<M, B>,
{
    fn gradient(
        &self,
        model: &M,
        micro_batches: &[B],
        info: &StepInfo<'_>,
    ) -> Result<Differentiated, Box<dyn Error + Send + Sync>> {
        let (rank, count) = (self.ranks.rank(), self.ranks.count());
        if count == 1 {
            return self.differentiate.gradient(model, micro_batches, info);
        }
        let own = micro_batches_of(micro_batches.len(), rank, count);
        let nothing = Differentiated { losses: Vec::new(), gradients: GradientsParams::new() };
        let found = if own.is_empty() {
            Ok(nothing)
        } else {
            let info = StepInfo { first_micro_batch: info.first_micro_batch + own.start, ..*info };
            self.differentiate.gradient(model, &micro_batches[own.clone()], &info)
        };
        let (found, failure) = match found {
            Ok(found) => (found, None),
            // The others wait for something to add.
            Err(error) => (Differentiated { losses: Vec::new(), gradients: GradientsParams::new() }, Some(error)),
        };
        let trained: Vec<Parameter<'_>> = parameters(model).into_iter().filter(Parameter::is_trainable).collect();
        let Some(device) = trained.first().map(|parameter| parameter.tensor.lazy_device().inner()) else {
            return Err(crate::TrainError::NothingToTrain.into());
        };

        // All gradients, whether there is one of each, the loss of each micro-batch, and whether a rank has failed.
        let gradient = |parameter: &Parameter<'_>| Some(found.gradients.get::<2>(parameter.id())?.inner());
        let (mut parts, mut present) = (Vec::<Tensor<1>>::new(), Vec::new());
        for parameter in &trained {
            let gradient = gradient(parameter);
            present.push(if gradient.is_some() { 1.0f32 } else { 0.0 });
            parts.push(match gradient {
                Some(gradient) => {
                    let elements = gradient.shape().num_elements();
                    gradient.cast(DType::F32).reshape([elements])
                }
                None => Tensor::zeros([parameter.tensor.lazy_shape().num_elements()], (&device, DType::F32)),
            });
        }
        let lengths: Vec<usize> = parts.iter().map(|part| part.dims()[0]).collect();
        for number in 0..micro_batches.len() {
            let loss = number.checked_sub(own.start).and_then(|index| found.losses.get(index));
            parts.push(match loss {
                Some(loss) => loss.clone().cast(DType::F32),
                None => Tensor::zeros([1], (&device, DType::F32)),
            });
        }
        let flags: Vec<f32> = present.into_iter().chain([f32::from(u8::from(failure.is_some()))]).collect();
        let flag_count = flags.len();
        parts.push(Tensor::from_data(TensorData::new(flags, [flag_count]), (&device, DType::F32)));
        let summed = self.ranks.sum_tensor(Tensor::cat(parts, 0))?;

        let elements: usize = lengths.iter().sum();
        let flags = summed.clone().narrow(0, elements + micro_batches.len(), flag_count).try_into_data();
        let flags: Vec<f32> = flags.map_err(|error| RankError::Device { message: error.to_string() })?.iter().collect();
        if flags.last().is_none_or(|failed| *failed != 0.0) {
            let own = failure.as_ref().map(ToString::to_string);
            let first = first_failure(self.ranks, own.as_deref())?;
            return Err(match (failure, first) {
                (Some(own), _) => own,
                (None, Some((rank, message))) => RankError::Failed { rank, message }.into(),
                (None, None) => "a rank has failed and says nothing".into(),
            });
        }
        let (mut gradients, mut at) = (GradientsParams::new(), 0);
        for ((parameter, length), present) in trained.iter().zip(lengths).zip(flags) {
            if present > 0.0 {
                let shape = parameter.tensor.lazy_shape();
                let whole: Tensor<2> = summed.clone().narrow(0, at, length).reshape([shape[0], shape[1]]);
                let dtype = parameter.tensor.val().dtype();
                gradients.register(parameter.id(), whole.cast(dtype));
            }
            at += length;
        }
        let losses = (0..micro_batches.len()).map(|number| summed.clone().narrow(0, elements + number, 1)).collect();
        Ok(Differentiated { losses, gradients })
    }
}
