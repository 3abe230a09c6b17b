//! Which devices of a guest are dummies and which are VFs; all other devices are shown as OpenNebula's own function
//! shows them.
//!
//! A guest in these tests is a sysfs made of files, and the output of `ip link`. `fixtures/guests.txt` has guests of
//! all kinds with the right result for each; other guests are random.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kvm_sriov_tests::project;
use kvm_sriov_tests::remotes::target;
use tempfile::TempDir;

/// A network device, as a line of the fixture describes it.
#[derive(Clone, Debug)]
struct Nic {
    place: String,
    pci: String,
    name: String,
    mac: String,
    words: BTreeMap<String, String>,
}

impl Nic {
    fn new(place: &str, pci: &str, name: &str, mac: &str) -> Self {
        let [place, pci, name, mac] = [place, pci, name, mac].map(str::to_owned);
        Self { place, pci, name, mac, words: BTreeMap::new() }
    }

    fn word(mut self, name: &str, value: &str) -> Self {
        self.words.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Its name without the name of its parent device.
    fn device(&self) -> &str {
        self.name.split('@').next().unwrap()
    }
}

#[derive(Clone, Debug, Default)]
struct Guest {
    name: String,
    nics: Vec<Nic>,
    context: BTreeMap<String, String>,
    remembered: Vec<String>,
    list: Vec<String>,
    dummies: Vec<String>,
    /// The right device for each NIC of the context.
    devices: BTreeMap<String, String>,
}

fn full(pci: &str) -> String {
    if pci.matches(':').count() == 1 { format!("0000:{pci}") } else { pci.to_owned() }
}

fn corpus() -> Vec<Guest> {
    let text = fs::read_to_string(project().join("tests/fixtures/guests.txt")).unwrap();
    let mut guests: Vec<Guest> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(name) = line.strip_prefix("== ") {
            guests.push(Guest { name: name.to_owned(), ..Guest::default() });
            continue;
        }
        let guest = guests.last_mut().unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let pairs = |from: usize| {
            words[from..].iter().map(|word| word.split_once('=').unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned()))
        };
        match words[0] {
            place @ ("virtio" | "function" | "usb") => {
                let nic = Nic::new(place, &full(words[1]), words[2], words[3]);
                guest.nics.push(Nic { words: pairs(4).collect(), ..nic });
            }
            place @ ("virtual" | "other") => {
                guest.nics.push(Nic { words: pairs(3).collect(), ..Nic::new(place, "", words[1], words[2]) });
            }
            "context" => guest.context.extend(pairs(1)),
            "remembered" => guest.remembered.push(format!("{} {}", full(words[1]), words[2])),
            "list" => guest.list.push(words[1..].join(" ")),
            "dummies" => guest.dummies.extend(words[1..].iter().map(|&word| word.to_owned())),
            nic if nic.starts_with("ETH") => drop(guest.devices.insert(nic.to_owned(), words[1].to_owned())),
            other => panic!("{}: {other}", guest.name),
        }
    }
    guests
}

/// What the programs said of a guest.
#[derive(Debug, PartialEq)]
struct Said {
    list: Vec<String>,
    list_from_file: Vec<String>,
    described: Vec<String>,
    own: String,
    ours: String,
    devices: BTreeMap<String, String>,
    err: String,
}

/// The installed package, and a file in place of OpenNebula's functions.
struct Bench {
    dir: TempDir,
}

const SHELLS: [&str; 3] = ["dash", "bash", "busybox"];

/// Everything that a guest is asked: by udev and by hand before the context is in the environment, and by OpenNebula's
/// scripts afterwards.
const ASK: &str = r#"
# busybox takes its own ip before that of the PATH.
ip() { cat "$IP"; }
guest() { "$shell" $word "$ROOT/usr/sbin/kvm-sriov-guest" "$@"; }
echo '# described'
for nic in "$SRIOV_SYS"/class/net/*; do
    [ -e "$nic/address" ] || continue
    read -r mac <"$nic/address"
    [ -z "$(guest describe "${nic##*/}" "$mac")" ] || echo "${nic##*/}"
