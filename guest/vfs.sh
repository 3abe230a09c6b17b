# shellcheck shell=sh
# Which virtual function (VF) belongs to which dummy interface. Read by the other scripts of this package.
#
# The driver gives a VM a VF and a dummy for each SR-IOV NIC. The dummy's MAC is <prefix>:0<position>:<last four bytes of the
# NIC's MAC>; it carries the IP address and never a packet. The driver plugs VFs so that ascending guest PCI address is
# ascending position, and keeps these addresses through suspend and migration. So the k-th VF belongs to the k-th dummy.
#
# While VFs come or go there are more of the one than of the other for a moment, and counting would give a VF another one's
# address. Then only pairs count that were seen when all were there; the rest has to wait.
#
# SRIOV_SYS and SRIOV_RUN are where sysfs lies and where pairs are remembered until the next boot.

: "${SRIOV_SYS:=/sys}" "${SRIOV_RUN:=/run/kvm-sriov-guest}" "${SRIOV_CONF:=/etc/kvm-sriov-guest.conf}" "${SRIOV_CMDLINE:=/proc/cmdline}"

sriov_fail() {
    echo "kvm-sriov-guest: $*" >&2
    return 1
}

# A process for each of these would be felt in a small guest, so they are the shell's own work where it can do it.

sriov_lower() {
    case $1 in
        *[ABCDEFGHIJKLMNOPQRSTUVWXYZ]*) echo "$1" | tr '[:upper:]' '[:lower:]' ;;
        *) echo "$1" ;;
    esac
}

# NAME: what kvm-sriov.<name> on the kernel's command line says, or NAME in the file. Neither is ever run.
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

# DEVICE: whether its driver is one for VFs alone. Such a VF's MAC can be drawn by chance, and look like anything.
sriov_has_vf_driver() {
    for bound in "$SRIOV_SYS"/bus/pci/drivers/*vf/*/net/"$1"; do
        if [ -e "$bound" ]; then return 0; fi
    done
    return 1
}

# DEVICE MAC PREFIX: whether this is a dummy.
sriov_is_dummy() {
    # Six bytes: the address of an IPoIB device has 20.
    case $2 in "$3":0[0-9a-f]:??:??:??:??) ! sriov_has_vf_driver "$1" ;; *) return 1 ;; esac
}

# PREFIX: the dummies by ascending position, each as 0<position>:<last four bytes of the NIC's MAC>.
sriov_dummies() {
    for nic in "$SRIOV_SYS"/class/net/*; do
        { read -r mac <"$nic/address"; } 2>/dev/null || continue
        if sriov_is_dummy "${nic##*/}" "$mac" "$1"; then echo "${mac#??:}"; fi
    done | LC_ALL=C sort
}

# DEVICE MAC PREFIX KNOWN OPENNEBULA_PREFIX: whether this is no VF, but a dummy or one of OpenNebula's other NICs. KNOWN are the
# context's MACs, each between blanks; without a context, every MAC that begins as OpenNebula's do is another NIC's.
sriov_is_other() {
    if sriov_is_dummy "$1" "$2" "$3"; then return 0; fi
    if [ -n "$4" ]; then
        case $4 in *" $2 "*) return 0 ;; esac
    else
        case $2 in "$5":*) ! sriov_has_vf_driver "$1" && return 0 ;; esac
    fi
    return 1
}

# The VFs by ascending PCI address: PCI address and network device. A virtio NIC is no PCI device of its own, but its child.
sriov_functions() {
    known=$(env | sed -n -e 's/^ETH[0-9][0-9]*_MAC=//p' -e 's/^PCI[0-9][0-9]*_MAC=//p' | tr '[:upper:]\n' '[:lower:] ')
    [ -z "$known" ] || known=" $known "
    opennebula=$(sriov_lower "$(sriov_setting MAC_PREFIX)")
    for function in "$SRIOV_SYS"/bus/pci/devices/*; do
        # A function with two ports has a device for each, and an IPoIB device has one for each partition key beside it:
        # the one that counts is the first port's own.
        first='' lowest=''
        for nic in "$function"/net/*; do
            { read -r mac <"$nic/address"; } 2>/dev/null || continue
            case ${nic##*/} in *.*) continue ;; esac
            if sriov_is_other "${nic##*/}" "$mac" "$1" "$known" "${opennebula:-02:00}"; then continue; fi
            port=0
            [ ! -r "$nic/dev_port" ] || read -r port <"$nic/dev_port"
            if [ -z "$first" ] || [ "$port" -lt "$lowest" ]; then first=${nic##*/} lowest=$port; fi
        done
        [ -z "$first" ] || echo "${function##*/} $first"
    done | LC_ALL=C sort
}

# One line for each VF whose dummy is known, by ascending PCI address: position in decimal, network device, kind (ethernet
# or infiniband), and the last four bytes of the NIC's MAC.
sriov_vfs() (
    prefix=$(sriov_dummy_prefix) || exit 1
    dummies=$(sriov_dummies "$prefix")
    functions=$(sriov_functions "$prefix")
    pairs=$(
        {
            echo "$dummies" | sed -n 's/^./dummy &/p'
            echo "$functions" | sed -n 's/^./vf &/p'
            [ ! -r "$SRIOV_RUN/pairs" ] || sed 's/^/kept /' "$SRIOV_RUN/pairs"
        } | awk '
            $1 == "dummy" { dummy[++dummies] = $2; there[$2] = 1 }
            $1 == "vf" { vf[++vfs] = $2; device[$2] = $3 }
            $1 == "kept" && ($3 in there) { kept[$2] = $3 }
            END {
                whole = dummies == vfs
                for (k = 1; k <= vfs; k++) if (vf[k] in kept && kept[vf[k]] != dummy[k]) whole = 0
                for (k = 1; k <= vfs; k++) {
                    key = whole ? dummy[k] : kept[vf[k]]
                    if (key != "") print "pair", vf[k], key, device[vf[k]]
                    else waiting = 1
                }
                if (whole) for (k = 1; k <= vfs; k++) print "keep", vf[k], dummy[k]
                else for (pci in kept) if (kept[pci] != "") print "keep", pci, kept[pci]
                if (waiting || !whole) print "waits", dummies + 0, vfs + 0
            }'
    )
    # Written beside and renamed: another run may read it.
    if mkdir -p "$SRIOV_RUN" 2>/dev/null && echo "$pairs" | sed -n 's/^keep //p' >"$SRIOV_RUN/.pairs.$$" 2>/dev/null; then
        mv -f "$SRIOV_RUN/.pairs.$$" "$SRIOV_RUN/pairs"
    fi
    echo "$pairs" | while read -r what one two three; do
        case $what in
            pair)
                position=${two%%:*}
                kind=ethernet
                # ARPHRD_INFINIBAND of linux/if_arp.h.
                { read -r type <"$SRIOV_SYS/class/net/$three/type"; } 2>/dev/null && [ "$type" = 32 ] && kind=infiniband
                echo "$((0x$position)) $three $kind ${two#??:}"
                ;;
            waits) echo "kvm-sriov-guest: $one dummies and $two VFs: those whose other half is not known yet wait" >&2 ;;
        esac
    done
)

# The address that the last four bytes of a MAC carry.
sriov_address() (
    IFS=:
    # shellcheck disable=SC2086
    set -- $1
    echo "$((0x$1)).$((0x$2)).$((0x$3)).$((0x$4))"
)
