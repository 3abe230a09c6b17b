# shellcheck shell=sh
# Finds out which virtual function (VF) belongs to which dummy. The other scripts of this package read this file.
#
# The driver gives a VM a VF and a dummy for each SR-IOV NIC. The dummy's MAC is <prefix>:0<position>:<last four bytes
# of the NIC's MAC>; it carries the IP address and never a packet. The driver plugs VFs so that ascending guest PCI
# address is ascending position, and keeps these addresses through suspend and migration. So the k-th VF belongs to the
# k-th dummy.
#
# While VFs are attached or detached, there may be more VFs than dummies for a moment, or fewer. Counting would give a
# VF the address of another one then. So only pairs count that were seen when all were present; the others wait.
#
# SRIOV_SYS is the path of sysfs. SRIOV_RUN is the directory in which pairs are recorded until the next boot.

: "${SRIOV_SYS:=/sys}" "${SRIOV_RUN:=/run/kvm-sriov-guest}" "${SRIOV_CONF:=/etc/kvm-sriov-guest.conf}" "${SRIOV_CMDLINE:=/proc/cmdline}"

sriov_fail() {
    echo "kvm-sriov-guest: $*" >&2
    return 1
}

# In a small guest, a process for each of these would take noticeable time. So the shell does the work itself where it
# can.

sriov_lower() {
    case $1 in
        *[ABCDEFGHIJKLMNOPQRSTUVWXYZ]*) echo "$1" | tr '[:upper:]' '[:lower:]' ;;
        *) echo "$1" ;;
    esac
}

# NAME: the value of kvm-sriov.<name> on the kernel's command line, or of NAME in the file. Neither is ever run.
sriov_setting() (
    value=
    if [ -r "$SRIOV_CONF" ]; then
        while IFS='=' read -r key text || [ -n "$key" ]; do
            key=${key#"${key%%[![:space:]]*}"}
            [ "${key%%[[:space:]]*}" = "$1" ] || continue
            text=${text#"${text%%[![:space:]]*}"}
            case $text in
                \"*) text=${text#?} value=${text%%\"*} ;;
                \'*) text=${text#?} value=${text%%\'*} ;;
                *) text=${text%%#*} value=${text%"${text##*[![:space:]]}"} ;;
            esac
        done <"$SRIOV_CONF"
    fi
    if [ -r "$SRIOV_CMDLINE" ] && read -r words <"$SRIOV_CMDLINE"; then
        case $words in
            *kvm-sriov.*)
                word=kvm-sriov.$(sriov_lower "$1")
                set -f
                for given in $words; do
                    case $given in "$word"=*) value=${given#"$word"=} ;; esac
                done
                ;;
        esac
    fi
    echo "$value"
)

# The first byte of a dummy's MAC, in lower case.
sriov_dummy_prefix() {
    prefix=$(sriov_lower "$(sriov_setting DUMMY_MAC_PREFIX)")
    case ${prefix:=aa} in
        [0-9a-f][0-9a-f]) echo "$prefix" ;;
        *) sriov_fail "DUMMY_MAC_PREFIX is \"$prefix\", expected two hexadecimal digits; nothing is configured" ;;
    esac
}

# The NICs that QEMU emulates besides virtio, by the names of the guest's drivers. A dummy has the model of its NIC,
# which may be one of these. None of these drivers is for VFs. But a vmxnet3 that the context does not name counts as a
# VF: it stands for one in tests without VFs (tests/scenarios/light).
sriov_emulated='8139cp 8139too e100 e1000 e1000e igb ne2k-pci pcnet32 tulip vmxnet3'

# Prints a line for each network device that belongs to a PCI function. An unknown value is "-". A device may disappear
# while it is read.
sriov_nics() {
    for function in "$SRIOV_SYS"/bus/pci/devices/*; do
        for nic in "$function"/net/* "$function"/virtio*/net/*; do
            [ -e "$nic/address" ] || continue
            line="nic ${function##*/} ${nic##*/}"
            case $nic in "$function"/net/*) line="$line function" ;; *) line="$line virtio" ;; esac
            # A function that the guest splits into VFs, and its VFs, belong to the guest.
            if [ -e "$function/sriov_totalvfs" ] || [ -e "$function/physfn" ]; then line="$line split"; else line="$line -"; fi
            driver=-
            for bound in "$SRIOV_SYS"/bus/pci/drivers/*/"${function##*/}"; do
                [ ! -e "$bound" ] || driver=${bound%/*}
            done
            line="$line ${driver##*/}"
            for attribute in address type ifindex dev_port addr_assign_type bonding_slave/perm_hwaddr; do
                value=
                { read -r value <"$nic/$attribute"; } 2>/dev/null
                line="$line ${value:--}"
            done
            echo "$line"
        done
    done
}