done
echo '# from a file'
guest list 2>/dev/null
set -a
. "$RUNTIME_DIR/context.sh.local"
set +a
export RUNTIME_DIR=/nowhere
echo '# list'
guest list 2>/dev/null
. "$SRIOV_CONTEXT/loc-10-network.d/functions.own"
echo '# own'
get_interface_mac
. "$SRIOV_CONTEXT/loc-10-network.d/functions"
echo '# ours'
list=$(get_interface_mac) || exit 1
[ -z "$list" ] || echo "$list"
echo '# devices'
for nic in $(get_context_interfaces); do
    eval "mac=\$${nic}_MAC"
    echo "$nic $(get_dev "$list" "$mac")"
done
"#;

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        let root = bench.path("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        assert!(Command::new(project().join("guest/install")).arg(&root).output().unwrap().status.success());
        let scripts = root.join("etc/one-context.d/loc-10-network.d");
        fs::create_dir_all(&scripts).unwrap();
        let own = fs::read_to_string(project().join("tests/rigs/context/loc-10-network.d/functions")).unwrap();
        fs::write(scripts.join("functions.own"), &own).unwrap();
        fs::write(scripts.join("functions"), format!("{own}. \"$SRIOV_LIB/get-interface-mac.sh\"\n")).unwrap();
        // busybox uses its own awk, sed and grep.
        let busybox = target().join("guest-root/bin/busybox");
        assert!(busybox.exists(), "{} is missing: run tests/prepare guest-root", busybox.display());
        for shell in SHELLS {
            let bin = bench.path("bin").join(shell);
            fs::create_dir_all(&bin).unwrap();
            let ip = bin.join("ip");
            fs::write(&ip, "#!/bin/sh\ncase $1 in -o) exec cat \"$IP.o\" ;; *) exec cat \"$IP\" ;; esac\n").unwrap();
            fs::set_permissions(ip, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for tool in ["awk", "sed", "grep", "tr", "cut", "tail", "env", "sort", "cat", "mkdir", "mv", "readlink"] {
            symlink(&busybox, bench.path("bin/busybox").join(tool)).unwrap();
        }
        symlink(&busybox, bench.path("bin/busybox/busybox")).unwrap();
        bench
    }

    fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    /// Writes the files of the guest: its sysfs, and the output of `ip`.
    fn lay_out(guest: &Guest, dir: &Path) {
        let sys = dir.join("sys");
        for part in ["class/net", "bus/pci/devices", "bus/pci/drivers"] {
            fs::create_dir_all(sys.join(part)).unwrap();
        }
        let lo =
            "1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN mode DEFAULT group default qlen 1000";
        let mut links = vec![[lo.to_owned(), "    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00".to_owned()]];
        for (at, nic) in guest.nics.iter().enumerate() {
            let word = |name: &str| nic.words.get(name).map(String::as_str);
            let function = sys.join("devices/pci0000:00").join(&nic.pci);
            let net = match nic.place.as_str() {
                "virtio" => function.join("virtio3/net"),
                "function" => function.join("net"),
                "usb" => function.join("usb1/1-1/1-1:1.0/net"),
                "other" => sys.join("devices/vmbus/1/net"),
                _ => sys.join("devices/virtual/net"),
            };
            let net = net.join(nic.device());
            fs::create_dir_all(&net).unwrap();
            let index = (at + 2).to_string();
            let mut files = vec![
                ("address", nic.mac.as_str()),
                ("type", word("type").unwrap_or("1")),
                ("ifindex", &index),
                ("dev_port", word("port").unwrap_or("0")),
            ];
            files.extend(word("assigned").map(|value| ("addr_assign_type", value)));
            if let Some(mac) = word("slave") {
                fs::create_dir_all(net.join("bonding_slave")).unwrap();
                files.push(("bonding_slave/perm_hwaddr", mac));
            }
            for (file, value) in files {
                fs::write(net.join(file), format!("{value}\n")).unwrap();
            }
            symlink(&net, sys.join("class/net").join(nic.device())).unwrap();
            if !nic.pci.is_empty() {
                let link = sys.join("bus/pci/devices").join(&nic.pci);
                if !link.exists() {
                    symlink(&function, link).unwrap();
                }
                if let Some(driver) = word("driver") {
                    let driver = sys.join("bus/pci/drivers").join(driver);
                    fs::create_dir_all(&driver).unwrap();
                    if !driver.join(&nic.pci).exists() {
                        symlink(&function, driver.join(&nic.pci)).unwrap();
                    }
                }
                if let Some(split) = word("split") {
                    fs::write(function.join(split), "8\n").unwrap();
                }
            }
            let first = word("permaddr").map(|mac| format!(" permaddr {mac}")).unwrap_or_default();
            links.push([
                format!("{index}: {}: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc fq_codel state UP mode DEFAULT group default qlen 1000", nic.name),
                match word("link").unwrap_or("ether") {
                    "none" => "    link/none".to_owned(),
                    link => format!("    link/{link} {} brd ff:ff:ff:ff:ff:ff{first}", nic.mac),
                },
            ]);
        }
        let text = |joint: &str| links.iter().map(|[one, two]| format!("{one}{joint}{two}\n")).collect::<String>();
        fs::write(dir.join("ip"), text("\n")).unwrap();
        fs::write(dir.join("ip.o"), text("\\")).unwrap();
        // One device vanishes before it is read.
        fs::create_dir_all(sys.join("devices/pci0000:00/0000:00:1e.0/net/gone0")).unwrap();
        symlink(sys.join("devices/pci0000:00/0000:00:1e.0"), sys.join("bus/pci/devices/0000:00:1e.0")).unwrap();
        symlink(sys.join("devices/pci0000:00/0000:00:1e.0/net/gone0"), sys.join("class/net/gone0")).unwrap();
        symlink(sys.join("devices/virtual/net/gone1"), sys.join("class/net/gone1")).unwrap();
        let context: String = guest.context.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
        fs::create_dir_all(dir.join("one-context")).unwrap();
        fs::write(dir.join("one-context/context.sh.local"), context).unwrap();
        fs::create_dir_all(dir.join("run")).unwrap();
        let pairs: String = guest.remembered.iter().map(|pair| format!("{pair}\n")).collect();
        fs::write(dir.join("run/pairs"), pairs).unwrap();
    }

    fn ask(&self, guest: &Guest, shell: &str) -> Said {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap();
        Self::lay_out(guest, dir.path());
        let bin = self.path("bin").join(shell);
        let (program, word) = if shell == "busybox" { (bin.join("busybox"), "sh") } else { (shell.into(), "") };
        let mut command = Command::new(&program);
        command.args(Some(word).filter(|word| !word.is_empty())).args(["-c", ASK]).env_clear();
        let root = self.path("root");
        for (name, value) in [
            ("shell", program.clone()),
            ("word", word.into()),
            ("ROOT", root.clone()),
            ("SRIOV_LIB", root.join("usr/lib/kvm-sriov-guest")),
            ("SRIOV_CONTEXT", root.join("etc/one-context.d")),
            ("SRIOV_SYS", dir.path().join("sys")),
            ("SRIOV_RUN", dir.path().join("run")),
            ("SRIOV_CONF", "/nowhere".into()),
            ("SRIOV_CMDLINE", "/nowhere".into()),
            ("RUNTIME_DIR", dir.path().join("one-context")),
            ("IP", dir.path().join("ip")),
            ("PATH", format!("{}:/usr/bin:/bin", bin.display()).into()),
        ] {
            command.env(name, value);
        }
        let output = command.output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{}, {shell}: {out}{err}", guest.name);
        let part = |name: &str| {
            let begin = format!("# {name}\n");
            let text = out.split_once(&begin).unwrap_or_else(|| panic!("{}, {shell}: {out}{err}", guest.name)).1;
            text.split("# ").next().unwrap().to_owned()
        };
        let list = |name: &str| {
            let shown = |line: &str| {
                let words: Vec<&str> = line.split(' ').collect();
                if words[2] == "ethernet" { words[..2].join(" ") } else { words[..3].join(" ") }
            };
            part(name).lines().map(shown).collect()
        };
        Said {
            list: list("list"),
            list_from_file: list("from a file"),
            described: part("described").lines().map(str::to_owned).collect(),
            own: part("own"),
            ours: part("ours"),
            devices: part("devices")
                .lines()
                .map(|line| line.split_once(' ').unwrap())
                .map(|(nic, device)| (nic.to_owned(), device.to_owned()))
                .collect(),
            err,
        }
    }
}

/// The lines of all devices except these.
fn others<'a>(lines: &'a str, without: &[String]) -> Vec<&'a str> {
    lines.lines().filter(|line| !without.iter().any(|device| line.split(' ').next() == Some(device))).collect()
}

