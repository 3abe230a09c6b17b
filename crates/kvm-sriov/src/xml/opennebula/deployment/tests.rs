use super::*;
use crate::xml::fixtures::{OLD, RICH, SIMPLE, WIRE, domain, guests, nic};
use crate::xml::{LiveDomain, alias_of, dummy_alias_of};

fn plan(deployment: &Deployment) -> Vec<PlannedNic> {
    let nics = deployment.sriov_nics().enumerate();
    nics.map(|(i, nic)| PlannedNic {
        vf: PciAddress::new(0, 7, 0, u8::try_from(i).unwrap() + 1).unwrap(),
        dummy_mac: Some(nic.mac.dummy("aa".parse().unwrap(), nic.position).unwrap()),
        wanted: WantedNic { vlan: (i == 0).then_some(100), nic_id: Some(u32::try_from(i).unwrap()), ..nic.clone() },
    })
    .collect()
}

fn rewritten(text: &str) -> String {
    let deployment = Deployment::parse(text).unwrap();
    deployment.rewrite(&[], &plan(&deployment), "dummybr").unwrap()
}

#[test]
fn the_simple_domain_gives_the_expected_file() {
    assert_eq!(rewritten(SIMPLE), include_str!("../../../../tests/fixtures/deployment-simple.expected.xml"));
}

#[test]
fn the_rich_domain_gives_the_expected_file() {
    assert_eq!(rewritten(RICH), include_str!("../../../../tests/fixtures/deployment-rich.expected.xml"));
}

#[test]
fn the_old_domain_gives_the_expected_file() {
    assert_eq!(rewritten(OLD), include_str!("../../../../tests/fixtures/deployment-4.0.expected.xml"));
}

#[test]
fn a_domain_without_sriov_nics_is_not_changed() {
    let deployment = Deployment::parse(WIRE).unwrap();
    assert_eq!(deployment.sriov_nics().next(), None);
    assert_eq!(deployment.rewrite(&[], &[], "").unwrap(), WIRE);
}

#[test]
fn the_planned_devices_are_in_the_result() {
    for text in [SIMPLE, RICH] {
        let deployment = Deployment::parse(text).unwrap();
        let planned = plan(&deployment);
        let result = deployment.rewrite(&[], &planned, "dummy'br&1").unwrap();
        let live = LiveDomain::parse(&result).unwrap();
        for planned in &planned {
            let nic = &planned.wanted;
            let alias = alias_of(nic.position);
            let hostdev = live.hostdevs.iter().find(|hostdev| hostdev.alias.as_deref() == Some(&alias)).unwrap();
            assert_eq!((hostdev.vf, hostdev.guest), (planned.vf, nic.guest));
            let alias = dummy_alias_of(nic.position);
            let dummy = live.interfaces.iter().find(|dummy| dummy.alias.as_deref() == Some(&alias)).unwrap();
            assert_eq!((Some(dummy.mac), dummy.bridge.as_deref()), (planned.dummy_mac, Some("dummy'br&1")));
            let interface = deployment.nics.iter().find(|it| it.wanted.position == nic.position).unwrap();
            assert_eq!(dummy.target, interface.target);
        }
        let wanted = live.wanted.unwrap().unwrap();
        assert_eq!(wanted.nics.len(), planned.len());
        assert_eq!(wanted.nics[0].vlan, Some(100));
        assert_eq!(Deployment::parse(&result).unwrap().sriov_nics().next(), None);
    }
}

