//! The rewrites of the core on generated documents: what they were asked to change has changed, and nothing else.
//!
//! The documents have what makes edits of a text go wrong: elements of the same names in comments, CDATA sections,
//! other namespaces and values; several blocks of devices; both kinds of quotes; entities; every form of blanks.

use std::path::{Path, PathBuf};

use kvm_sriov::xml::{
    Deployment, Disk, Medium, PlannedNic, Wanted, WantedNic, adapted_to_host, hostdev_of, snapshot_of,
    with_system_datastore,
};
use kvm_sriov::{DomainUuid, MacAddress, NicMode, PciAddress};
use proptest::prelude::*;
use proptest::sample::select;

use crate::changes::{Change, changes};

const NAMESPACE: &str = "urn:kvm-sriov:domain:1";
const UUID: &str = "0d0f6f0e-9a54-4d38-8c83-6f0f3a1d2b77";

/// A text as it may be written between these quotes, and what it means.
fn value() -> impl Strategy<Value = (String, String)> {
    let part = prop_oneof![
        4 => "[a-zA-Z0-9 ./_:-]{1,6}".prop_map(|text| (text.clone(), text)),
        1 => select(vec![
            ("&lt;", "<"), ("&amp;", "&"), ("&quot;", "\""), ("&apos;", "'"), (">", ">"), ("&gt;", ">"), ("&#65;", "A"),
            ("&#x1F600;", "😀"), ("é", "é"), ("/>", "/>"), ("--", "--"), ("]", "]"),
        ])
        .prop_map(|(written, meant)| (written.to_owned(), meant.to_owned())),
    ];
    prop::collection::vec(part, 0..4).prop_map(|parts| parts.into_iter().unzip())
}

/// A value as the driver writes it.
fn escaped(value: &str) -> String {
    let entities = [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\"", "&quot;"), ("'", "&apos;")];
    entities.into_iter().fold(value.to_owned(), |text, (sign, entity)| text.replace(sign, entity))
}

/// What no rewrite concerns, although it looks like what they change. The prefix `q` is declared by the document.
fn noise() -> impl Strategy<Value = String> {
    let fixed = select(vec![
        "<!-- <devices><interface type='bridge'><source bridge=\"sriov_x\"/></interface></devices> ' -->",
        "<?q <devices> </domain> ?>",
        "<q:devices><q:interface><source bridge='sriov_q'/></q:interface></q:devices>",
        "<other xmlns='urn:other'><devices><interface type='bridge'><source bridge='sriov_o'/><mac address='no'/>\
         <alias name='ua-sriov-dummy-1'/></interface></devices><metadata/><uuid>x</uuid></other>",
        "<note><![CDATA[</domain> <interface type='bridge'> ]] > &amp;]]></note>",
        "<q:commandline><q:arg value='-device'/><q:arg value=\"vfio-pci,host=0000:07:00.1\"/></q:commandline>",
        "<!---->",
    ]);
    prop_oneof![
        fixed.prop_map(str::to_owned),
        (value(), value()).prop_map(|((a, _), (b, _))| format!("<note a='{a}' b=\"{b}\">{a}</note>")),
        value().prop_map(|(a, _)| format!("<q:note q:a=\"{a}\"><x/>{a}<!-- {} --></q:note>", a.replace('-', "+"))),
    ]
}

/// The blanks between the elements of a document.
fn blanks() -> impl Strategy<Value = [&'static str; 3]> {
    select(vec![["", "", ""], ["\n", "\n\t", "\n\t\t"], ["\n", "\n  ", "\n    "], [" ", "\r\n", "\n \t "]])
}

/// A device, and what a rewrite is asked to do with it.
#[derive(Debug, Clone)]
enum Device {
    /// Left as it is.
    Other(String),
    /// An SR-IOV NIC: its text, and the parts that its dummy must have, in their order.
    Sriov { text: String, dummy: Vec<String> },
    /// A disk in a file: its text, and the file.
    Disk { text: String, file: String },
}

impl Device {
    fn text(&self) -> &str {
        let (Self::Other(text) | Self::Sriov { text, .. } | Self::Disk { text, .. }) = self;
        text
    }
}

