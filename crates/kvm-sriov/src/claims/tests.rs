//! Tests on state directories of their own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::shared::FileSystem;
use super::*;
use crate::base::{Action, DomainName, NicKey, Owner, Position, WantedVf};
use crate::config::VfMap;

fn lock(store: &ClaimStore, owner: &Owner) -> VmLock {
    store.lock_vm(&owner.vm, Action::Deploy, Duration::from_secs(60)).unwrap()
}

#[test]
fn what_was_released_since_libvirt_was_asked_is_not_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let store = ClaimStore::create(&dir.path().join("vf_interfaces")).unwrap();
    let maps = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), b"0x07 0x00 0x01\n").unwrap()];
    let owner = Owner { vm: "one-42".parse().unwrap(), uuid: None };
    let nic = NicKey { position: Position::new(0).unwrap(), mac: "02:00:0a:00:00:01".parse().unwrap() };
    let vfs = [WantedVf { root: "ib0".parse().unwrap(), nic }];
    std::fs::create_dir_all(dir.path().join("sys/bus/pci/devices/0000:07:00.1/physfn")).unwrap();
    let sysfs = crate::sysfs::Sysfs::at(dir.path().into());
    let lock = lock(&store, &owner);
    let request = ClaimRequest { owner: &owner, lock: &lock, vfs: &vfs, maps: &maps, sysfs: &sysfs, refused: &[] };
    let claims = store.claim_all(&request, &Backing::default()).unwrap();
    store.commit(&claims, &maps).unwrap();
    let devices = claims.iter().map(|claim| (claim.vf, owner.clone())).collect();
    let backing = Backing { devices, ..Backing::default() };

    let seen = store.entries().unwrap();
    store.release(&claims).unwrap();
    assert_eq!(store.inspect(&seen, &backing, &maps).unwrap(), []);
    assert_eq!(store.recover(&seen, &backing, &maps).unwrap(), []);
    assert_eq!(store.entries().unwrap(), []);

    let repairs = store.recover(&[], &backing, &maps).unwrap();
    let [ClaimRepair::Adopted(claim)] = &repairs[..] else { panic!("{repairs:?}") };
    assert_eq!((claim.vf, &claim.owner), (claims[0].vf, &owner));
}

#[test]
fn a_claim_is_for_the_nic_at_its_position() {
    let dir = tempfile::tempdir().unwrap();
    let store = ClaimStore::create(&dir.path().join("vf_interfaces")).unwrap();
    let text = b"0x07 0x00 0x01\n0x07 0x00 0x02\n0x07 0x00 0x03\n0x07 0x00 0x04\n";
    let maps = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), text).unwrap()];
    let owner = Owner { vm: "one-42".parse().unwrap(), uuid: None };
    let mac = "02:00:0a:00:00:01".parse().unwrap();
    let at = |number| NicKey { position: Position::new(number).unwrap(), mac };
    let vfs = [0, 1, 2].map(|number| WantedVf { root: "ib0".parse().unwrap(), nic: at(number) });
    for vf in maps.iter().flat_map(|map| map.vfs()) {
        std::fs::create_dir_all(dir.path().join(format!("sys/bus/pci/devices/{vf}/physfn"))).unwrap();
    }
    let sysfs = crate::sysfs::Sysfs::at(dir.path().into());
    let lock = lock(&store, &owner);
    let request = ClaimRequest { owner: &owner, lock: &lock, vfs: &vfs, maps: &maps, sysfs: &sysfs, refused: &[] };
    let claims = store.claim_all(&request, &Backing::default()).unwrap();
    store.commit(&claims, &maps).unwrap();

    // The first NIC has its VF, the second waits for one, the third is not wanted any more. All three have the same
    // MAC.
    let devices = BTreeMap::from([(claims[0].vf, owner.clone())]);
    let nics = BTreeMap::from([(claims[0].vf, at(0))]);
    let backing = Backing { devices, nics, wanting: vec![(owner.clone(), at(1))], ..Backing::default() };
    let repairs = store.recover(&store.entries().unwrap(), &backing, &maps).unwrap();
    assert_eq!(repairs, [ClaimRepair::Freed(claims[2].clone())]);
    assert_eq!(store.claims_of(&owner).unwrap(), claims[..2]);

    // A claim of an older version, which knew NICs by their MAC, with a line of a newer version.
    let path = store.dir().join("ib0/1");
    let text = fs::read_to_string(&path).unwrap();
    let old = text.replace("position=1\n", "later=x\n");
    assert_ne!(old, text);
    fs::write(&path, old).unwrap();
    assert_eq!(store.recover(&store.entries().unwrap(), &backing, &maps).unwrap(), []);
    let claim = store.claims_of(&owner).unwrap().remove(1);
    assert_eq!((claim.position, claim.mac), (None, Some(mac)));
    store.commit(&claims[..2], &maps).unwrap();
    assert_eq!(store.claims_of(&owner).unwrap(), claims[..2]);
    assert!(fs::read_to_string(&path).unwrap().contains("later=x\n"));
}

