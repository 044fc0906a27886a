#!/bin/sh
# Installs what the lab needs and is not there: on Debian and its like, as root or with sudo.
set -eu

root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

exists() {
    for path; do
        [ -e "$path" ] && return
    done
    return 1
}

program() {
    command -v "$1" >/dev/null 2>&1 || exists "/usr/sbin/$1"
}

# Each line: how to tell that it is there, and the package that brings it.
needed() {
    program qemu-system-x86_64 || echo qemu-system-x86
    exists /usr/share/seabios/bios-256k.bin || echo seabios
    program libvirtd || echo libvirt-daemon-system
    exists /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so || echo libvirt-daemon-driver-qemu
    exists /usr/include/libvirt/libvirt.h || echo libvirt-dev
    program pkg-config || echo pkg-config
    exists /usr/share/doc/busybox-static || echo busybox-static
    program gcc || echo gcc
    program gdb || echo gdb
    program makedumpfile || echo makedumpfile
    exists /usr/include/stdio.h || echo libc6-dev
    exists /usr/include/linux/if_tun.h || echo linux-libc-dev
    program mkfs.ext4 || echo e2fsprogs
    program zstd || echo zstd
    exists /usr/share/keyrings/debian-archive-keyring.gpg || echo debian-archive-keyring
    python=$("${0%/*}/python.sh" 2>/dev/null) || { echo python3 && python=python3; }
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    # libvirt's Python binding is compiled for the interpreter that the virtual environment is made from
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        echo python3-dev
}

packages=$(needed)
[ -n "$packages" ] || exit 0
# shellcheck disable=SC2086  # each word is a package
echo "lab: installing" $packages
root apt-get update -q
# shellcheck disable=SC2086
root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