fn sriov() -> impl Strategy<Value = Device> {
    let extras = (
        prop::option::of(select(vec!["<model type='e1000'/>", "<model type=\"virtio\"></model>"])),
        prop::option::of("<driver name='vhost' queues='[1-9]'/>"),
        prop::option::of((value(), noise()).prop_map(|((name, _), inner)| {
            format!("<filterref filter='{name}'>{inner}<parameter name='IP' value='192.0.2.1'/></filterref>")
        })),
        prop::option::of(Just("<bandwidth> <inbound average='1000'/></bandwidth>".to_owned())),
        prop::option::of(value()),
    );
    let dropped = prop::collection::vec(
        prop_oneof![
            noise(),
            Just("<script path='/etc/up'/>".to_owned()),
            Just("<virtualport type='openvswitch'/>".to_owned()),
            Just("<boot order='2'/>".to_owned()),
        ],
        0..3,
    );
    let quotes = select(vec!['\'', '"']);
    ("[a-z][a-z0-9_]{0,5}", any::<u16>(), extras, dropped, quotes, any::<u64>()).prop_filter_map(
        "a root with this end is none",
        |(root, mac, (model, driver, filter, bandwidth, target), dropped, quote, order)| {
            if root.ends_with("_ofed") {
                return None;
            }
            let own = target.as_ref().map(|(_, meant)| format!("<target dev='{}'/>", escaped(meant)));
            let target = target.map(|(written, _)| format!("<target dev=\"{written}\"/>"));
            let mac = format!("02:00:00:00:{:02x}:{:02x}", mac >> 8, mac & 0xff);
            let mut parts = vec![
                format!("<source bridge={quote}sriov_{root}{quote}/>"),
                format!("<mac address={quote}{mac}{quote}/>"),
            ];
            let copied = [model.map(str::to_owned), driver, filter, bandwidth];
            parts.extend(target.iter().chain(copied.iter().flatten()).cloned().chain(dropped));
            // The order of the parts has no meaning. The parts that must be found twice are alone in theirs.
            let mut text = format!("<interface type={quote}bridge{quote}>");
            let mut order = order;
            while !parts.is_empty() {
                let next = usize::try_from(order).unwrap_or(0) % parts.len();
                order = order.rotate_right(5);
                text += &parts.remove(next);
            }
            let [model, driver, filter, bandwidth] = copied;
            let model = model.unwrap_or_else(|| "<model type='virtio'/>".into());
            let rest = [driver, filter, bandwidth].into_iter().flatten();
            let dummy = own.into_iter().chain([model]).chain(rest).collect();
            Some(Device::Sriov { text: text + "</interface>", dummy })
        },
    )
}

fn disk() -> impl Strategy<Value = Device> {
    (any::<u32>(), value(), noise(), select(vec!['\'', '"'])).prop_map(|(number, (written, meant), noise, quote)| {
        let begin = format!("/ds/{number}/");
        let text = format!(
            "<disk device=\"disk\" type='file'>{noise}<source index='1' file={quote}{begin}{written}{quote}/>\
             <target dev='vda'/></disk>"
        );
        Device::Disk { text, file: begin + &meant }
    })
}

fn device() -> impl Strategy<Value = Device> {
    let other = select(vec![
        "<interface type='bridge'><source bridge='br0'/><mac address='02:00:00:00:00:09'/></interface>",
        "<interface type='ethernet'><mac address='02:00:00:00:00:09'/></interface>",
        "<disk type='file' device='cdrom'><source file='/ds/cd'/><target dev='hda'/></disk>",
        "<disk type='network' device='disk'><source protocol='rbd' name='x'/><target dev='vdb'/></disk>",
        "<hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>",
        "<rng/>",
    ]);
    prop_oneof![
        3 => sriov(),
        2 => disk(),
        1 => other.prop_map(|text| Device::Other(text.to_owned())),
        1 => noise().prop_map(Device::Other),
    ]
}

/// A domain to be started.
#[derive(Debug, Clone)]
struct Domain {
    text: String,
    devices: Vec<Device>,
    /// The driver's elements that it has already.
    ours: Vec<String>,
    has_metadata: bool,
}