/// What is wrong with the answers about a guest.
fn wrong(guest: &Guest, said: &Said) -> String {
    let mut wrong = String::new();
    let mut compare = |what: &str, found: &dyn std::fmt::Debug, right: &dyn std::fmt::Debug, same: bool| {
        if !same {
            writeln!(wrong, "    {what}: found {found:?}, right {right:?}").unwrap();
        }
    };
    compare("VFs", &said.list, &guest.list, said.list == guest.list);
    compare("VFs by the file", &said.list_from_file, &guest.list, said.list_from_file == guest.list);
    compare("dummies", &said.described, &guest.dummies, said.described == guest.dummies);
    for (nic, device) in &guest.devices {
        compare(nic, &said.devices.get(nic), device, said.devices.get(nic) == Some(device));
    }
    if guest.dummies.is_empty() {
        compare("as without us", &said.ours, &said.own, said.ours == said.own);
        compare("no words", &said.err, &"", said.err.is_empty());
    } else {
        let vfs = guest.list.iter().filter_map(|line| line.split(' ').nth(1));
        let apart: Vec<String> = guest.dummies.iter().cloned().chain(vfs.map(str::to_owned)).collect();
        let (found, right) = (others(&said.ours, &apart), others(&said.own, &apart));
        compare("others as without us", &found, &right, found == right);
    }
    wrong
}

