//! Relative positions, in buckets.

/// The bucket of the distance from a query to a key: `T5Attention._relative_position_bucket` of `transformers` (Raffel
/// et al., 2020, section 2.1).
///
/// Half of the buckets are exact distances, the others grow logarithmically up to `max_distance`, from which on all
/// share the last. A bidirectional encoder halves the buckets again for keys before and after the query; a decoder has
/// none for keys that come after.
///
/// ```
/// use sideburn_t5::relative_position_bucket;
///
/// // A key two places before its query, among 32 buckets.
/// assert_eq!(relative_position_bucket(5, 7, true, 32, 128), 2);
/// assert_eq!(relative_position_bucket(9, 7, true, 32, 128), 16 + 2);
/// assert_eq!(relative_position_bucket(9, 7, false, 32, 128), 0);
/// ```
pub fn relative_position_bucket(
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