#[test]
fn a_domain_is_read() {
    let rich = Deployment::parse(RICH).unwrap();
    assert_eq!((rich.name().as_str(), rich.memory_kib()), ("one-77", 8_388_608));
    assert_eq!(rich.uuid().unwrap().as_str(), "0d0f6f0e-9a54-4d38-8c83-6f0f3a1d2b77");
    let path = PathBuf::from("/var/lib/one//datastores/0/77/hpc-77_VARS.fd");
    assert_eq!(rich.nvram(), Some(Nvram { path, format: "raw".into() }));
    assert_eq!(rich.disk_files(), [PathBuf::from("/var/lib/one//datastores/0/77/disk.10")]);
    let roots: Vec<_> = rich.sriov_nics().map(|nic| nic.root.as_str()).collect();
    assert_eq!(roots, ["ib0", "eth.1"]);
    assert_eq!(rich.nics[1].target.as_deref(), Some("a&b"));
    let old = Deployment::parse(OLD).unwrap();
    assert_eq!((old.uuid(), old.nvram()), (None, None));
    let simple = Deployment::parse(SIMPLE).unwrap();
    assert_eq!(simple.nics[0].wanted.boot_order, Some(1));
    let with_unit = Deployment::parse(&domain("<memory unit='GiB'>2</memory>")).unwrap();
    assert_eq!(with_unit.memory_kib(), 2 * 1024 * 1024);
    let bare = Deployment::parse(&domain("<uuid>7F1C2A5264d64c0c9b0e2f7a4c1d9e10</uuid>")).unwrap();
    assert_eq!(bare.uuid().unwrap().as_str(), "7f1c2a52-64d6-4c0c-9b0e-2f7a4c1d9e10");
}

#[test]
fn new_files_of_disks_change_nothing_else() {
    let disk = PathBuf::from("/var/lib/one//datastores/0/2/disk.0");
    let new = PathBuf::from("/mnt/it's <a> & \"b\"");
    let deployment = Deployment::parse(WIRE).unwrap();
    assert_eq!(deployment.disk_files(), std::slice::from_ref(&disk));
    let result = deployment.rewrite(&[(disk, new.clone())], &[], "").unwrap();
    let escaped = "/mnt/it&apos;s &lt;a&gt; &amp; &quot;b&quot;";
    assert_eq!(result, WIRE.replacen("/var/lib/one//datastores/0/2/disk.0", escaped, 1));
    assert_eq!(Deployment::parse(&result).unwrap().disks[0].path, new);
    let wide = domain(&format!(
        "<devices><disk type='file'><source file{}=\n\"/a/disk.7\"/></disk></devices>",
        " ".repeat(999)
    ));
    let wide = Deployment::parse(&wide).unwrap();
    let result = wide.rewrite(&[("/a/disk.7".into(), "/b".into())], &[], "").unwrap();
    assert!(result.contains("=\n\"/b\"/>"), "{result}");
}

#[test]
fn only_the_bridge_of_an_interface_makes_an_sriov_nic() {
    for inside in [
        "<title>sriov_ib0</title>".to_owned(),
        format!("<devices>{}</devices>", nic("br0", "<target dev='sriov_ib0'/>")),
        format!("<devices><x>{}</x></devices>", nic("sriov_ib0", "")),
        nic("sriov_ib0", ""),
        format!("<metadata><devices>{}</devices></metadata>", nic("sriov_ib0", "")),
        format!("<devices xmlns='urn:x'>{}</devices>", nic("sriov_ib0", "")),
        "<devices><interface type='network'><source network='sriov_ib0'/></interface></devices>".to_owned(),
    ] {
        let text = domain(&inside);
        let deployment = Deployment::parse(&text).unwrap();
        assert_eq!(deployment.sriov_nics().next(), None, "{text}");
        assert_eq!(deployment.rewrite(&[], &[], "").unwrap(), text);
    }
}