/// What is wrong, in each of these shells.
fn judge(bench: &Bench, guests: &[Guest], shells: &[&str]) -> String {
    let mut all = String::new();
    for guest in guests {
        for shell in shells {
            let said = bench.ask(guest, shell);
            let wrong = wrong(guest, &said);
            if !wrong.is_empty() {
                write!(all, "{} ({shell}):\n{wrong}{guest:?}\n{said:?}\n", guest.name).unwrap();
            }
        }
    }
    all
}

#[test]
fn every_device_of_the_fixture_is_recognised() {
    let guests = corpus();
    assert!(guests.len() > 40, "{}", guests.len());
    let wrong = judge(&Bench::new(), &guests, &SHELLS);
    assert!(wrong.is_empty(), "{wrong}");
}

/// Pseudo-random numbers (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    /// A random MAC that begins with one of these prefixes.
    fn mac(&mut self, begin: &[&str]) -> String {
        let mut mac = self.one(begin).to_owned();
        while mac.len() < 17 {
            write!(mac, ":{:02x}", self.below(256)).unwrap();
        }
        mac
    }
}

const ANY: [&str; 6] = ["02:00", "aa:00", "aa:0f", "d2", "52:54:00", "02:00:00:00:00:00"];

/// Adds devices that are neither dummies nor VFs, whatever their MACs are. NICs of the context are numbered from
/// `number`.
fn bystanders(chance: &mut Chance, guest: &mut Guest, number: usize) {
    let mut macs = Vec::new();
    for k in 0..chance.below(3) + 1 {
        let mac = chance.mac(&["02:00", "aa:00", "aa:0b", "52:54:00"]);
        let name = chance.one(&["eth", "ens", "lan_", "en-"]);
        let nic = match chance.below(4) {
            0 => Nic::new("function", &format!("0000:00:{:02x}.0", 8 + k), &format!("{name}{k}"), &mac),
            1 => Nic::new("other", "", &format!("{name}{k}"), &mac),
            _ => Nic::new("virtio", &format!("0000:00:{:02x}.0", 3 + k), &format!("{name}{k}"), &mac),
        };
        let nic = if nic.place == "function" {
            nic.word("driver", chance.one(&["e1000", "mlx5_core", "8139cp"]))
        } else {
            nic
        };
        guest.nics.push(nic);
        let written = if chance.below(4) == 0 { mac.to_uppercase() } else { mac.clone() };
        guest.context.insert(format!("ETH{}_MAC", number + usize::try_from(k).unwrap()), written);
        macs.push(mac);
    }
    for k in 0..chance.below(4) {
        let kind = chance.one(&["veth", "br", "docker_gw", "mac-vlan", "tap", "bond", "vlan.1"]);
        let below = chance.one(&["", "@if7", "@eth0"]);
        let mac = if chance.below(2) == 0 { chance.mac(&ANY) } else { macs[0].clone() };
        guest.nics.push(Nic::new("virtual", "", &format!("{kind}{k}{below}"), &mac));
    }
}