# Classifies the network devices (docs/howto/guest.md has the rules) and pairs VFs with dummies. Prints lines:
#   dummy DEVICE KEY              a dummy; its KEY is 0<position>:<last four bytes of the NIC's MAC>
#   pair ADDRESS KEY DEVICE KIND  the VF at this PCI address belongs to this dummy
#   keep ADDRESS KEY              record this pair
#   waits DUMMIES VFS             the numbers of dummies and VFs, while some have no partner
# The context comes from the environment, as in its scripts, or else from the file that one-contextd has written.
sriov_judge() {
    prefix=$(sriov_dummy_prefix) || return 1
    opennebula=$(sriov_lower "$(sriov_setting MAC_PREFIX)")
    sriov_nics | awk -v prefix="$prefix" -v opennebula="${opennebula:-02:00}" -v emulated="$sriov_emulated" \
        -v remembered="$SRIOV_RUN/pairs" -v written="${RUNTIME_DIR:-/var/run/one-context}/context.sh.local" '
        function take(variable, value) {
            gsub(/["\047 \t\r]/, "", value)
            value = tolower(value)
            if (value == "") return
            if (variable ~ /^(ETH|PCI)[0-9]+_MAC$/) named[value] = 1
            else if (variable ~ /^PCI[0-9]+_ADDRESS$/) passed[value] = 1
            else return
            context = 1
        }
        function bears(hardware, ifindex) {
            if (!((hardware, ifindex) in bearer)) { bearer[hardware, ifindex] = 1; bearers[hardware]++ }
        }
        # Whether OpenNebula gave this NIC this MAC, as far as the guest can tell. No NIC has the address 0.0.0.0:
        # libvirt leaves such a MAC on a VF that had none.
        function is_opennebulas(hardware, i) {
            if (context) return (hardware in named)
            if (index(hardware, opennebula ":") != 1 || substr(hardware, 7) == "00:00:00:00" || assigned[i] == 1) return 0
            return driver[i] !~ /vf$/ || bearers[mac[i]] > 1
        }
        function is_passed(function_address,    given, begin) {
            for (given in passed) {
                begin = length(function_address) - length(given) + 1
                if (begin >= 1 && substr(function_address, begin) == given) return 1
            }
            return 0
        }
        function is_vf(i) {
            if (kind[i] != "function" || looks[i] || split_up[i] || is_passed(pci[i])) return 0
            if (type[i] != 1 && type[i] != 32) return 0
            if (driver[i] in model && driver[i] != "vmxnet3") return 0
            if (type[i] == 32) return 1
            if (is_opennebulas(own[i], i) && !(substr(own[i], 7) in carried))
                # A bond gives its MAC to its VF. Without the permanent MAC, the recorded pair decides.
                return own[i] == mac[i] && bearers[mac[i]] > 1 && (pci[i] in kept)
            # Some program gave the VF the MAC of a NIC, as loc-10-network-pci does.
            if (own[i] != mac[i] && is_opennebulas(mac[i], i) && !(substr(mac[i], 7) in carried)) return bearers[mac[i]] > 1
            return 1
        }
        function sort(list, length_of_it,    i, j, one) {
            for (i = 2; i <= length_of_it; i++) {
                one = list[i]
                for (j = i - 1; j >= 1 && (list[j] "") > (one ""); j--) list[j + 1] = list[j]
                list[j + 1] = one
            }
        }
        BEGIN {
            for (name in ENVIRON) take(name, ENVIRON[name])
            if (!context) while ((getline line < written) > 0)
                if (line ~ /^(ETH|PCI)[0-9]+_(MAC|ADDRESS)=/) take(substr(line, 1, index(line, "=") - 1), substr(line, index(line, "=") + 1))
            count = split(emulated, word, " ")
            for (k = 1; k <= count; k++) model[word[k]] = 1
            # No file of sysfs has the permanent MAC of a device.
            while (("ip -o link show 2>/dev/null" | getline line) > 0) {
                count = split(line, word, " ")
                number = word[1] + 0
                for (k = 2; k < count; k++) {
                    if (word[k] == "link/ether") bears(tolower(word[k + 1]), number)
                    if (word[k] == "permaddr") first[number] = tolower(word[k + 1])
                }
            }
        }
        $1 == "nic" && $7 != "-" {
            n++
            pci[n] = $2; device[n] = $3; kind[n] = $4; split_up[n] = ($5 == "split"); driver[n] = $6
            mac[n] = tolower($7); type[n] = $8; number = $9 + 0; port[n] = $10 + 0; assigned[n] = $11
            at[n] = number
            own[n] = mac[n]
            if (number in first) own[n] = first[number]
            if ($12 != "-") own[n] = tolower($12)
            bears(mac[n], number)
        }
        END {
            while ((getline line < remembered) > 0) { split(line, word, " "); before[word[1]] = word[2] }
            for (i = 1; i <= n; i++) {
                # Six bytes, because the address of an IPoIB device has 20.
                if (type[i] != 1 || index(own[i], prefix ":0") != 1 || own[i] !~ /^..:..:..:..:..:..$/ || own[i] in named) continue
                if (split_up[i] || is_passed(pci[i])) continue
                if (kind[i] == "function" && (assigned[i] == 1 || !(driver[i] in model || driver[i] == "-"))) continue
                key = substr(own[i], 4)
                looks[i] = 1
                print "dummy", device[i], key
                carried[substr(key, 4)] = 1
                if (!(key in there)) dummy[++dummies] = key
                there[key] = 1
            }
            for (address in before) if (before[address] in there) kept[address] = before[address]
            # A function with two ports has a device for each port, and an IPoIB function has one more for each
            # partition key. Only the first device of the first port counts.
            for (i = 1; i <= n; i++) if (is_vf(i)) {
                if (!(pci[i] in best)) vf[++vfs] = pci[i]
                else if (port[i] > port[best[pci[i]]] || (port[i] == port[best[pci[i]]] && at[i] > at[best[pci[i]]])) continue
                best[pci[i]] = i
            }
            sort(dummy, dummies)
            sort(vf, vfs)
            whole = (dummies == vfs)
            for (k = 1; k <= vfs; k++) if (vf[k] in kept && kept[vf[k]] != dummy[k]) whole = 0
            for (k = 1; k <= vfs; k++) {
                key = ""
                if (whole) key = dummy[k]
                else if (vf[k] in kept) key = kept[vf[k]]
                if (key == "") { waiting = 1; continue }
                print "pair", vf[k], key, device[best[vf[k]]], (type[best[vf[k]]] == 32 ? "infiniband" : "ethernet")
                if (whole) print "keep", vf[k], key
            }
            if (!whole) for (address in kept) print "keep", address, kept[address]
            if (dummies && (waiting || !whole)) print "waits", dummies, vfs + 0
        }'
}

# Sets `judged` to the output of sriov_judge, records pairs, and says how many wait.
sriov_look() {
    judged=$(sriov_judge) || return 1
    # Written to another name and renamed, because another run may read it.
    if mkdir -p "$SRIOV_RUN" 2>/dev/null && echo "$judged" | sed -n 's/^keep //p' >"$SRIOV_RUN/.pairs.$$" 2>/dev/null; then
        mv -f "$SRIOV_RUN/.pairs.$$" "$SRIOV_RUN/pairs"
    fi
    case $judged in *'
waits '*)
        set -- "${judged##*waits }"
        echo "kvm-sriov-guest: ${1% *} dummies and ${1#* } VFs: those whose partner is not known yet wait" >&2
        ;;
    esac
}

# One line for each VF whose dummy is known, by ascending PCI address: position in decimal, network device, kind
# (ethernet or infiniband), and the last four bytes of the NIC's MAC.
sriov_vfs() (
    sriov_look || exit 1
    echo "$judged" | while read -r what _ key device kind; do
        if [ "$what" = pair ]; then echo "$((0x${key%%:*})) $device $kind ${key#??:}"; fi
    done
)

# The address that the last four bytes of a MAC carry.
sriov_address() (
    IFS=:
    # shellcheck disable=SC2086
    set -- $1
    echo "$((0x$1)).$((0x$2)).$((0x$3)).$((0x$4))"
)
