# shellcheck shell=sh
# The last line of loc-10-network.d/functions of OpenNebula's context packages reads this file; every renderer reads
# those functions (see docs/howto/guest.md).

# Prints "device MAC" for each Ethernet link, as the function of that name in the same file does. But a VF gets the MAC
# of the context, and a dummy is left out. So a renderer configures the VF, and the dummy stays down and has no address.
if [ -z "${sriov_original:-}" ]; then
    get_interface_mac() (
        lib=${SRIOV_LIB:-/usr/lib/kvm-sriov-guest} judged=
        if [ -r "$lib/vfs.sh" ]; then
            # shellcheck source=guest/vfs.sh
            . "$lib/vfs.sh"
            sriov_look || judged=
        fi
        # The original is read from its file each time, so an upgrade of the context package takes effect.
        sriov_original=yes
        # shellcheck disable=SC1091
        . "${SRIOV_CONTEXT:-/etc/one-context.d}/loc-10-network.d/functions"
        case $judged in dummy\ *) ;; *) get_interface_mac; exit ;; esac
        { echo "$judged" && echo original && get_interface_mac; } | awk '
            # A device that belongs to no NIC of the context is not changed.
            BEGIN { for (name in ENVIRON) if (name ~ /^ETH[0-9]+_MAC$/) wanted[tolower(substr(ENVIRON[name], 7))] = 1 }
            !original && $1 == "dummy" && substr($3, 4) in wanted { drop[$2] = 1 }
            !original && $1 == "pair" && substr($3, 4) in wanted { vf[++vfs] = $4; tail[$4] = substr($3, 4) }
            original { line[++lines] = $0; if (!($1 in tail)) borne[$2] = 1 }
            $0 == "original" { original = 1 }
            # Prints the MAC as the context writes it, because get_dev compares the text. If NICs of two networks have
            # the same last four bytes, the NIC whose MAC another device has is passed over.
            function configure(device,    name, strict, found) {
                for (strict = 1; strict >= 0 && !found; strict--)
                    for (name in ENVIRON) if (name ~ /^ETH[0-9]+_MAC$/ && tolower(substr(ENVIRON[name], 7)) == tail[device]) {
                        if (strict && tolower(ENVIRON[name]) in borne) continue
                        print device, ENVIRON[name]
                        found = 1
                    }
                done[device] = 1
            }
            END {
                for (k = 1; k <= lines; k++) {
                    split(line[k], word, " ")
                    if (word[1] in drop || word[1] in done) continue
                    if (word[1] in tail) configure(word[1])
                    else print line[k]
                }
                # An IPoIB device is no Ethernet link, so OpenNebula does not list it.
                for (k = 1; k <= vfs; k++) if (!(vf[k] in done)) configure(vf[k])
            }'
    )
fi