const SEED: u64 = 0x5eed_0022;

#[test]
fn a_guest_without_our_dummies_is_as_without_us() {
    println!("seed {SEED:#x}");
    let mut chance = Chance(SEED);
    let guests: Vec<Guest> = (0..40)
        .map(|k| {
            let mut guest = Guest { name: format!("guest {k}"), ..Guest::default() };
            bystanders(&mut chance, &mut guest, 0);
            // VFs of the mode ethernet, VFs without a mode, and foreign VFs.
            for k in 0..chance.below(3) {
                let mac = chance.mac(&["02:00", "d2", "aa:0c"]);
                let nic = Nic::new("function", &format!("0000:{:02x}:00.0", 7 + k), &format!("vf{k}"), &mac);
                guest.nics.push(nic.word("driver", chance.one(&["iavf", "mlx5_core", "bnxt_en"])));
                if chance.below(2) == 0 {
                    guest.context.insert(format!("ETH{}_MAC", 10 + k), mac);
                }
            }
            guest
        })
        .collect();
    let wrong = judge(&Bench::new(), &guests, &SHELLS[..1]);
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn vfs_get_their_addresses_whatever_other_devices_there_are() {
    println!("seed {SEED:#x}");
    let mut chance = Chance(SEED + 1);
    let guests: Vec<Guest> = (0..40)
        .map(|k| {
            let mut guest = Guest { name: format!("guest {k}"), ..Guest::default() };
            bystanders(&mut chance, &mut guest, 10);
            let mut position = 0;
            for k in 0..chance.below(4) + 1 {
                position += chance.below(3);
                let tail = chance.mac(&["0a"])[..11].to_owned();
                let mac = chance.mac(&ANY);
                guest.nics.push(Nic::new(
                    "virtio",
                    &format!("0000:00:{:02x}.0", 16 + k),
                    &format!("dum{k}"),
                    &format!("aa:0{position:x}:{tail}"),
                ));
                let vf = Nic::new("function", &format!("0000:{:02x}:00.0", 7 + k), &format!("vf{k}"), &mac);
                guest.nics.push(vf.word("driver", chance.one(&["iavf", "mlx5_core", "bnxt_en"])));
                guest.context.insert(format!("ETH{k}_MAC"), format!("02:00:{tail}"));
                guest.list.push(format!("{position} vf{k}"));
                guest.dummies.push(format!("dum{k}"));
                guest.devices.insert(format!("ETH{k}"), format!("vf{k}"));
                position += 1;
            }
            // The order of the devices must not matter.
            for at in (1..guest.nics.len()).rev() {
                let other = usize::try_from(chance.below(at as u64 + 1)).unwrap();
                guest.nics.swap(at, other);
            }
            guest
        })
        .collect();
    let wrong = judge(&Bench::new(), &guests, &SHELLS[..1]);
    assert!(wrong.is_empty(), "{wrong}");
}
