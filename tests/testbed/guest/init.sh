#!/bin/sh
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#
# Second stage, process 1: reports to xtask, loads the RDMA stack, runs the job.
# /job/env says how, /job/cmd.sh is the command.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export GUEST=/project/tests/testbed/guest
export CONFORMANCE_BIN=/modules/conformance
export PATH="$GUEST/bin:$PATH:$CONFORMANCE_BIN"
# The checkout is read-only, and Python slow to compile the same again and again.
export PYTHONPYCACHEPREFIX=/tmp/pycache

mkdir -p /dev/pts /dev/shm /dev/virtio-ports
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
if [ -d /sys/kernel/mm/hugepages ]; then
	mkdir -p /dev/hugepages
	mount -t hugetlbfs hugetlbfs /dev/hugepages
fi

# udev would do this.
for port in /sys/class/virtio-ports/*; do
	ln -s "/dev/${port##*/}" "/dev/virtio-ports/$(cat "$port/name")"
done
exec 3> /dev/virtio-ports/testbed.control
echo ready >&3
echo "testbed: second stage" > /dev/kmsg
# Where the guest's time is its instructions, half a second may take the host a minute. No
# process each time: it would be measured.
mkfifo /run/beat
bash -c 'exec 4<> /run/beat; while ! read -r -t 0.5 -u 4; do echo beat; done' >&3 2>/dev/null &

# Of kmemleak's report, all but what fork and exec allocate: task_structs of programs
# that used the device stay behind with the kernel's own C modules just the same
# (tests/conformance/c-driver.md). How many goes to the kernel's log.
leaked() {
	awk '
	function flush() {
		if (process)
			left++
		else
			printf "%s", object
		object = ""
		process = 0
	}
	/^unreferenced object/ { flush() }
	/ (copy_process|bprm_execve)\+0x/ { process = 1 }
	{ object = object $0 "\n" }
	END {
		flush()
		if (left)
			print "testbed: " left " objects of ended processes are left" > "/dev/kmsg"
	}'
}

off() {
	# A write returns once QEMU has the bytes: nothing is lost by going now.
	echo o > /proc/sysrq-trigger
	# Process 1 must not end before that does; no program can be started any more.
	while :; do wait; done
}

fail() { # WHY
	# Ends the machine: what else there is to say comes first.
	echo "fail $1" >&3
	off
}

# A kernel whose IOMMU tells the device of each mapping flushes at once, whatever its
# command line says; a flush queue for one device it takes all the same.
be_lazy() {
	for device in /sys/bus/pci/devices/*; do
		[ "$(cat "$device/vendor")" = 0x15b3 ] || continue
		echo DMA-FQ > "$device/iommu_group/type" || return
	done
}

# Runs the job on a terminal of its own that is the user's: a port has no size, no signals
# and no line discipline. The window's size comes as rows and columns, at once and anew each
# time that it changes.
on_terminal() {
	export TERM="$terminal"
	infocmp > /dev/null 2>&1 || TERM=linux
	echo mlx5-odp > /proc/sys/kernel/hostname
	exec 4< /dev/virtio-ports/testbed.window 5<> /dev/virtio-ports/testbed.terminal
	read -r rows columns <&4
	while read -r rows columns; do
		stty -F "$(cat /run/terminal)" rows "$rows" columns "$columns"
	done <&4 &
	script --quiet --return --echo always --log-out /dev/null --command "
		tty > /run/terminal
		stty rows $rows columns $columns
		exec sh /job/cmd.sh" \
		<&5 >&5 2>&5
}

. /job/env
ip link set lo up

# Modules for another kernel than the root's come with the job.
if [ -d "/modules/lib/$(uname -r)" ]; then
	mkdir -p "/lib/modules/$(uname -r)"
	mount --bind "/modules/lib/$(uname -r)" "/lib/modules/$(uname -r)"
fi

# No udev, but the kernel itself may ask for a module: whatever it is, not one
# that would bring in the other ib_core, nor IPoIB.
mkdir -p /etc/modprobe.d
printf 'blacklist %s\n' ib_ipoib mlx5_ib mlx4_ib > /etc/modprobe.d/testbed.conf

# Of what the boot itself lost there is nothing to learn. No scan but ours.
leaks=/sys/kernel/debug/kmemleak
if [ -e $leaks ]; then
	echo scan=off > $leaks
	echo clear > $leaks
fi

if [ "$lazy" = 1 ]; then
	be_lazy || fail "the device's IOMMU group takes no flush queue"
fi
if [ "$load" = 1 ] && ! rdma-stack load "$odp" > /tmp/load.log 2>&1; then
	cat /tmp/load.log > /dev/virtio-ports/testbed.stderr
	fail "cannot load the RDMA stack: $(tail -n 1 /tmp/load.log)"
fi
echo loaded >&3
echo "testbed: job" > /dev/kmsg
cd /root || exit
if [ "$on_terminal" = 1 ]; then
	on_terminal
else
	sh /job/cmd.sh < /dev/null \
		> /dev/virtio-ports/testbed.stdout 2> /dev/virtio-ports/testbed.stderr
fi
status=$?

# The debug kernel: what nobody refers to any more is a leak.
if [ -e $leaks ]; then
	# Twice: what was allocated just now is not reported at first.
	echo scan > $leaks
	sleep 6
	echo scan > $leaks
	if leaked < $leaks | grep . > /dev/virtio-ports/testbed.stderr; then
		fail "kmemleak found unreferenced objects"
	fi
fi
echo "exit $status" >&3
off
