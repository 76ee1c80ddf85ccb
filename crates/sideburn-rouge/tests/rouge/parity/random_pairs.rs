//! The random pairs of texts of `testdata/make_goldens.py` (`random_pair`), made again from the same integers.

use serde::Deserialize;

/// Pieces of text, read from `testdata/atoms.json`.
#[derive(Deserialize)]
pub(crate) struct Pieces {
    atoms: Vec<String>,
    separators: Vec<String>,
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((u128::from(z) * bound as u128) >> 64) as usize
    }
}

impl Pieces {
    pub(crate) fn pair(&self, index: u64) -> (String, String) {
        let rng = &mut SplitMix64(index);
        let size = 1 + rng.below(40);
        let palette: Vec<&str> = (0..size).map(|_| self.atoms[rng.below(self.atoms.len())].as_str()).collect();
        let longest = [3, 40, 40, 40, 40, 60, 90, 120][rng.below(8)];
        let mut reference = self.independent(rng, &palette, longest);
        if rng.below(16) == 0 {
            reference = noise(rng);
        }
        let prediction = match rng.below(16) {
            0 => noise(rng),
            1..6 => self.independent(rng, &palette, longest),
            how => self.edited(rng, &palette, &reference, how < 9),
        };
        (reference.concat(), prediction.concat())
    }

    fn piece(&self, rng: &mut SplitMix64, palette: &[&str]) -> String {
        let atom = palette[rng.below(palette.len())];
        atom.to_owned() + &self.separators[rng.below(self.separators.len())]
    }

    fn independent(&self, rng: &mut SplitMix64, palette: &[&str], longest: usize) -> Vec<String> {
        (0..rng.below(longest)).map(|_| self.piece(rng, palette)).collect()
    }

    fn edited(&self, rng: &mut SplitMix64, palette: &[&str], reference: &[String], rotate: bool) -> Vec<String> {
        let mut prediction = Vec::new();
        for part in reference {
            let change = rng.below(10);
            if change == 0 {
                continue;
            }
            let part = if change == 1 { self.piece(rng, palette) } else { part.clone() };
            prediction.push(part.clone());
            if change == 2 {
                prediction.push(part);
            }
            let len = prediction.len();
            if change == 3 && len > 1 {
                prediction.swap(len - 1, len - 2);
            }
        }
        if rotate && !prediction.is_empty() {
            let cut = rng.below(prediction.len());
            prediction.rotate_left(cut);
        }
        prediction
    }
}

fn noise(rng: &mut SplitMix64) -> Vec<String> {
    (0..rng.below(60))
        .map(|_| {
            let code = if rng.below(3) == 0 {
                let code = rng.below(0x11_0000 - 0x800);
                if code >= 0xD800 { code + 0x800 } else { code }
            } else {
                rng.below(128)
            };
            char::from_u32(code as u32).expect("surrogates are skipped").to_string()
        })
        .collect()
}
