# shellcheck shell=sh
# Read at the end of loc-10-network.d/functions of OpenNebula's context packages, which every renderer reads (see docs/guest.md).

# Prints "device MAC" for each Ethernet link, as the function that it replaces does; but a VF has the MAC that the context
# knows, and a dummy is left out. So a renderer configures the VF, and the dummy stays down and without an address.
get_interface_mac() (
    SRIOV_LIB=${SRIOV_LIB:-/usr/lib/kvm-sriov-guest}
    # shellcheck source=guest/vfs.sh
    . "$SRIOV_LIB/vfs.sh"
    prefix=$(sriov_dummy_prefix) || prefix=none
    vfs=$(sriov_vfs)
    taken=" $(echo "$vfs" | cut -d ' ' -f 2 | tr '\n' ' ')"
    for nic in "$SRIOV_SYS"/class/net/*; do
        { read -r type <"$nic/type" && read -r mac <"$nic/address"; } 2>/dev/null || continue
        # ARPHRD_ETHER of linux/if_arp.h.
        [ "$type" = 1 ] || continue
        if sriov_is_dummy "${nic##*/}" "$mac" "$prefix"; then continue; fi
        case $taken in *" ${nic##*/} "*) continue ;; esac
        echo "${nic##*/} $mac"
    done
    context=$(env | sed -n 's/^ETH[0-9][0-9]*_MAC=//p')
    echo "$vfs" | while read -r _ device _ bytes; do
        [ -z "$device" ] || for mac in $context; do
            # As the context writes it: get_dev compares as it is.
            case $(sriov_lower "$mac") in ??:??:"$bytes") echo "$device $mac" ;; esac
        done
    done
)
