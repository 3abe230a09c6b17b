//! How many CPUs and how much memory a running domain has.

use roxmltree::Node;

use super::elements::{devices, hard_limit, in_kib, kibibytes};
use crate::xml::XmlError;
use crate::xml::parse::parse;
use crate::xml::read::{child, child_attribute, children, content, decimal, root};
use crate::xml::write::Escaped;

/// The CPUs and the memory of a running domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// The number of its virtual CPUs.
    pub vcpus: u32,
    /// The highest number of virtual CPUs that it can have.
    pub most_vcpus: u32,
    /// Its memory with all DIMMs, in KiB: the most that its balloon can give it.
    pub memory_kib: u64,
    /// The memory limit of its QEMU on the host, in KiB, if there is one.
    pub limit_kib: Option<u64>,
    /// The memory that its balloon leaves it, in KiB.
    pub balloon_kib: u64,
    /// Its DIMMs.
    pub dimms: Vec<Dimm>,
    /// The id of its first NUMA cell.
    pub cell: Option<String>,
    /// The huge pages behind the memory of that cell; `None` for ordinary pages.
    pub huge_pages: Option<HugePages>,
}

/// The huge pages behind the memory of a NUMA cell.
///
/// # Source
/// libvirt `docs/formatdomain.rst`, "Memory Backing" and "NUMA Node Tuning"; `src/qemu/qemu_command.c`,
/// qemuBuildMemoryGetPagesize.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HugePages {
    /// Their size in KiB; `None` for the default size of the host.
    pub kib: Option<u64>,
    /// The NUMA nodes of the host that the pages must be on; empty for any node.
    pub nodes: Vec<u32>,
}

/// Memory that was plugged into the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimm {
    /// libvirt's name of the device.
    pub alias: String,
    /// Its size in KiB.
    pub kib: u64,
}

impl Sizes {
    /// Reads libvirt's live XML.
    ///
    /// # Errors
    /// The text is not a domain, or names no number of CPUs or no memory.
    pub fn parse(live: &str) -> Result<Self, XmlError> {
        let document = parse(live)?;
        let domain = root(&document, "domain")?;
        let missing =
            |name: &str| XmlError::at(domain, format_args!("expected <{name}> with a number in it, found none"));
        let vcpu = child(domain, "vcpu");
        let most_vcpus = vcpu.and_then(|vcpu| decimal(content(vcpu).trim()).ok()).ok_or_else(|| missing("vcpu"))?;
        let memory_kib = child(domain, "memory").and_then(kibibytes).ok_or_else(|| missing("memory"))?;
        let numa = child(domain, "cpu").and_then(|cpu| child(cpu, "numa"));
        let cell = numa.and_then(|numa| children(numa, "cell").next()?.attribute("id").map(str::to_owned));
        Ok(Self {
            vcpus: vcpu.and_then(|vcpu| decimal(vcpu.attribute("current")?).ok()).unwrap_or(most_vcpus),
            most_vcpus,
            memory_kib,
            limit_kib: hard_limit(domain),
            balloon_kib: child(domain, "currentMemory").and_then(kibibytes).unwrap_or(memory_kib),
            dimms: devices(domain).filter_map(Dimm::read).collect(),
            huge_pages: HugePages::of(domain, cell.as_deref().and_then(|cell| decimal(cell).ok()).unwrap_or(0)),
            cell,
        })
    }

    /// The device that adds this much memory to the domain, in KiB.
    pub fn dimm_of(&self, kib: u64) -> String {
        let node = self.cell.as_ref().map(|cell| format!("<node>{}</node>", Escaped(cell))).unwrap_or_default();
        format!("<memory model='dimm'><target><size unit='KiB'>{kib}</size>{node}</target></memory>")
    }
}

impl HugePages {
    /// The huge pages of a cell.
    fn of(domain: Node<'_, '_>, cell: u32) -> Option<Self> {
        let pages = child(child(domain, "memoryBacking")?, "hugepages")?;
        let all: Vec<_> = children(pages, "page").collect();
        let is_for = |page: &&Node<'_, '_>| page.attribute("nodeset").is_some_and(|set| nodes(set).contains(&cell));
        let page = all.iter().find(is_for).or(all.iter().find(|page| page.attribute("nodeset").is_none()));
        if page.is_none() && !all.is_empty() {
            return None;
        }
        let size = page.and_then(|page| {
            let unit = page.attribute("unit").unwrap_or("KiB");
            in_kib(page.attribute("size")?, unit)
        });
        let numatune = child(domain, "numatune");
        let of_cell = |memory: &Node<'_, '_>| memory.attribute("cellid").and_then(|id| decimal(id).ok()) == Some(cell);
        let memory = numatune
            .and_then(|tune| children(tune, "memnode").find(of_cell).or_else(|| child(tune, "memory")))
            .filter(|memory| memory.attribute("mode").unwrap_or("strict") == "strict");
        let bound = memory.and_then(|memory| memory.attribute("nodeset")).map(nodes).unwrap_or_default();
        Some(Self { kib: size, nodes: bound })
    }
}

