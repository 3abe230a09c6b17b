//! Lists the VFs of a host and watches them: `cargo run --example list_vfs [SECONDS]`.
//!
//! Runs on libvirt's test driver. For a real host leave out `uri` and name the directory of its maps and its claims.

use std::{env, error, thread, time::Duration};

use kvm_sriov::Host;
use kvm_sriov::config::VfMap;

fn main() -> Result<(), Box<dyn error::Error>> {
    let seconds: u64 = env::args().nth(1).map_or(Ok(0), |text| text.parse())?;
    let vfs = vec!["0000:07:00.1".parse()?, "0000:07:00.2".parse()?];
    let host = Host::builder()
        .uri("test:///default")
        .state_dir(env::temp_dir().join("kvm-sriov-example"))
        .map(VfMap::new("ib0".parse()?, vfs)?)
        .journal(false)
        .open()?;
    let mut before = Vec::new();
    for _ in 0..=seconds {
        let now = host.vfs()?;
        for vf in now.iter().filter(|vf| !before.contains(*vf)) {
            println!("{} {} {}: {}", vf.root, vf.index, vf.address, vf.state);
        }
        before = now;
        thread::sleep(Duration::from_secs(u64::from(seconds > 0)));
    }
    Ok(())
}
