//! What a site configures: settings, kvmrc, VF maps; and the version of OpenNebula.

mod kvmrc;
mod settings;
mod version;
mod vf_map;

pub use kvmrc::{Kvmrc, KvmrcError, variables};
pub use settings::Settings;
pub use version::OneVersion;
pub(crate) use vf_map::{AlsoListed, NoVfs};
pub use vf_map::{MapDirs, Supply, VfMap, VfMapError};
