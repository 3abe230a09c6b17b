#!/bin/bash
# stock.sh ACTION URI DOMAIN [ARG]: starts the programs that OpenNebula's stock KVM driver starts for an action, in its order, and
# does nothing else: what the driver computes between them costs next to nothing. Standard input as for the driver.
#
# Source: the calls of virsh, xmllint and ruby in src/vmm_mad/remotes/kvm of OpenNebula 7 (docs/reference/actions.md says what
# each action does). Its helper that reads XML is a Ruby program with REXML, which `xpath` stands for.
set -eu
action=$1 uri=$2 domain=$3 arg=${4-}

virsh() { command virsh --connect "$uri" "$@"; }
xpath() { ruby -r rexml/document -r getoptlong -e 'REXML::Document.new(STDIN.read)'; }
data() { if [ "$1" = yes ]; then xpath </dev/null; fi; }

case $action in
    deploy)
        file=$(mktemp)
        trap 'rm -f "$file"' EXIT
        cat >"$file"
        xmllint --xpath '//disk/source/@file' "$file" >/dev/null 2>&1 || true
        xmllint --xpath '/domain/os/nvram/text()' "$file" >/dev/null 2>&1 || true
        xmllint --xpath 'string(/domain/os/nvram/@format)' "$file" >/dev/null 2>&1 || true
        virsh create "$file"
        xmllint --xpath '/domain/name/text()' "$file" >/dev/null
        virsh dominfo "$domain" | awk '/UUID:/ {print $2}'
        ;;
    cancel)
        virsh --readonly dominfo "$domain"
        virsh destroy "$domain"
        virsh --readonly dominfo "$domain" 2>/dev/null || true
        ;;
    save)
        virsh save "$domain" "$arg"
        data yes
        ;;
    reboot | reset) virsh "$action" "$domain" ;;
    shutdown)
        virsh dumpxml "$domain" | xpath
        virsh --readonly dominfo "$domain"
        virsh dumpxml "$domain" | grep -q acpi || true
        virsh shutdown "$domain"
        virsh --readonly dominfo "$domain" 2>/dev/null || true
        ;;
    snapshot_create)
        virsh metadata "$domain" http://opennebula.org/xmlns/libvirt/1.0 one | xpath
        virsh snapshot-create-as "$domain" --name "$arg"
        virsh snapshot-dumpxml "$domain" "$arg" >/dev/null
        ;;
    snapshot_revert) virsh snapshot-revert --force "$domain" "$arg" ;;
    snapshot_delete)
        virsh metadata "$domain" http://opennebula.org/xmlns/libvirt/1.0 one | xpath
        virsh snapshot-delete "$domain" "$arg"
        virsh snapshot-list "$domain" >/dev/null
        ;;
    resize)
        data yes
        virsh setmem "$domain" "$arg"
        ;;
    *)
        echo "stock.sh: no action $action" >&2
        exit 2
        ;;
esac