#[test]
fn errors_name_the_place() {
    let in_devices = |inside: &str| domain(&format!("<devices>\n{inside}</devices>"));
    for (text, expected) in [
        (in_devices(&nic("sriov_", "")), "4:34: after sriov_: expected a root name"),
        (in_devices(&nic("sriov_ib0", "").replace("02:00", "2:0")), "4:59: address: expected a MAC address"),
        (in_devices("<interface><source bridge='sriov_a'/></interface>"), "4:1: expected <mac address=...>"),
        (in_devices(&nic("sriov_a", "<boot order='x'/>")), "order: expected a number that fits"),
        (in_devices(&nic("sriov_a", "").repeat(17)), "expected at most 16 SR-IOV NICs in a VM, found \"17\""),
        (in_devices(&nic("a&b", "")), "4:43: expected an entity"),
        ("<domain/>".to_owned(), "1:1: expected <name> in <domain>"),
        ("<d:domain xmlns:d='x'/>".to_owned(), "1:1: expected <domain>, found <domain>"),
        ("<VM/>".to_owned(), "1:1: expected <domain>, found <VM>"),
        (domain("<uuid>x</uuid>"), "3:1: expected a UUID, found \"x\""),
    ] {
        let error = Deployment::parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let deployment = Deployment::parse(SIMPLE).unwrap();
    let error = deployment.rewrite(&[], &[], "br").unwrap_err();
    assert_eq!(error.to_string(), "1:1: expected a VF for each of 1 SR-IOV NICs, found 0");
}

#[test]
fn a_nic_keeps_an_address_that_it_names() {
    let asks = |slot: &str| nic("sriov_a", &format!("<address type='pci' domain='0' bus='0' slot='{slot}'/>"));
    let devices = |nics: String| domain(&format!("<devices>{nics}</devices>"));
    let plain = nic("sriov_a", "");
    assert_eq!(guests(&devices(asks("0x12") + &plain)), ["0000:00:12.0", "0000:00:13.0"]);
    assert_eq!(guests(&devices(plain.clone() + &asks("0x12"))), ["0000:00:10.0", "0000:00:12.0"]);
    assert_eq!(guests(&devices(plain + &asks("0x05"))), ["-", "0000:00:05.0"]);
    let result = rewritten(&devices(asks("0x12")));
    assert!(result.contains("<address type='pci' domain='0x0000' bus='0x00' slot='0x12' function='0x0'/></hostdev>"));
}

#[test]
fn empty_elements_and_existing_metadata_are_handled() {
    let in_line = domain(&format!("<devices>{}</devices><devices/><metadata/>", nic("sriov_a", "<alias name='x'/>")));
    let result = rewritten(&in_line);
    assert!(result.contains("</devices><devices><interface type='bridge'><source bridge='dummybr'/>"), "{result}");
    assert!(result.contains("</interface></devices><metadata><sriov:domain "), "{result}");
    assert!(!result.contains("'x'"), "{result}");
    let own_line = domain(&format!("\t<devices>{}</devices>\n\t<devices />\n", nic("sriov_a", "")));
    let result = rewritten(&own_line);
    assert!(result.contains("\n\t<devices >\n\t\t<interface type='bridge'>\n\t\t\t<source"), "{result}");
    assert!(result.contains("\n\t\t</interface>\n\t</devices>\n\t<metadata>\n\t\t<sriov:domain"), "{result}");
    assert!(result.ends_with("</sriov:domain>\n\t</metadata>\n</domain>"), "{result}");
    let again = result.replace("</devices>\n\t<devices >", &format!("{}</devices>\n\t<devices>", nic("sriov_b", "")));
    let result = rewritten(&again);
    assert_eq!(result.matches("<sriov:domain").count(), 1);
    assert!(result.contains("root='b'") && !result.contains("root='a'"), "{result}");
}

#[test]
fn a_dummy_that_would_not_be_xml_is_refused() {
    let driver = "<driver q:x='1'/>";
    let prefixed = |at: &str, nic: &str| format!("<domain{at}><name>one-1</name><devices>{nic}</devices></domain>");
    let own = nic("sriov_a", driver).replacen("<interface", "<interface xmlns:q='urn:q'", 1);
    let text = prefixed("", &own);
    let deployment = Deployment::parse(&text).unwrap();
    let error = deployment.rewrite(&[], &plan(&deployment), "dummybr").unwrap_err();
    assert!(error.to_string().contains("unknown namespace prefix 'q'"), "{error}");
    // OpenNebula and libvirt declare prefixes at the top.
    assert!(rewritten(&prefixed(" xmlns:q='urn:q'", &nic("sriov_a", driver))).contains(driver));
}
