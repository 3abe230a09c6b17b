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
    prefix=$(sriov_dummy_prefix) || return 1
    vfs=$(sriov_vfs 2>/dev/null)
    taken=" $(echo "$vfs" | cut -d ' ' -f 2 | tr '\n' ' ')"
    for nic in "$SRIOV_SYS"/class/net/*; do
        { read -r mac <"$nic/address"; } 2>/dev/null || continue
        device=${nic##*/} type=Ethernet
        case $mac in
            00:00:00:00:00:00) continue ;;
            "$prefix":0*) if ! sriov_is_dummy "$device" "$mac" "$prefix"; then continue; fi ;;
        esac
        case $mac in
            "$prefix":0[0-9a-f]:??:??:??:??)
                byte=${mac#???}
                position=$((0x${byte%%:*}))
                # Where the VF is known and is an Ethernet device, it has its own name.
                device=$(echo "$vfs" | awk -v position="$position" '$1 == position && $3 == "ethernet" {print $2}')
                [ -n "$device" ] || device=ib$position type=Infiniband
                ;;
            ??:??:??:??:??:??) case $taken in *" $device "*) continue ;; esac ;;
            *) continue ;;
        esac
        address=$(sriov_address "${mac#??:??:}")
        netmask=$(of_context "$address" MASK)
        echo "$device $type $address ${netmask:-255.255.255.0} $(of_context "$address" GATEWAY)"
    done
}