#[test]
fn a_file_system_that_hosts_share_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("one/vf_interfaces");
    let nfs = |_: &Path| Ok(FileSystem { magic: 0x6969, name: None });
    let error = ClaimStore::create_on(&state, nfs).unwrap_err().to_string();
    let start = format!("{} is on NFS, which other hosts may share", state.display());
    assert!(error.starts_with(&start) && error.contains("VF_STATE_DIR"), "{error}");
    assert!(!dir.path().join("one").exists());
    // A directory that already exists is refused too.
    fs::create_dir_all(&state).unwrap();
    assert!(matches!(ClaimStore::create_on(&state, nfs), Err(ClaimError::Shared { .. })));
    assert!(!state.join(".locks").exists());
}

#[test]
fn a_claim_of_another_host_is_neither_freed_nor_given_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = ClaimStore::create(&dir.path().join("vf_interfaces")).unwrap();
    let text = b"0x07 0x00 0x01\n0x07 0x00 0x02\n";
    let maps = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), text).unwrap()];
    let owner = Owner { vm: "one-42".parse().unwrap(), uuid: None };
    let nic = NicKey { position: Position::new(0).unwrap(), mac: "02:00:0a:00:00:01".parse().unwrap() };
    let vfs = [WantedVf { root: "ib0".parse().unwrap(), nic }];
    for vf in maps[0].vfs() {
        std::fs::create_dir_all(dir.path().join(format!("sys/bus/pci/devices/{vf}/physfn"))).unwrap();
    }
    let sysfs = crate::sysfs::Sysfs::at(dir.path().into());
    let lock = lock(&store, &owner);
    let request = ClaimRequest { owner: &owner, lock: &lock, vfs: &vfs, maps: &maps, sysfs: &sysfs, refused: &[] };
    // A claim of the same VM on the host that it was migrated from. The two hosts have VFs at different addresses.
    let path = store.dir().join("ib0/0");
    let theirs =
        "kvm-sriov-claim 1\nvm=one-42\nposition=0\nmac=02:00:0a:00:00:01\nvf=0000:81:00.1\nhost=other\nboot=x\n";
    fs::create_dir(store.dir().join("ib0")).unwrap();
    fs::write(&path, theirs).unwrap();

    assert_eq!(store.claimants().unwrap(), []);
    assert_eq!(store.release_domain(&owner).unwrap(), []);
    assert_eq!(store.recover(&store.entries().unwrap(), &Backing::default(), &maps).unwrap(), []);
    let claims = store.claim_all(&request, &Backing::default()).unwrap();
    assert_eq!(claims[0].vf.to_string(), "0000:07:00.2", "its file's place was given away");
    let error = store.claim_all(&request, &Backing::default()).unwrap_err().to_string();
    assert!(error.contains("one-42 of another host: 1"), "{error}");
    let ours = Claim { vf: maps[0].vfs()[0], ..claims[0].clone() };
    assert!(matches!(store.commit(&[ours], &maps), Err(ClaimError::Elsewhere { .. })));
    store.release_domain(&owner).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
}

/// A store with four VFs on one root, all free.
struct Four {
    dir: tempfile::TempDir,
    store: ClaimStore,
    maps: [VfMap; 1],
    sysfs: crate::sysfs::Sysfs,
}

