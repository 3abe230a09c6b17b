# shellcheck shell=sh
# What both 00-network scripts share. The rule is that of the OpenNebula KVM SR-IOV Driver (see NOTICE): where a MAC begins with
# the dummies' prefix, the device is ib<position>.

lib=${SRIOV_LIB:-/usr/lib/kvm-sriov-guest}
# shellcheck source=guest/vfs.sh
. "$lib/vfs.sh"

# IP NAME: what the context says of the NIC with this address (ETH<n>_<NAME>).
of_context() (
    for nic in $(env | sed -n 's/^\(ETH[0-9][0-9]*\)_IP=.*/\1/p'); do
        eval "ip=\$${nic}_IP"
        # shellcheck disable=SC2154
        [ "$ip" != "$1" ] || eval "echo \"\$${nic}_$2\""
    done
)

# One line for each NIC that carries an address: device, type, address, netmask, and the gateway where there is one.
networks() {
    sriov_look || return 1
    for nic in "$SRIOV_SYS"/class/net/*; do
        { read -r mac <"$nic/address"; } 2>/dev/null || continue
        device=${nic##*/} type=Ethernet
        # What is made of other devices (bridges, bonds, a container's veth) has no address of its own in its MAC.
        case $(readlink "$nic") in */virtual/*) continue ;; esac
        bytes=${mac#??:??:}
        key=$(echo "$judged" | awk -v device="$device" '$1 == "dummy" && $2 == device {print $3}')
        if [ -n "$key" ]; then
            position=$((0x${key%%:*})) bytes=${key#??:}
            # Where the VF is known and is an Ethernet device, it has its own name.
            device=$(echo "$judged" | awk -v key="$key" '$1 == "pair" && $3 == key && $5 == "ethernet" {print $4}')
            [ -n "$device" ] || device=ib$position type=Infiniband
        elif echo "$judged" | awk -v device="$device" '$1 == "pair" && $4 == device {found = 1} END {exit !found}'; then
            continue
        fi
        case $mac in 00:00:00:00:00:00) continue ;; ??:??:??:??:??:??) ;; *) continue ;; esac
        address=$(sriov_address "$bytes")
        netmask=$(of_context "$address" MASK)
        echo "$device $type $address ${netmask:-255.255.255.0} $(of_context "$address" GATEWAY)"
    done
}
