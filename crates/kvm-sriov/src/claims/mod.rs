//! Claims: which VM has which VF. Claims are files, so that they outlive a process and all processes of a host share
//! them.
//!
//! `<state>/<root>/<index>` exists exactly while that VF is in use; docs/reference/state.md describes the files. A
//! claim is stale when no running domain and no running action backs it, and it names no save image. The next action
//! that reads the claims removes it.
//!
//! * `claim` - [`Claim`], and what else the calls take and return
//! * `store` - [`ClaimStore`]: the state directory and its locks
//! * `read`, `take`, `write`, `recover` - the calls of the store: claims are read, made, changed and released, repaired
//! * `entries` - the files in the state directory; `record` - the text of a claim
//! * `lock` - [`VmLock`]: one action at a time for each VM; `holder` - [`Holder`]: the action that holds such a lock
//! * `process` - [`Process`], [`Token`]: who wrote a claim or a lock, and on which host
//! * `turn` - work that is done at most once in a while
//! * `safe` - files that no other user can have put there; `shared` - file systems that other hosts may have mounted
//!   too
//! * `error` - [`ClaimError`]

mod claim;
mod entries;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod holder;
mod lock;
mod process;
mod read;
mod record;
mod recover;
mod safe;
mod shared;
mod store;
mod take;
#[cfg(test)]
mod tests;
mod turn;
mod write;

pub use claim::{Backing, Claim, ClaimRepair, ClaimRequest, Claimant};
pub use entries::Entry;
pub use error::ClaimError;
pub use holder::Holder;
pub(crate) use holder::this_is_program;
pub use lock::VmLock;
pub use process::{Process, Token};
pub use store::ClaimStore;