impl Four {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ClaimStore::create(&dir.path().join("vf_interfaces")).unwrap();
        let text = b"0x07 0x00 0x01\n0x07 0x00 0x02\n0x07 0x00 0x03\n0x07 0x00 0x04\n";
        let maps = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), text).unwrap()];
        for vf in maps[0].vfs() {
            fs::create_dir_all(dir.path().join(format!("sys/bus/pci/devices/{vf}/physfn"))).unwrap();
        }
        let sysfs = crate::sysfs::Sysfs::at(dir.path().into());
        Self { dir, store, maps, sysfs }
    }

    /// Claims a VF in an action that goes on as long as the lock.
    fn claim(&self, lock: &VmLock, owner: &Owner) -> Result<Vec<Claim>, ClaimError> {
        let nic = NicKey { position: Position::new(0).unwrap(), mac: "02:00:0a:00:00:01".parse().unwrap() };
        let vfs = [WantedVf { root: "ib0".parse().unwrap(), nic }];
        let request = ClaimRequest { owner, lock, vfs: &vfs, maps: &self.maps, sysfs: &self.sysfs, refused: &[] };
        self.store.claim_all(&request, &Backing::default())
    }
}

fn one(number: u32) -> Owner {
    Owner { vm: DomainName::of_vm(number), uuid: None }
}

#[test]
fn nobody_waits_for_a_look_that_finds_nothing_to_do() {
    let four = Four::new();
    let lock = lock(&four.store, &one(42));
    let claims = four.claim(&lock, &one(42)).unwrap();
    let _held = four.store.lock().unwrap();
    let seen = four.store.entries().unwrap();
    assert_eq!(four.store.recover(&seen, &Backing::default(), &four.maps).unwrap(), []);
    assert_eq!(four.store.claims_of(&one(42)).unwrap(), claims);
}

/// The action may have plugged its VF after libvirt answered, and ended before the claims are judged.
#[test]
fn a_claim_that_was_held_when_libvirt_was_asked_is_not_freed() {
    let four = Four::new();
    let lock = lock(&four.store, &one(42));
    let claims = four.claim(&lock, &one(42)).unwrap();
    let seen = four.store.entries().unwrap();
    drop(lock);
    assert_eq!(four.store.inspect(&seen, &Backing::default(), &four.maps).unwrap(), []);
    assert_eq!(four.store.recover(&seen, &Backing::default(), &four.maps).unwrap(), []);
    assert_eq!(four.store.claims_of(&one(42)).unwrap(), claims);
    let repairs = four.store.recover(&four.store.entries().unwrap(), &Backing::default(), &four.maps).unwrap();
    assert!(matches!(&repairs[..], [ClaimRepair::Freed(claim)] if claim.vf == claims[0].vf), "{repairs:?}");
}

#[test]
fn a_release_reads_its_own_file_alone() {
    let four = Four::new();
    let [first, second, third] =
        [40, 41, 42].map(|number| four.claim(&lock(&four.store, &one(number)), &one(number)).unwrap());
    // The other claims can't even be listed.
    std::os::unix::fs::symlink(four.dir.path(), four.store.dir().join("ib1")).unwrap();
    fs::write(four.store.dir().join("ib0/1"), "garbage").unwrap();
    four.store.release(&first).unwrap();
    assert!(!four.store.dir().join("ib0/0").exists());
    // A claim of another VM stays. A claim whose file was renamed is found.
    four.store.release(&second).unwrap();
    assert!(four.store.dir().join("ib0/1").exists());
    fs::rename(four.store.dir().join("ib0/2"), four.store.dir().join("ib0/9")).unwrap();
    four.store.release(&third).unwrap();
    assert!(!four.store.dir().join("ib0/9").exists());
}