/// The numbers in a set such as `0-2,^1,7`.
fn nodes(set: &str) -> Vec<u32> {
    // More than any host has. A wrong number must not cost memory.
    const MOST: u32 = 4096;
    let mut all: Vec<u32> = Vec::new();
    for part in set.split(',').map(str::trim) {
        let (excluded, part) = part.strip_prefix('^').map_or((false, part), |part| (true, part));
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (decimal::<u32>(first.trim()), decimal::<u32>(last.trim())) else { continue };
        if excluded {
            all.retain(|node| !(first..=last).contains(node));
        } else {
            all.extend(first..=last.min(MOST));
        }
    }
    all
}

impl Dimm {
    fn read(device: Node<'_, '_>) -> Option<Self> {
        let is_dimm = device.has_tag_name("memory") && device.attribute("model") == Some("dimm");
        let size = child(child(device, "target").filter(|_| is_dimm)?, "size")?;
        Some(Self { alias: child_attribute(device, "alias", "name")?, kib: kibibytes(size)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_the_first_cell_are_read() {
        let pages = |inside: &str| {
            let live = format!(
                "<domain><memory>1</memory><vcpu>1</vcpu><cpu><numa><cell id='1'/></numa></cpu>{inside}</domain>"
            );
            Sizes::parse(&live).unwrap().huge_pages.map(|pages| (pages.kib, pages.nodes))
        };
        let backed = |pages: &str| format!("<memoryBacking><hugepages>{pages}</hugepages></memoryBacking>");
        let tuned =
            "<numatune><memory mode='strict' nodeset='0-1'/><memnode cellid='1' mode='strict' nodeset='1'/></numatune>";
        assert_eq!(pages(""), None);
        assert_eq!(pages(&backed("")), Some((None, vec![])));
        assert_eq!(pages(&backed("<page size='2048'/>")), Some((Some(2048), vec![])));
        assert_eq!(pages(&(backed("<page size='1' unit='G'/>") + tuned)), Some((Some(1 << 20), vec![1])));
        let all = "<numatune><memory mode='strict' nodeset='0-3,^1,7'/></numatune>";
        assert_eq!(pages(&(backed("<page size='2' unit='MiB'/>") + all)), Some((Some(2048), vec![0, 2, 3, 7])));
        let preferred = "<numatune><memory mode='preferred' nodeset='0'/></numatune>";
        assert_eq!(pages(&(backed("<page size='2048'/>") + preferred)), Some((Some(2048), vec![])));
        let each = "<page size='2048' unit='KiB'/><page size='1048576' unit='KiB' nodeset='1-2'/>";
        assert_eq!(pages(&backed(each)), Some((Some(1 << 20), vec![])));
        assert_eq!(pages(&backed("<page size='2048' nodeset='0'/>")), None);
    }

    #[test]
    fn a_running_domain_is_read() {
        let live = "<domain><memory unit='KiB'>3145728</memory><currentMemory unit='KiB'>1048576</currentMemory>\
            <vcpu placement='static' current='2'>4</vcpu><cpu><numa><cell id='1' cpus='0-3'/><cell id='2'/></numa></cpu>\
            <devices><memory model='dimm'><target><size unit='KiB'>1048576</size><node>1</node></target>\
            <alias name='dimm0'/></memory><memory model='nvdimm'><alias name='nvdimm0'/></memory></devices></domain>";
        let sizes = Sizes::parse(live).unwrap();
        assert_eq!((sizes.vcpus, sizes.most_vcpus), (2, 4));
        assert_eq!((sizes.memory_kib, sizes.balloon_kib), (3_145_728, 1_048_576));
        assert_eq!(sizes.dimms, [Dimm { alias: "dimm0".into(), kib: 1_048_576 }]);
        let dimm = "<memory model='dimm'><target><size unit='KiB'>2048</size><node>1</node></target></memory>";
        assert_eq!(sizes.dimm_of(2048), dimm);
        let plain = Sizes::parse("<domain><memory unit='GiB'>1</memory><vcpu>3</vcpu></domain>").unwrap();
        assert_eq!((plain.vcpus, plain.balloon_kib, plain.cell.as_deref()), (3, 1_048_576, None));
        assert!(!plain.dimm_of(1).contains("node"));
        assert!(Sizes::parse("<domain/>").is_err());
    }
}
