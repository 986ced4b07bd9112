#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#
# First stage: mounts the Debian root of the cache, read-only under a tmpfs, and
# hands over to init.sh of the checkout.

alias mount='/bin/busybox mount' mkdir='/bin/busybox mkdir'
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/m/$module"; done < /m/order

share() { # TAG MOUNTPOINT OPTIONS
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,ro,$3" "$1" "$2"
}
share root /ro cache=loose
mount -t tmpfs rw /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work root /new
share project /new/project cache=mmap
share modules /new/modules cache=mmap
mkdir /new/job
/bin/busybox cp /job/* /new/job/
for dir in dev proc sys; do mount --move "/$dir" "/new/$dir"; done
exec /bin/busybox switch_root /new /bin/sh /project/tests/testbed/guest/init.sh
