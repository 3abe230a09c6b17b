//! Mutexes whose data a panic leaves complete.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, even after a panic in another thread. Only for data that no panic leaves incomplete.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
