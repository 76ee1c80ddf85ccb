//! The values that codes stand for.

use std::fmt;
use std::sync::LazyLock;

/// The block sizes that bitsandbytes has for 4-bit numbers.
pub const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// A type of 4-bit numbers, `bnb_4bit_quant_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantType {
    /// `nf4`: quantiles of the normal distribution (Dettmers et al., 2023, section 3).
    Nf4,
    /// `fp4`: a sign, two bits of exponent and one of mantissa.
    Fp4,
}

/// `_NF4_QUANT_TABLE` of bitsandbytes' `backends/utils.py`.
static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// `get_4bit_type("fp4")` of bitsandbytes' `functional.py`: divided by 12, the largest.
static FP4: [f32; 16] = [
    0.0,
    0.062_5 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    6.0 / 12.0,
    2.0 / 12.0,
    3.0 / 12.0,
    0.0,
    -0.062_5 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -6.0 / 12.0,
    -2.0 / 12.0,
    -3.0 / 12.0,
];

/// The codes in ascending order of their values; of equal ones the smaller code first, as `torch.argsort` has them.
static NF4_ORDER: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
static FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

impl QuantType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nf4, Self::Fp4];

    /// What each code stands for, between -1 and 1.
    ///
    /// ```
    /// use sideburn_quant::QuantType;
    ///
    /// assert_eq!(QuantType::Nf4.code()[7], 0.0);
    /// assert_eq!(QuantType::Fp4.code()[3], 1.0);
    /// ```
    pub fn code(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// Its name in files: `nf4` or `fp4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// The type of that name.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quant_type| quant_type.name() == name)
    }

    /// The codes in ascending order of their values.
    pub(crate) fn order(self) -> &'static [u8; 16] {
        match self {
            Self::Nf4 => &NF4_ORDER,
            Self::Fp4 => &FP4_ORDER,
        }
    }

    /// The values half way between neighbours in that order.
    pub(crate) fn bounds(self) -> [f32; 15] {
        let (code, order) = (self.code(), self.order());
        std::array::from_fn(|index| (code[order[index] as usize] + code[order[index + 1] as usize]) / 2.0)
    }
}

impl fmt::Display for QuantType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An 8-bit dynamic map, `create_dynamic_map` of bitsandbytes' `functional.py` (Dettmers, 2016, section 2): an exponent of as
/// many bits as there are leading zeros, the rest a fraction.
///
/// ```
/// use sideburn_quant::DynamicMap;
///
/// let mut codes = [0; 3];
/// let absmax = DynamicMap::signed().quantize(&[2.0, -0.5, 0.0], &mut codes);
/// let values = codes.map(|code| DynamicMap::signed().values()[usize::from(code)] * absmax);
/// assert_eq!(values[0], 2.0);
/// assert!((values[1] + 0.5).abs() < 0.02);
/// // Nothing is exactly 0, since no step between -1 and 1 is.
/// assert!(values[2].abs() < 1e-4);
/// ```
#[derive(Debug)]
pub struct DynamicMap {
    values: [f32; 256],
    /// The nearest code to each of 65,536 steps between -1 and 1.
    nearest: Vec<u8>,
}

/// Steps of the table through which bitsandbytes' CPU kernel looks codes up.
const STEPS: f32 = 65_535.0;

impl DynamicMap {
    /// That of values of both signs, between -1 and 1.
    pub fn signed() -> &'static Self {
        static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(true));
        &MAP
    }

    /// That of values from 0 to 1, in steps half as wide.
    pub fn unsigned() -> &'static Self {
        static MAP: LazyLock<DynamicMap> = LazyLock::new(|| DynamicMap::new(false));
        &MAP
    }

    fn new(signed: bool) -> Self {
        let mut values = vec![0.0, 1.0];
        for exponent in 0..7 {
            let items = 1usize << (exponent + i32::from(!signed));
            // `torch.linspace(0.1, 1, items + 1)` counts from both ends towards the middle, and rounds once.
            let step = (1.0 - 0.1f32) / items as f32;
            let boundary = |index: usize| match index < items.div_ceil(2) {
                true => step.mul_add(index as f32, 0.1),
                false => step.mul_add(-((items - index) as f32), 1.0),
            };
            let scale = 10f64.powi(exponent - 6) as f32;
            for index in 0..items {
                let mean = scale * ((boundary(index) + boundary(index + 1)) / 2.0);
                values.push(mean);
                if signed {
                    values.push(-mean);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = values.try_into().expect("254 values of seven exponents, and two more");
        let bounds: [f32; 255] = std::array::from_fn(|index| 0.5 * (values[index] + values[index + 1]));
        let nearest = (0..=u16::MAX).map(|step| {
            let rounded = -1.0 + (2.0 * f32::from(step)) / STEPS;
            bounds.partition_point(|bound| *bound < rounded) as u8
        });
        Self { values, nearest: nearest.collect() }
    }

    /// What the codes stand for, in ascending order.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// Quantises a block of finite values, code for code as bitsandbytes' CPU kernel (`quantize_cpu_impl` of
    /// `csrc/cpu_ops.cpp`), and returns the largest absolute value of it, by which codes are to be multiplied. A value is first
    /// rounded to one of 65,536 steps between -1 and 1, then to the nearest code; a block of zeros has codes of 0.
    ///
    /// # Panics
    /// If there is not a code for each value.
    #[inline]
    pub fn quantize(&self, block: &[f32], codes: &mut [u8]) -> f32 {
        assert_eq!(block.len(), codes.len(), "every value has a code");
        let absmax = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        if absmax == 0.0 {
            codes.fill(0);
            return absmax;
        }
        let inverse = 1.0 / absmax;
        for (code, x) in codes.iter_mut().zip(block) {
            let step = (((x * inverse).clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5) as u16;
            *code = self.nearest[usize::from(step)];
        }
        absmax
    }
}
