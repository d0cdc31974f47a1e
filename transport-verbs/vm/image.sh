#!/usr/bin/env bash
# Builds the virtual machine that transport-verbs is tested in: a Debian kernel with its RDMA stack and the Soft-RoCE
# driver, and an initrd that mounts the host's root. No root needed, nothing installed: packages are only unpacked.
#
#   vm/image.sh        prints the folder with `vmlinux` and `initrd.gz`, and makes them if they are not there
#
# Kept outside the repository, in ${KV_VM_CACHE:-${XDG_CACHE_HOME:-~/.cache}/kv-transport-vm}, one folder for each kernel
# and state of these scripts. Needs: apt-get, dpkg-deb, busybox (static), depmod, cpio, xz, gzip.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${KV_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kv-transport-vm}

# In this order. rdma_rxe asks for crc32 by the algorithm's name, so no dependency list has crc32_generic.
MODULES='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci 9pnet 9pnet_virtio netfs fscache 9p
    crc32_generic udp_tunnel ip6_udp_tunnel ib_core ib_uverbs rdma_rxe dummy veth sch_netem'

main() {
    local kernel name
    # The archive drops old kernels, so the version is never pinned here.
    kernel=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p' | sed -n 1p)
    [ -n "$kernel" ] || { echo 'no Debian kernel package is known here (apt-get update?)' >&2; exit 1; }
    name=$kernel-$(cat "$here/image.sh" "$here/init" | sha256sum | cut -c 1-12)
    if [ ! -f "$cache/$name/vmlinux" ]; then
        mkdir -p "$cache"
        work=$(mktemp -d "$cache/making.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        make_image "$kernel" >&2
        # Whole or not at all, and whoever made it first has made it.
        mv -T "$work/image" "$cache/$name" 2>/dev/null || [ -f "$cache/$name/vmlinux" ]
    fi
    echo "$cache/$name"
}

make_image() {
    local release
    mkdir "$work/tree" "$work/image"
    (cd "$work" && apt-get -q download "$1")
    dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$work/tree" --wildcards './boot/vmlinuz-*' './lib/modules/*.ko*'
    release=$(basename "$work"/tree/lib/modules/*)
    make_initrd "$work/tree/lib/modules/$release"
    extract_kernel "$work/tree/boot/vmlinuz-$release" >"$work/vmlinux"
    mv "$work/vmlinux" "$work/image/"
}

# The kernel without its decompressor: emulated, that would take three seconds of every start.
extract_kernel() {
    local start
    start=$(LC_ALL=C grep -obaP '\xfd7zXZ\x00' "$1" | LC_ALL=C sed -n '1s,:.*,,p')
    # What follows the compressed kernel is not read.
    xz -dc --single-stream < <(tail -c "+$((start + 1))" "$1")
}

# make_initrd MODULE_FOLDER: busybox, the modules, their order, and `init`.
make_initrd() {
    local root=$work/root name file
    mkdir -p "$root/bin" "$root/modules"
    cp "$(command -v busybox)" "$root/bin/busybox"
    for name in $MODULES; do
        file=$(find "$1" -name "$name.ko*" | sed -n 1p)
        # Compiled into the kernel, in some versions.
        [ -n "$file" ] || continue
        cp "$file" "$root/modules/"
        basename "$file" >>"$root/modules/order"
    done
    find "$root/modules" -name '*.xz' -exec xz -d {} +
    sed -i 's/\.xz$//' "$root/modules/order"
    install -m 755 "$here/init" "$root/init"
    (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1) >"$work/image/initrd.gz"
}

main
