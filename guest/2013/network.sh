# shellcheck shell=sh
# The common part of both 00-network scripts. The rule comes from the OpenNebula KVM SR-IOV Driver (see NOTICE): if a
# MAC begins with the dummies' prefix, the device is ib<position>.

lib=${SRIOV_LIB:-/usr/lib/kvm-sriov-guest}
# shellcheck source=guest/vfs.sh
. "$lib/vfs.sh"

# IP NAME: the value of ETH<n>_<NAME> in the context, for the NIC with this address.
of_context() (
    for nic in $(env | sed -n 's/^\(ETH[0-9][0-9]*\)_IP=.*/\1/p'); do
        eval "ip=\$${nic}_IP"
        # shellcheck disable=SC2154
        [ "$ip" != "$1" ] || eval "echo \"\$${nic}_$2\""
    done
)

# Prints a line for each NIC whose MAC carries an address: device, type, address, netmask, and the gateway if there is
# one.
networks() {
    sriov_look || return 1
    for nic in "$SRIOV_SYS"/class/net/*; do
        { read -r mac <"$nic/address"; } 2>/dev/null || continue
        device=${nic##*/} type=Ethernet
        # A device that is made of others (a bridge, a bond, a container's veth) carries no address in its MAC.
        case $(readlink "$nic") in */virtual/*) continue ;; esac
        bytes=${mac#??:??:}
        key=$(echo "$judged" | awk -v device="$device" '$1 == "dummy" && $2 == device {print $3}')
        if [ -n "$key" ]; then
            position=$((0x${key%%:*})) bytes=${key#??:}
            # A known Ethernet VF has a name of its own.
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