#[test]
fn a_release_removes_no_claim_of_another_vm_or_vf() {
    let four = Four::new();
    let [first, second] = [40, 41].map(|number| four.claim(&lock(&four.store, &one(number)), &one(number)).unwrap());
    let (own, other) = (four.store.dir().join("ib0/0"), four.store.dir().join("ib0/1"));
    for not_there in [
        // The VF of another VM, and another VF of this VM: where the claim's number says, and anywhere.
        Claim { owner: one(99), ..second[0].clone() },
        Claim { owner: one(99), index: None, ..second[0].clone() },
        Claim { owner: one(41), ..first[0].clone() },
        Claim { owner: one(41), index: None, ..first[0].clone() },
        Claim { root: "ib1".parse().unwrap(), index: None, ..first[0].clone() },
    ] {
        four.store.release(std::slice::from_ref(&not_there)).unwrap();
        assert!(own.exists() && other.exists(), "{not_there:?}");
    }
    // A number that is another claim's now.
    four.store.release(&[Claim { index: Some(1), ..first[0].clone() }]).unwrap();
    assert!(!own.exists() && other.exists());
}

#[test]
fn no_vf_is_given_twice_however_many_ask() {
    let four = Four::new();
    let given = std::sync::Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (four, given) = (&four, &given);
            scope.spawn(move || {
                for _ in 0..50 {
                    let lock = lock(&four.store, &one(number));
                    let claims = match four.claim(&lock, &one(number)) {
                        Ok(claims) => claims,
                        Err(ClaimError::Exhausted { .. }) => continue,
                        Err(error) => panic!("{error}"),
                    };
                    assert!(given.lock().unwrap().insert(claims[0].vf), "{} is given twice", claims[0].vf);
                    four.store.commit(&claims, &four.maps).unwrap();
                    four.store.hold(&lock, &one(number), Some(Path::new("/x"))).unwrap();
                    four.store.settle(&one(number)).unwrap();
                    assert!(given.lock().unwrap().remove(&claims[0].vf));
                    four.store.release(&claims).unwrap();
                }
            });
        }
    });
    assert_eq!(four.store.entries().unwrap(), []);
    let left = fs::read_dir(four.store.dir().join("ib0")).unwrap().count();
    assert_eq!(left, 0, "unfinished files are left");
}

#[test]
fn what_a_power_failure_emptied_is_freed_after_the_boot() {
    let four = Four::new();
    let claims = four.claim(&lock(&four.store, &one(42)), &one(42)).unwrap();
    let path = four.store.dir().join("ib0/0");
    fs::write(&path, "").unwrap();
    let look = || four.store.recover(&four.store.entries().unwrap(), &Backing::default(), &four.maps).unwrap();
    look();
    assert!(path.exists(), "the driver of 2013 may be about to start the domain");
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(process::booted().unwrap() - Duration::from_secs(1)).unwrap();
    look();
    assert!(!path.exists());
    assert_eq!(four.claim(&lock(&four.store, &one(43)), &one(43)).unwrap()[0].vf, claims[0].vf);
}

#[test]
fn a_commit_finds_its_claim_after_the_map_was_reordered() {
    let four = Four::new();
    let locks = [40, 41].map(|number| lock(&four.store, &one(number)));
    let [first, second] = [0, 1].map(|at| four.claim(&locks[at], &one(40 + at as u32)).unwrap());
    // While both start, somebody swaps the first two lines of the map, and another action moves the files.
    let text = b"0x07 0x00 0x02\n0x07 0x00 0x01\n0x07 0x00 0x03\n0x07 0x00 0x04\n";
    let now = [VfMap::parse("ib0".parse().unwrap(), "ib0".as_ref(), text).unwrap()];
    let moved = four.store.recover(&four.store.entries().unwrap(), &Backing::default(), &now).unwrap();
    assert_eq!(moved.len(), 2, "{moved:?}");

    four.store.commit(&first, &four.maps).unwrap();
    let vfs =
        |owner: &Owner| -> Vec<_> { four.store.claims_of(owner).unwrap().iter().map(|it| (it.vf, it.index)).collect() };
    assert_eq!(vfs(&one(40)), [(first[0].vf, Some(1))]);
    assert_eq!(vfs(&one(41)), [(second[0].vf, Some(0))], "the claim of the other VM was overwritten");
    let text = |name: &str| fs::read_to_string(four.store.dir().join(name)).unwrap();
    assert!(!text("ib0/1").contains("holder=") && text("ib0/0").contains("holder="));

    // A claim that is gone is written again, after all other files. The next repair moves it to its place.
    four.store.release(&first).unwrap();
    four.store.commit(&first, &four.maps).unwrap();
    assert_eq!(vfs(&one(40)), [(first[0].vf, Some(4))]);
    assert_eq!(vfs(&one(41)), [(second[0].vf, Some(0))], "the claim of the other VM was overwritten");
    let devices = BTreeMap::from([(first[0].vf, one(40))]);
    let backing = Backing { devices, ..Backing::default() };
    four.store.recover(&four.store.entries().unwrap(), &backing, &now).unwrap();
    assert_eq!(vfs(&one(40)), [(first[0].vf, Some(1))]);
}

