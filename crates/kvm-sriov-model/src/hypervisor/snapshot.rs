//! Calls on snapshots.

use kvm_sriov::libvirt::{DomainRef, LibvirtError, RunState, SnapshotCalls, Snapshots};

use crate::definition::Definition;
use crate::element::Element;
use crate::job::Course;
use crate::world::{Domain, Snapshot};
use crate::{Model, refusal};

impl SnapshotCalls for Model {
    fn snapshots(&self, domain: &DomainRef) -> Result<Snapshots, LibvirtError> {
        let found = self.look(domain, |domain| Snapshots {
            names: domain.snapshots.iter().map(|snapshot| snapshot.name.clone()).collect(),
            current: domain.current_snapshot.clone(),
        })?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))
    }

    fn create_snapshot(&self, domain: &DomainRef, xml: &str) -> Result<(), LibvirtError> {
        let wanted = snapshot_element(xml)?;
        let mut world = self.enter()?;
        world.can_leave(self.site, &domain.uuid)?;
        let there = world.sites[self.site].existing(&domain.uuid)?;
        let name = wanted.child("name").map_or_else(|| "1700000000".to_owned(), Element::text);
        if there.snapshots.iter().any(|snapshot| snapshot.name == name) {
            return Err(refusal::failed(format!("domain snapshot {name} already exists")));
        }
        let ran = there.state.runs();
        let (parent, definition) = (there.current_snapshot.replace(name.clone()), there.definition.clone());
        there.snapshots.push(Snapshot { name, parent, definition });
        if ran {
            world.stop_cpus(self.site, &domain.uuid, RunState::PausedOtherwise);
            world.start_cpus(self.site, &domain.uuid);
        }
        Ok(())
    }

    fn snapshot_xml(&self, domain: &DomainRef, name: &str) -> Result<String, LibvirtError> {
        let found = self.look(domain, |domain| domain.snapshot(name).map(Snapshot::to_xml))?;
        found.ok_or_else(|| refusal::no_domain(domain.uuid.as_str()))?
    }

    fn revert_snapshot(&self, domain: &DomainRef, name: &str) -> Result<(), LibvirtError> {
        let mut world = self.enter()?;
        let course = world.take_course(self.site);
        let definition = world.sites[self.site].changeable(&domain.uuid)?.snapshot(name)?.definition.clone();
        if course == Course::Fails {
            world.end(self.site, &domain.uuid);
            return Err(refusal::internal("qemu unexpectedly closed the monitor: snapshot can't be loaded"));
        }
        let memory = world.new_memory(&domain.uuid);
        world.sites[self.site].replace(definition, memory, name);
        world.start_cpus(self.site, &domain.uuid);
        Ok(())
    }

    fn delete_snapshot(&self, domain: &DomainRef, name: &str, _metadata_only: bool) -> Result<(), LibvirtError> {
        self.change(domain, |domain| {
            let parent = domain.snapshot(name)?.parent.clone();
            domain.snapshots.retain(|snapshot| snapshot.name != name);
            for child in domain.snapshots.iter_mut().filter(|child| child.parent.as_deref() == Some(name)) {
                child.parent.clone_from(&parent);
            }
            if domain.current_snapshot.as_deref() == Some(name) {
                domain.current_snapshot = parent;
            }
            Ok(())
        })
    }

    fn redefine_snapshot(&self, domain: &DomainRef, xml: &str, current: bool) -> Result<(), LibvirtError> {
        let wanted = snapshot_element(xml)?;
        let missing = |what: &str| refusal::xml(format!("missing {what} in existing snapshot"));
        let name = wanted.child("name").ok_or_else(|| missing("name"))?.text();
        let kept = wanted.child("domain").ok_or_else(|| missing("domain"))?;
        let definition = Definition::parse(&kept.to_string(), &domain.uuid)?;
        if definition.uuid != domain.uuid {
            return Err(refusal::argument(format!("definition for snapshot {name} must use uuid {}", domain.uuid)));
        }
        let parent = wanted.child("parent").and_then(|parent| parent.child("name")).map(Element::text);
        self.change(domain, |domain| {
            if let Some(parent) = &parent {
                domain.snapshot(parent)?;
            }
            domain.snapshots.retain(|snapshot| snapshot.name != name);
            domain.snapshots.push(Snapshot { name: name.clone(), parent, definition });
            if current {
                domain.current_snapshot = Some(name);
            }
            Ok(())
        })
    }
}

fn snapshot_element(xml: &str) -> Result<Element, LibvirtError> {
    let element = Element::parse(xml).map_err(|error| refusal::xml(format!("(domain_snapshot): {error}")))?;
    if element.name() == "domainsnapshot" {
        Ok(element)
    } else {
        Err(refusal::xml(format!("unexpected root element <{}>, expecting <domainsnapshot>", element.name())))
    }
}

impl Domain {
    fn snapshot(&self, name: &str) -> Result<&Snapshot, LibvirtError> {
        self.snapshots.iter().find(|snapshot| snapshot.name == name).ok_or_else(|| refusal::no_snapshot(name))
    }
}

impl Snapshot {
    fn to_xml(&self) -> String {
        let text = |name: &str, text: &str| Element::new(name, &[]).with_text(text);
        let mut snapshot = Element::new("domainsnapshot", &[]).with(text("name", &self.name));
        snapshot.push(text("state", "running"));
        if let Some(parent) = &self.parent {
            snapshot.push(Element::new("parent", &[]).with(text("name", parent)));
        }
        snapshot.with(self.definition.to_element(None)).to_string()
    }
}