/// The metadata of a domain, and the driver's elements in them.
fn metadata() -> impl Strategy<Value = (Option<String>, Vec<String>)> {
    let ours = select(vec![
        format!("<k:domain xmlns:k='{NAMESPACE}' version='1.0'/>"),
        format!("<domain xmlns=\"{NAMESPACE}\" version='1.0'><nic a='1'/></domain>"),
        format!("<sriov:domain xmlns:sriov='{NAMESPACE}' version='9.9'>\n</sriov:domain>"),
    ]);
    let other = prop_oneof![
        noise(),
        Just("<one:vm xmlns:one='http://opennebula.org/xmlns/libvirt/1.0'><one:name>x</one:name></one:vm>".to_owned()),
    ];
    let full = (prop::collection::vec(ours, 0..3), prop::collection::vec(other, 0..3), any::<bool>(), blanks());
    prop_oneof![
        1 => Just((None, vec![])),
        1 => select(vec!["<metadata/>", "<metadata />", "<metadata></metadata>"]).prop_map(|text| (Some(text.into()), vec![])),
        3 => full.prop_map(|(ours, others, is_first, [end, _, begin])| {
            let lists = if is_first { [&ours, &others] } else { [&others, &ours] };
            let inner: String = lists.into_iter().flatten().map(|part| format!("{begin}{part}")).collect();
            (Some(format!("<metadata>{inner}{end}</metadata>")), ours)
        }),
    ]
}

fn domain() -> impl Strategy<Value = Domain> {
    let name = select(vec!["one-42", "<![CDATA[one-42]]>", "one-<!-- <name> -->42", "on&#101;-42"]);
    let os =
        select(vec!["", "<os><type arch='x86_64' machine='q35'>hvm</type></os>", "<os><type machine=\"pc\"/></os>"]);
    let around =
        select(vec![("", ""), ("<?xml version='1.0'?>\n<!-- <domain> -->", "\n<!-- </domain> -->\n"), ("\n ", "")]);
    let blocks = prop::collection::vec(prop::collection::vec(device(), 0..5), 0..4)
        .prop_filter("at most 16", |blocks| {
            blocks.iter().flatten().filter(|d| matches!(d, Device::Sriov { .. })).count() <= 16
        });
    (name, os, around, metadata(), blocks, prop::collection::vec(noise(), 0..4), blanks(), any::<u64>()).prop_map(
        |(name, os, (before, after), (metadata, ours), blocks, noise, [end, outer, inner], order)| {
            let block = |devices: &Vec<Device>| {
                let devices: String = devices.iter().map(|device| format!("{inner}{}", device.text())).collect();
                if devices.is_empty() {
                    "<devices/>".to_owned()
                } else {
                    format!("<devices>{devices}{outer}</devices>")
                }
            };
            let mut parts: Vec<String> = blocks.iter().map(block).collect();
            // Anything may be between the blocks, in front of them and after them.
            let mut order = order;
            let rest = metadata.iter().cloned().chain([format!("<name>{name}</name>"), os.to_owned()]).chain(noise);
            for part in rest {
                let at = usize::try_from(order).unwrap_or(0) % (parts.len() + 1);
                order = order.rotate_right(5);
                parts.insert(at, part);
            }
            let parts: String = parts.iter().map(|part| format!("{outer}{part}")).collect();
            let text = format!("{before}<domain type=\"kvm\" xmlns:q='urn:q'>{parts}{end}</domain>{after}");
            Domain { text, devices: blocks.concat(), ours, has_metadata: metadata.is_some() }
        },
    )
}

/// The changes in one order, and without blanks between elements.
fn comparable(changes: Vec<Change>) -> Vec<Change> {
    let compact = |text: String| text.split_inclusive('>').map(str::trim_start).collect::<String>();
    let mut changes: Vec<Change> = changes
        .into_iter()
        .map(|change| match change {
            Change::Added { at, text } => Change::Added { at, text: compact(text) },
            Change::Removed { at, text } => Change::Removed { at, text: compact(text) },
            other @ Change::Value { .. } => other,
        })
        .collect();
    changes.sort();
    changes
}

/// The elements that a rewrite replaces as a whole.
const WHOLE: [&str; 3] = ["interface", "hostdev", "domain"];

fn added(at: &str, text: String) -> Change {
    Change::Added { at: at.to_owned(), text }
}