#[test]
fn a_claim_that_an_ended_action_left_is_freed_while_its_process_goes_on() {
    let four = Four::new();
    let recover = || four.store.recover(&four.store.entries().unwrap(), &Backing::default(), &four.maps).unwrap();
    let action = lock(&four.store, &one(42));
    let claims = four.claim(&action, &one(42)).unwrap();
    assert_eq!(recover(), []);
    assert!(four.store.claimants().unwrap()[0].held);
    // It ends without a commit and without a release.
    drop(action);
    let next = lock(&four.store, &one(42));
    assert!(!four.store.claimants().unwrap()[0].held);
    assert_eq!(recover(), [ClaimRepair::Freed(claims[0].clone())]);
    // The next action of the same VM in the same process holds its own.
    let claims = four.claim(&next, &one(42)).unwrap();
    assert_eq!(recover(), []);
    // Of an older version only the process is known.
    let path = four.store.dir().join("ib0/0");
    let text = fs::read_to_string(&path).unwrap();
    let old: String =
        text.lines().filter(|line| !line.starts_with("action=")).map(|line| format!("{line}\n")).collect();
    assert_ne!(old, text);
    fs::write(&path, old).unwrap();
    drop(next);
    assert_eq!(recover(), []);
    assert_eq!(four.store.claims_of(&one(42)).unwrap(), claims);
}

#[test]
fn a_claim_of_this_boot_is_ours_although_the_machine_id_was_made_anew() {
    let four = Four::new();
    let action = lock(&four.store, &one(42));
    let claims = four.claim(&action, &one(42)).unwrap();
    let path = four.store.dir().join("ib0/0");
    let host = "host=00000000000000000000000000000000\n";
    let text = fs::read_to_string(&path).unwrap();
    let other = text.lines().map(|line| if line.starts_with("host=") { host.to_owned() } else { format!("{line}\n") });
    let other: String = other.collect();
    fs::write(&path, if other.contains(host) { other } else { other + host }).unwrap();
    assert_eq!(four.store.claims_of(&one(42)).unwrap(), claims);
    assert!(four.store.problems().unwrap().is_empty());
    // The claim gets the new machine-id when it is written next, so that it is still ours after a reboot.
    four.store.hold(&action, &one(42), Some(Path::new("/x"))).unwrap();
    let has_no_id = process::ThisHost::read().machine.is_none();
    assert_eq!(fs::read_to_string(&path).unwrap().contains(host), has_no_id);
}

/// Who waits for the claims' lock goes on waiting while the lock is passed on, and sees that by the line in it.
#[test]
fn each_turn_with_the_claims_lock_has_its_line_and_a_holder_that_does_not_go_on_is_given_up() {
    let four = Four::new();
    let lines: Vec<_> = (0..2)
        .map(|_| {
            let _lock = four.store.lock().unwrap();
            fs::read(four.store.locks_dir().join("claims")).unwrap()
        })
        .collect();
    assert!(lines[0].ends_with(b"\n") && lines[0].len() == lines[1].len() && lines[0] != lines[1], "{lines:?}");
    let held = four.store.lock().unwrap();
    let (begin, limit) = (Instant::now(), Duration::from_millis(50));
    assert!(matches!(four.store.lock_within(limit), Err(ClaimError::Locked { .. })));
    assert!(begin.elapsed() >= 2 * limit);
    drop(held);
    four.store.lock().unwrap();
}
