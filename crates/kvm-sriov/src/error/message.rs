//! What a person reads of a cause.
//!
//! A message says what failed, on what, and why, and what to do where that is known. It is one line without a full
//! stop; [`ActionError`](super::ActionError) puts the action before it and the state of the host after it.

use std::fmt;

use super::{Cause, UnplugOutcome};
use crate::base::{PciAddress, Position};
use crate::config::AlsoListed;

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument { name, problem } => write!(f, "{name}: {problem}"),
            Self::Stdin { why } => write!(f, "cannot read the XML from standard input: {why}"),
            Self::Xml { what, source } => write!(f, "{what}: {source}"),
            Self::Value { what, source } => write!(f, "{what}: {source}"),
            Self::Kvmrc(error) => error.fmt(f),
            Self::NotSet { variable, why } => write!(
                f,
                "{variable} is not set: {why}; set it in /etc/kvm-sriov/kvmrc on this host or in \
                 etc/vmm/kvm-sriov/kvmrc of the front-end"
            ),
            Self::NoBridge { bridge } => write!(
                f,
                "DUMMY_BRIDGE {bridge} is not a bridge of this host: create it (ip link add {bridge} type bridge; \
                 ip link set {bridge} up), it needs no uplink"
            ),
            Self::NotSriov { mac, bridge } => write!(
                f,
                "NIC {mac} is in a network with VN_MAD sriov, whose bridge must be sriov_<root>; found \"{bridge}\""
            ),
            Self::Map(error) => error.fmt(f),
            Self::Claims(error) => error.fmt(f),
            Self::Libvirt(error) => error.fmt(f),
            Self::Call { what, source } => write!(f, "could not {what}: {source}"),
            Self::File { verb, path, source } => write!(f, "cannot {verb} {}: {source}", path.display()),
            Self::Exists { name } => write!(f, "{name} is already on this host"),
            Self::Absent { id } => write!(f, "there is no domain {id} on this host"),
            Self::ShutdownTimeout { id, seconds } => {
                write!(f, "timed out shutting down {id} after {seconds} s (does the guest answer its power button?)")
            }
            Self::StillThere { id, seconds } => {
                write!(f, "could not destroy {id}: it is still there after {seconds} s")
            }
            Self::VfioDenied { device, text, advice } => write!(f, "QEMU may not open {device} ({text}): {advice}"),
            Self::NoMemory { text, guest_kib, limit_kib, free_kib } => {
                write!(f, "the host can't lock the guest's memory for a VF ({text}): guest memory {guest_kib} KiB, ")?;
                match limit_kib {
                    Some(kib) => write!(f, "its hard_limit {kib} KiB")?,
                    None => f.write_str("its hard_limit not set")?,
                }
                write!(f, ", free on the host {free_kib} KiB; free memory on the host or raise the domain's hard_limit")
            }
            Self::AllRefused { exhausted, reasons } => write!(f, "{exhausted}; refused by libvirt: {reasons}"),
            Self::NotAsAsked { name, what } => write!(f, "{name} is not as requested: {what}"),
            Self::NotReleased { vm, seconds, kept } => {
                write!(f, "{vm} did not release {}", KeptVfs(kept, *seconds))
            }
            Self::DeviceNotReleased { vm, device, seconds, outcome } => {
                write!(f, "{vm} did not release {device}{}", WhyKept(outcome, *seconds))
            }
            Self::NoVmDir { vm } => write!(f, "cannot read 'system_datastore' from domain {vm}"),
            Self::OtherNic { vm, mac, what } => write!(f, "{vm} already has a NIC {mac}: {what}"),
            Self::SeveralNics { vm, mac, nics } => write!(
                f,
                "{vm} has several NICs with MAC {mac} ({nics}), and OpenNebula does not say which one is meant"
            ),
            Self::NoDisk { vm, target, what } => write!(f, "could not {what}: {vm} has no disk {target}"),
            Self::OtherDisk { vm, what, found } => write!(f, "could not {what}: {vm} has {found} there"),
            Self::NotNamed { what } => write!(f, "OpenNebula's message names no {what}"),
            Self::GuestAgent { vm, text } => write!(f, "the guest agent of {vm} answered \"{text}\""),
            Self::Program { what, why } | Self::NoRoom { what, why } => write!(f, "could not {what}: {why}"),
            Self::TooMany { vm } => write!(f, "{vm} already has 16 SR-IOV NICs, and no VM can have more"),
            Self::ForeignDevice { vm, device, what } => {
                write!(f, "{vm} also has host device {device}, which can't be {what}")
            }
            Self::NotRunning { vm, how } => {
                write!(f, "{vm} is {how}, so its guest can't release a device; resume it first")
            }
            Self::Unmapped { vm, vf, root } => {
                write!(f, "VF {vf} of {vm} is no longer in the map {root}: write it back, the VM uses it")
            }
            Self::Unresolved { vm, doubt } => write!(f, "{vm} is in doubt ({doubt}); kvm-sriov resolve {vm} decides"),
            Self::OpenOperation { vm, operation, why } => write!(f, "{vm} has an open operation ({operation}): {why}"),
            Self::JobRuns { vm, what } => {
                write!(f, "a job of libvirt runs on {vm} ({what}), and no device can be changed before it ends")
            }
            Self::Agent(error) => error.fmt(f),
            Self::Elsewhere { host, text } => write!(f, "{host}: {text}"),
            Self::NothingPrepared => f.write_str("no VM was announced to this agent"),
            Self::TooFew { root, free, needed, users, no_vfs } => {
                write!(f, "too few free VFs on {root}: {free}, {needed} needed{users}{}", AlsoListed(no_vfs))
            }
            Self::FewVfs { root, vfs, needed, no_vfs } => write!(
                f,
                "{root} has too few VFs here: {vfs}, {needed} needed{} (is the adapter's driver loaded, and are its VFs made?)",
                AlsoListed(no_vfs)
            ),
            Self::NoMode { mac, mode } => {
                write!(f, "NIC {mac} is in mode {mode}, which this version of kvm-sriov does not support")
            }
            Self::OtherMode { mac, mode, root, here } => write!(
                f,
                "NIC {mac} is in mode {mode}, and {root} is in mode {here} on this host: MODE in {root}.conf beside the map must be the same on all hosts"
            ),
            Self::NeedsBridge { mac, what } => {
                write!(f, "NIC {mac} asks for {what}, which the VF of a root with MODE=ethernet can't have")
            }
            Self::NoVlanKnown { mac } => write!(
                f,
                "the VLAN of NIC {mac} is not known: MODE=ethernet needs the VM's description that OpenNebula writes since 6.0"
            ),
            Self::NotInVmDir { path } => write!(f, "{} is not in the directory of the VM", path.display()),
            Self::NoMove { vm, how } => write!(f, "{vm} can't be moved {how}"),
            Self::UnknownThere { cause, vm, to } => write!(f, "{cause}; whether {vm} runs on {to} is not known"),
            Self::Stopped { kept } if kept.is_empty() => f.write_str("the caller stopped it"),
            Self::Stopped { kept } => {
                let vfs: Vec<String> = kept.iter().map(|(_, vf, _)| vf.to_string()).collect();
                write!(f, "the caller stopped it before the guest released VF {}", vfs.join(", "))
            }
            Self::Cancelled { name } => write!(f, "{name} was cancelled meanwhile"),
            Self::BadImage { path } => write!(f, "{} is not a complete save image of libvirt", path.display()),
            Self::Identity { path, uid, source } => {
                write!(f, "cannot become the owner of {} (uid {uid}): {source}", path.display())
            }
            Self::Twice { cause, undo } => write!(f, "{cause}; undoing it failed too: {undo}"),
        }
    }
}

/// The VFs that a guest kept, each with the reason.
struct KeptVfs<'a>(&'a [(Position, PciAddress, UnplugOutcome)], u64);

/// Why a device stayed, as the end of a sentence. The number is how long it was waited for, in seconds.
struct WhyKept<'a>(&'a UnplugOutcome, u64);

impl fmt::Display for KeptVfs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(kept, seconds) = self;
        for (number, (_, vf, outcome)) in kept.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}VF {vf}{}", WhyKept(outcome, *seconds))?;
        }
        Ok(())
    }
}

impl fmt::Display for WhyKept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(UnplugOutcome::Pending, seconds) => write!(f, " in {seconds} s"),
            Self(outcome, _) => write!(f, " ({outcome})"),
        }
    }
}