fn removed(at: &str, text: &str) -> Change {
    Change::Removed { at: at.to_owned(), text: text.to_owned() }
}

fn changed(at: &str, from: &str, to: &str) -> Change {
    Change::Value { at: at.to_owned(), from: Some(from.to_owned()), to: Some(to.to_owned()) }
}

proptest! {
    #[test]
    fn a_deployment_gets_its_vfs_and_keeps_all_else(domain in domain(), to in value()) {
        let Domain { text, devices, ours, has_metadata } = domain;
        let deployment = Deployment::parse(&text).unwrap();
        let dummy_mac: MacAddress = "aa:00:00:00:00:01".parse().unwrap();
        let planned: Vec<PlannedNic> = (0..)
            .zip(deployment.sriov_nics())
            .map(|(n, nic): (u8, &WantedNic)| {
                // Every third one gets an interface in its place, and no dummy.
                let mode = if n % 3 == 1 { NicMode::Ethernet } else { NicMode::Hostdev };
                let wanted = WantedNic { mode, vlan: n.checked_mul(7).map(u16::from), ..nic.clone() };
                let dummy_mac = wanted.has_dummy().then_some(dummy_mac);
                PlannedNic { wanted, vf: PciAddress::new(0, 0x81, n, 1).unwrap(), dummy_mac }
            })
            .collect();
        let to = format!("/new/{}", to.1);
        let files: Vec<(PathBuf, PathBuf)> = devices
            .iter()
            .filter_map(|device| if let Device::Disk { file, .. } = device { Some(file) } else { None })
            .map(|file| (PathBuf::from(file), PathBuf::from(format!("{to}{file}"))))
            .collect();
        let rewritten = deployment.rewrite(&files, &planned, "br'0").unwrap();

        let mut expected: Vec<Change> = Vec::new();
        let mut nics = planned.iter();
        for device in &devices {
            match device {
                Device::Other(_) => {}
                Device::Disk { file, .. } => {
                    expected.push(changed("domain/devices/disk/source@file", file, &format!("{to}{file}")));
                }
                Device::Sriov { text, dummy } => {
                    let nic = nics.next().unwrap();
                    let alias = format!("<alias name='ua-sriov-dummy-{}'/>", nic.wanted.position);
                    let dummy = format!(
                        "<interface type='bridge'><source bridge='br&apos;0'/><mac address='{dummy_mac}'/>{}{alias}</interface>",
                        dummy.concat()
                    );
                    expected.push(removed("domain/devices", text));
                    expected.push(added("domain/devices", hostdev_of(&nic.wanted, nic.vf)));
                    expected.extend(nic.dummy_mac.map(|_| added("domain/devices", dummy)));
                }
            }
        }
        if !planned.is_empty() {
            let nics = planned.iter().map(|nic| nic.wanted.clone()).collect();
            let element = Wanted { nics, ..Wanted::default() }.to_xml();
            expected.extend(ours.iter().map(|element| removed("domain/metadata", element)));
            expected.push(match has_metadata {
                true => added("domain/metadata", element),
                false => added("domain", format!("<metadata>{element}</metadata>")),
            });
        }
        prop_assert!(nics.next().is_none());
        let found = changes(&text, &rewritten, &WHOLE).map_err(|error| TestCaseError::fail(format!("{error}: {rewritten}")))?;
        prop_assert_eq!(comparable(found), comparable(expected), "{}", rewritten);
    }
}

/// A part of a domain that comes to a host, and what must become of it.
#[derive(Debug, Clone)]
struct Part {
    text: String,
    change: Option<Change>,
}

/// A path below the VM's directory of another datastore, and how it is below the one of the checkpoint.
const OLD: &str = "/var/lib/one//datastores/0/42";
const NEW: &str = "/var/lib/one//datastores/104/42";

