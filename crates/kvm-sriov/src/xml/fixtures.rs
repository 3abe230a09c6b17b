//! Texts for the tests of several modules.

use super::{Deployment, WantedNic};

pub(super) const SIMPLE: &str = include_str!("../../tests/fixtures/deployment-simple.xml");
pub(super) const RICH: &str = include_str!("../../tests/fixtures/deployment-rich.xml");
pub(super) const OLD: &str = include_str!("../../tests/fixtures/deployment-4.0.xml");
pub(super) const WIRE: &str = include_str!("../../tests/fixtures/deployment-7.x.xml");
pub(super) const LIVE: &str = include_str!("../../tests/fixtures/live.xml");
pub(super) const VM: &str = include_str!("../../tests/fixtures/vm.xml");
pub(super) const ACTION: &str = include_str!("../../tests/fixtures/action-7.x.xml");

/// A domain with this content.
pub(super) fn domain(inside: &str) -> String {
    format!("<domain>\n<name>one-1</name>\n{inside}</domain>")
}

/// An interface on this bridge.
pub(super) fn nic(bridge: &str, rest: &str) -> String {
    format!("<interface type='bridge'><source bridge='{bridge}'/><mac address='02:00:00:00:00:01'/>{rest}</interface>")
}

/// The guest addresses that the VFs of this deployment file get.
pub(super) fn guests(text: &str) -> Vec<String> {
    let deployment = Deployment::parse(text).unwrap();
    let address = |nic: &WantedNic| nic.guest.map_or("-".to_owned(), |address| address.to_string());
    deployment.sriov_nics().map(address).collect()
}
