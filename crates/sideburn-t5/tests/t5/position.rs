//! Buckets of relative positions against `transformers`.

use sideburn_t5::relative_position_bucket;
use sideburn_testing::Golden;

#[test]
fn buckets_are_those_of_transformers() {
    let golden = Golden::open("t5_gated_untied/io.safetensors");
    let distances = golden.integers("rel_pos");
    assert_eq!((distances.first(), distances.last(), distances.len()), (Some(&-200), Some(&200), 401));
    for (bidirectional, name) in [(true, "bucket_bidirectional"), (false, "bucket_causal")] {
        for (distance, expected) in distances.iter().zip(golden.integers(name)) {
            let bucket = relative_position_bucket((1000 + distance) as usize, 1000, bidirectional, 32, 128);
            assert_eq!(bucket as i64, expected, "{name} at {distance}");
        }
    }
}