/// A path that must move, or one that must stay.
fn path() -> impl Strategy<Value = (String, Option<String>)> {
    let rest = || "(/[a-z0-9._]{1,6}){0,2}";
    prop_oneof![
        rest().prop_map(|rest| (format!("{OLD}{rest}"), Some(format!("{NEW}{rest}")))),
        rest().prop_map(|rest| (
            format!("{OLD}{rest}").replace("//", "/"),
            Some(format!("{NEW}{rest}").replace("//", "/"))
        )),
        rest().prop_map(|rest| (format!("{NEW}{rest}"), None)),
        rest().prop_map(|rest| (format!("{OLD}7{rest}"), None)),
        rest().prop_map(|rest| (format!("/var/lib/one//datastores/x/42{rest}"), None)),
        rest().prop_map(|rest| (format!("/srv/0/42{rest}"), None)),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    let bridge = (0_u8..4, value(), select(vec!['\'', '"']), any::<bool>());
    let dummy = bridge.prop_map(|(number, (written, meant), quote, ours)| {
        let alias = if ours { format!("ua-sriov-dummy-{number}") } else { format!("net{number}") };
        let text = format!(
            "<interface type='bridge'><source a='1' bridge={quote}{written}{quote}/><alias name='{alias}'/></interface>"
        );
        let change = ours.then(|| changed("domain/devices/interface/source@bridge", &meant, "b&r"));
        Part { text, change }
    });
    let file = (path(), select(vec!['\'', '"'])).prop_map(|((from, to), quote)| Part {
        text: format!("<disk><source file={quote}{from}{quote}/></disk>"),
        change: to.map(|to| changed("domain/devices/disk/source@file", &from, &to)),
    });
    let content = (path(), select(vec![("", ""), ("\n  ", " "), ("<![CDATA[", "]]>"), ("<![CDATA[ ", " ]]>")]));
    let nvram = content.prop_map(|((from, to), (before, after))| {
        let meant = |path: &str| format!("{before}{path}{after}").replace("<![CDATA[", "").replace("]]>", "");
        Part {
            text: format!("<nvram>{before}{from}{after}</nvram>"),
            change: to.map(|to| changed("domain/devices/nvram", &meant(&from), &meant(&to))),
        }
    });
    let stays = (
        path(),
        select(vec![
            "<!-- @ -->",
            "<?q @?>",
            "<a>@<b/></a>",
            "<a><!-- -->@</a>",
            "<a b='x@'/>",
            "<a b='.@'/>",
            "<a>x@</a>",
        ]),
    );
    let stays = stays.prop_map(|((path, _), form)| Part { text: form.replace('@', &path), change: None });
    prop_oneof![2 => dummy, 2 => file, 2 => nvram, 1 => stays, 1 => noise().prop_map(|text| Part { text, change: None })]
}

proptest! {
    #[test]
    fn a_domain_that_comes_is_adapted_and_keeps_all_else(
        blocks in prop::collection::vec(prop::collection::vec(part(), 0..4), 0..4),
        (metadata, ours) in metadata(), has_wanted: bool, has_bridge: bool, outside in noise(), [end, outer, inner] in blanks(),
    ) {
        let block = |parts: &Vec<Part>| {
            let parts: String = parts.iter().map(|part| format!("{inner}{}", part.text)).collect();
            format!("{outer}<devices>{parts}{outer}</devices>{outer}{outside}")
        };
        let devices: String = blocks.iter().map(block).collect();
        let text = format!("<domain xmlns:q='urn:q'>{}{devices}{end}</domain>", metadata.unwrap_or_default());
        let wanted = Wanted::parse("<domain version='1.0'><nic mac='02:00:00:00:00:01' root='ib0' \
            mode='hostdev' position='3'/></domain>").unwrap();
        let checkpoint = Path::new("/var/lib/one//datastores/104/42/checkpoint");
        let (new, bridge) = (has_wanted.then_some(&wanted), has_bridge.then_some("b&r"));
        let adapted = adapted_to_host(&text, checkpoint, new, bridge).unwrap();
        let is_dummy = |change: &Change| matches!(change, Change::Value { at, .. } if at.ends_with("@bridge"));
        let mut expected: Vec<Change> = blocks
            .into_iter()
            .flatten()
            .filter_map(|part| part.change)
            .filter(|change| (has_bridge || !is_dummy(change)) && !matches!(change, Change::Value { from, to, .. } if from == to))
            .collect();
        for element in ours.iter().filter(|_| has_wanted) {
            expected.push(removed("domain/metadata", element));
            expected.push(added("domain/metadata", wanted.to_xml()));
        }
        prop_assert_eq!(comparable(changes(&text, &adapted, &["domain"]).unwrap()), comparable(expected), "{}", adapted);
    }

    #[test]
    fn a_drive_gets_its_medium_and_keeps_all_else(
        (begin, middle) in (noise(), noise()), old in prop::option::of(value()), new in prop::option::of((value(), any::<bool>())),
        kind in select(vec!["file", "block"]), is_below: bool,
    ) {
        // libvirt declares no prefixes in a disk.
        let [begin, middle] = [begin, middle].map(|noise| if noise.contains("q:") { String::new() } else { noise });
        let attribute = if kind == "block" { "dev" } else { "file" };
        let source = old.map(|(written, _)| format!("<source {attribute}=\"/{written}\" index='1'/>"));
        let below = is_below.then_some("<backingStore><source file='/x'/></backingStore>");
        let disk = format!(
            "<disk type='{kind}' device=\"cdrom\">{begin}{}{}{middle}<target dev='hda'/><readonly/></disk>",
            source.clone().unwrap_or_default(), below.unwrap_or_default()
        );
        let disks = Disk::all(&format!("<domain><devices>{disk}</devices></domain>")).unwrap();
        let medium = new.map(|((_, path), is_block)| Medium { path: format!("/{path}").into(), is_block });
        let changed_disk = disks[0].with_medium(medium.as_ref()).unwrap();
        let mut expected: Vec<Change> =
            source.iter().map(String::as_str).chain(below).map(|text| removed("disk", text)).collect();
        if let Some(Medium { path, is_block }) = &medium {
            let (new_kind, attribute) = if *is_block { ("block", "dev") } else { ("file", "file") };
            expected.push(added("disk", format!("<source {attribute}='{}'/>", escaped(path.to_str().unwrap()))));
            expected.extend((new_kind != kind).then(|| changed("disk@type", kind, new_kind)));
        }
        let found = changes(&disk, &changed_disk, &["source", "backingStore"]).unwrap();
        prop_assert_eq!(comparable(found), comparable(expected), "{}", changed_disk);
    }

    #[test]
    fn a_snapshot_gets_the_uuid_of_its_domain_and_keeps_all_else(
        parts in prop::collection::vec(prop_oneof![
            select(vec![("domain", UUID, true), ("inactiveDomain", UUID, true), ("domain", "x", false), ("other", UUID, false)])
                .prop_map(|(name, uuid, changes)| (format!("<{name} type='kvm'><uuid><![CDATA[{uuid}]]></uuid><a>{uuid}</a></{name}>"), changes.then_some(name))),
            noise().prop_map(|text| (text, None)),
        ], 0..5),
    ) {
        let new: DomainUuid = "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10".parse().unwrap();
        let inner: String = parts.iter().map(|(text, _)| text.as_str()).collect();
        let text = format!("<domainsnapshot xmlns:q='urn:q'><name>snap-0</name>\n  {inner}</domainsnapshot>");
        let adapted = snapshot_of(&text, &new).unwrap();
        let expected = parts.iter().filter_map(|(_, name)| *name)
            .map(|name| changed(&format!("domainsnapshot/{name}/uuid"), UUID, new.as_str())).collect();
        prop_assert_eq!(comparable(changes(&text, &adapted, &[]).unwrap()), comparable(expected), "{}", adapted);
    }

    #[test]
    fn the_vms_directory_is_replaced_and_all_else_is_kept(
        (before, after) in (noise(), noise()), (written, meant) in value(), (_, new) in value(), is_cdata: bool,
    ) {
        let (written, meant) = (format!("/ds/{written}"), format!("/ds/{meant}"));
        let old = if is_cdata { format!("<![CDATA[{meant}]]>") } else { written };
        let text = format!("<vm xmlns:q='urn:q'>{before}<system_datastore>{old}</system_datastore>\n{after}</vm>");
        let moved = with_system_datastore(&text, Path::new(&format!("/=/{new}"))).unwrap();
        let expected = vec![changed("vm/system_datastore", &meant, &format!("/=/{new}"))];
        prop_assert_eq!(comparable(changes(&text, &moved, &[]).unwrap()), expected, "{}", moved);
    }
}
