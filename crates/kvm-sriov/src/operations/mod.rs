//! What a program that embeds the crate asks of a host, in the language of VFs and domains.
//!
//! Each operation is a method of [`Host`], one file each. OpenNebula's actions do the same work; they also read
//! OpenNebula's description of a VM, which these methods need not have.
//!
//! A domain is named by its UUID, its name or libvirt's id ([`DomainId`](crate::DomainId)). An operation may be called
//! again after any failure, and from several threads at once: operations on one domain wait for each other, those on
//! different domains do not.

mod migrate;
mod plug;
mod repair;
mod save;
mod unplug;
