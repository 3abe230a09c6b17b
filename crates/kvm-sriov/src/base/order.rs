//! Order among a few.

use std::cmp::Ordering;

/// The items in ascending order; equal ones stay as they were.
///
/// What is put in order here are NICs, files of a directory and the like. For them this is fast enough, and it is a tenth of
/// the code of the standard library's sort, which every program would have once for every type.
pub(crate) fn ascending<T>(items: Vec<T>, compare: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    let mut sorted: Vec<T> = Vec::with_capacity(items.len());
    for item in items {
        let at = sorted.partition_point(|other| compare(other, &item).is_le());
        sorted.insert(at, item);
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_order_of_a_stable_sort(items in prop::collection::vec((0_u8..9, any::<u8>()), 0..40)) {
            let mut expected = items.clone();
            expected.sort_by_key(|(key, _)| *key);
            prop_assert_eq!(ascending(items, |a, b| a.0.cmp(&b.0)), expected);
        }
    }
}
