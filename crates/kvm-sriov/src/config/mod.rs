//! What a site configures: settings, kvmrc, VF maps, how VMs get the VFs of a root; and the version of OpenNebula.

mod kvmrc;
mod root_conf;
mod settings;
mod version;
mod vf_map;

pub use kvmrc::{Kvmrc, KvmrcError, variables};
pub use root_conf::RootConf;
pub use settings::Settings;
pub use version::OneVersion;
pub(crate) use vf_map::{AlsoListed, NoVfs, mode_of};
pub use vf_map::{MapDirs, Supply, VfMap, VfMapError};
