//! Relative positions, in buckets.

/// The bucket of the distance from a query to a key: `T5Attention._relative_position_bucket` of `transformers` (Raffel
/// et al., 2020, section 2.1).
///
/// Half of the buckets are exact distances, the others grow logarithmically up to `max_distance`, from which on all
/// share the last. A bidirectional encoder halves the buckets again for keys before and after the query; a decoder has
/// none for keys that come after.
pub(crate) fn relative_position_bucket(
    key: usize,
    query: usize,
    bidirectional: bool,
    buckets: usize,
    max_distance: usize,
) -> usize {
    let (offset, buckets) = match bidirectional {
        true if key > query => (buckets / 2, buckets / 2),
        true => (0, buckets / 2),
        false => (0, buckets),
    };
    let distance = if bidirectional { key.abs_diff(query) } else { query.saturating_sub(key) };
    let exact = buckets / 2;
    if distance < exact {
        return offset + distance;
    }
    // In `f32`, as the reference computes it: buckets change at exact powers, where rounding decides.
    let ratio = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
    let grown = exact + (ratio * (buckets - exact) as f32) as usize;
    offset + grown.min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sideburn_weights::SafetensorsFile;

    use super::relative_position_bucket;

    #[test]
    fn buckets_are_those_of_transformers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/t5_gated_untied/io.safetensors");
        let golden = SafetensorsFile::open(path).unwrap();
        let integers = |name: &str| -> Vec<i64> {
            let tensor = golden.read(name).unwrap();
            tensor.bytes().chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
        };
        let distances = integers("rel_pos");
        assert_eq!((distances.first(), distances.last(), distances.len()), (Some(&-200), Some(&200), 401));
        for (bidirectional, name) in [(true, "bucket_bidirectional"), (false, "bucket_causal")] {
            for (distance, expected) in distances.iter().zip(integers(name)) {
                let bucket = relative_position_bucket((1000 + distance) as usize, 1000, bidirectional, 32, 128);
                assert_eq!(bucket as i64, expected, "{name} at {distance}");
            }
        }
    }
}
