#!/bin/sh
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#
# Loads our modules, runs traffic, unloads them, many times over.
#
#   cycle.sh [COUNT [STACK]]      (20 times, the stack "rust" of rdma-stack)
#
# One JSON line per cycle. After each unload no object may be left in the device, and
# the kernel's log may hold no new splat.

count=${1:-20}
stack=${2:-rust}
here=$(cd "$(dirname "$0")" && pwd)
bin=${CONFORMANCE_BIN:-$here}
port=/dev/virtio-ports/connectx.control
failed=0

objects() {
	[ -e "$port" ] || { echo "{}"; return; }
	PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1 python3 -c \
		'import conformance, json; print(json.dumps(conformance.control(cmd="objects")))'
}

splats() {
	dmesg | grep -c -E 'WARNING:|BUG:|Call Trace|Oops|refcount_t'
}

splats_before=$(splats)
cycle=0
while [ "$cycle" -lt "$count" ]; do
	cycle=$((cycle + 1))
	detail=
	log=$(rdma-stack load "$stack" 2>&1) || detail="load: $log"
	dev=$(ls /sys/class/infiniband 2>/dev/null | head -n 1)
	faults=null
	if [ -z "$detail" ]; then
		# The port needs a moment to become ACTIVE.
		tries=0
		while ! grep -q ACTIVE "/sys/class/infiniband/$dev/ports/1/state" &&
			[ "$tries" -lt 100 ]; do
			tries=$((tries + 1))
			sleep 0.1
		done
		log=$("$bin/odp_traffic" --dev "$dev" --size 4M 2>&1) || detail="traffic: $log"
		faults=$(echo "$log" | grep -o '"faults":[0-9]*' | cut -d: -f2 |
			awk '{ n += $1 } END { print n + 0 }')
		[ "$faults" -gt 0 ] || [ -n "$detail" ] || detail="no fault in the traffic"
	fi
	log=$(rdma-stack unload 2>&1) || detail="$detail unload: $log"
	left=$(objects)
	echo "$left" | grep -q '[1-9]' && detail="$detail left in the device: $left"
	[ "$(splats)" = "$splats_before" ] || detail="$detail splat in the kernel's log"
	ok=true
	if [ -n "$detail" ]; then
		ok=false
		failed=1
	fi
	detail=$(printf '%s' "$detail" | tr '"\n\\' "' /")
	echo "{\"test\":\"cycle\",\"cycle\":$cycle,\"faults\":$faults,\"objects\":$left,\"ok\":$ok,\"detail\":\"$detail\"}"
	[ "$ok" = true ] || break
done
exit "$failed"
