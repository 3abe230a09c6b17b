use proptest::prelude::*;

use super::element::{Content, Element};
use super::*;
use crate::base::{NicMode, PciAddress, Position};

fn kept() -> impl Strategy<Value = KeptContent> {
    let attributes = || prop::collection::btree_map("x[a-z]{0,5}", "[ -~\t\né]{0,6}", 0..3);
    let element = move |content: Vec<Content>| {
        ("y[a-z]{0,5}", attributes()).prop_map(move |(name, attributes)| Element {
            name,
            attributes: attributes.into_iter().collect(),
            content: content.clone(),
        })
    };
    let leaf = element(Vec::new()).prop_map(Content::Element);
    let content = leaf.prop_recursive(3, 8, 3, move |inner| {
        (prop::option::of("[!-~é]{1,5}"), prop::collection::vec(inner, 0..3)).prop_flat_map(move |(text, inner)| {
            let content = text.map(Content::Text).into_iter().chain(inner).collect();
            element(content).prop_map(Content::Element)
        })
    });
    (attributes(), prop::collection::vec(content, 0..3))
        .prop_map(|(attributes, content)| KeptContent { attributes: attributes.into_iter().collect(), content })
}

fn address() -> impl Strategy<Value = PciAddress> {
    (any::<u32>(), any::<u8>(), 0_u8..32, 0_u8..8).prop_map(|(d, b, s, f)| PciAddress::new(d, b, s, f).unwrap())
}

fn nics() -> impl Strategy<Value = Vec<WantedNic>> {
    let mode =
        prop_oneof![Just(NicMode::Hostdev), Just(NicMode::Ethernet), Just(NicMode::Network), Just(NicMode::Infiniband)];
    let nic = (
        "[0-9a-f]{2}(:[0-9a-f]{2}){5}",
        "[a-z_][a-z0-9.-]{0,8}",
        mode,
        prop::option::of(address()),
        any::<Option<u32>>(),
        any::<Option<u16>>(),
        any::<Option<u32>>(),
        prop::option::of("[ -~\n]{0,9}"),
        (prop::option::of(address()), prop::option::of("[0-9a-f]{2}(:[0-9a-f]{2}){5}")),
        kept(),
    );
    prop::collection::vec(nic, 0..5).prop_map(|nics| {
        let number = nics.into_iter().enumerate();
        number
            .map(|(i, (mac, root, mode, guest, boot_order, vlan, nic_id, dummy, adopted, kept))| WantedNic {
                mac: mac.parse().unwrap(),
                root: root.parse().unwrap_or_else(|_| "ib0".parse().unwrap()),
                mode,
                position: Position::new(i * 3).unwrap(),
                guest,
                boot_order,
                vlan,
                nic_id,
                dummy,
                adopted: AdoptedDevices { vf: adopted.0, dummy: adopted.1.map(|mac| mac.parse().unwrap()) },
                kept,
            })
            .collect()
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let kind = prop_oneof![
        Just(OperationKind::Save),
        "[ -~é]{1,9}".prop_map(|path| OperationKind::Restore { checkpoint: path.into() }),
        prop::collection::vec((0_usize..16).prop_map(|n| Position::new(n).unwrap()), 1..4)
            .prop_map(|positions| OperationKind::PendingUnplug { positions }),
        ("[ -~é]{0,9}", "[ -~]{0,9}", prop::option::of("[ -~]{0,9}"), any::<bool>())
            .prop_map(|(to, id, from, was_paused)| OperationKind::Migrate { to, id, from, was_paused }),
        "z[ -~]{0,9}".prop_map(OperationKind::Other),
    ];
    (kind, kept()).prop_map(|(kind, kept)| Operation { kind, kept })
}

proptest! {
    #[test]
    fn what_is_written_is_read(nics in nics(), operation in prop::option::of(operation()), minor: u32, kept in kept()) {
        let wanted = Wanted { nics, operation, minor, kept };
        prop_assert_eq!(&Wanted::parse(&wanted.to_xml()).unwrap(), &wanted);
        prop_assert_eq!(&Wanted::parse(&wanted.to_unqualified_xml()).unwrap(), &wanted);
    }
}

const TEXT: &str = "<sriov:domain xmlns:sriov='urn:kvm-sriov:domain:1' version='1.3' new='a&apos;b'>\
    <sriov:nic mac='02:00:c0:a8:01:05' root='ib0' mode='hostdev' position='10' guest='0000:00:10.0' boot='1' \
    vlan='100' nic='2' qos='3'/>\
    <sriov:operation kind='migrate' to='hostB' id='7' by='me'><sriov:more>x</sriov:more></sriov:operation>\
    <sriov:later a='1'><sriov:inner/></sriov:later></sriov:domain>";

#[test]
fn content_of_a_later_minor_version_is_kept() {
    let wanted = Wanted::parse(TEXT).unwrap();
    assert_eq!(wanted.to_xml(), TEXT);
    assert_eq!(wanted.nics[0].position.number(), 10);
    let OperationKind::Migrate { to, .. } = &wanted.operation.as_ref().unwrap().kind else { panic!() };
    assert_eq!(to, "hostB");
    let bare = wanted.to_unqualified_xml();
    assert!(!bare.contains("sriov:domain") && !bare.contains("xmlns"), "{bare}");
    assert_eq!(Wanted::parse(&bare).unwrap(), wanted);
    let as_default = bare.replacen("<domain", "<domain xmlns='urn:kvm-sriov:domain:1'", 1);
    assert_eq!(Wanted::parse(&as_default).unwrap(), wanted);
    // The form in which libvirt 9.0 answers virDomainGetMetadata.
    let answered =
        bare.replacen("<domain", "<domain xmlns:sriov=\"urn:kvm-sriov:domain:1\"", 1).replace("><", ">\n  <");
    assert_eq!(Wanted::parse(&answered).unwrap(), wanted);
}

#[test]
fn foreign_and_unreadable_elements_are_refused() {
    for (from, to, expected) in [
        ("version='1.3'", "version='2.0'", "1:1: expected metadata of version 1, found 2.0: it was written by a newer"),
        ("version='1.3'", "version='1'", "1:52: version: expected a version such as 1.0, found \"1\""),
        ("version='1.3'", "", "1:1: expected an attribute version in <domain>, found none"),
        ("domain:1'", "domain:2'", "1:1: expected <sriov:domain> of urn:kvm-sriov:domain:1, found <domain>"),
        ("mode='hostdev'", "mode='x'", "mode: expected hostdev, ethernet"),
        ("position='10'", "position='16'", "position: expected at most 16"),
        ("vlan='100'", "vlan='-1'", "vlan: expected a number that fits"),
        ("to='hostB'", "", "expected an attribute to in <operation>, found none"),
        (" mac='", " mac='x", "mac: expected a MAC address"),
    ] {
        let error = Wanted::parse(&TEXT.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let nic = "<nic mac='02:00:c0:a8:01:05' root='ib0' mode='hostdev' position='1'/>";
    let twice = format!("<domain version='1.0'>{nic}{nic}</domain>");
    assert!(Wanted::parse(&twice).unwrap_err().to_string().contains("expected different positions, found 1 twice"));
}
