//! Sorting of short lists.

use std::cmp::Ordering;

/// Returns the items in ascending order; equal items keep their order.
///
/// The driver sorts NICs, file names and similar short lists. An insertion sort is fast enough for them, and its code
/// is a tenth of that of the standard library's sort, which is compiled into every program once per type.
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
        fn the_order_is_that_of_a_stable_sort(items in prop::collection::vec((0_u8..9, any::<u8>()), 0..40)) {
            let mut expected = items.clone();
            expected.sort_by_key(|(key, _)| *key);
            prop_assert_eq!(ascending(items, |a, b| a.0.cmp(&b.0)), expected);
        }
    }
}
