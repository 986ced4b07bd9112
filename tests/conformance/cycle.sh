#!/bin/sh
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#
# Loads our modules, runs traffic, unloads them, many times over.
#
#   cycle.sh [COUNT [STACK]]      (20 times, the stack "rust" of rdma-stack)
#
# One JSON line per cycle, one for the end. mlx5_core is not ours and stays, with the
# completion EQs that it makes for its first user: after each unload the device must hold
# what it held after the first one, no PD, CQ, QP or MKey among it; in the end, without
# mlx5_core, nothing. The kernel's log may hold no new splat.

count=${1:-20}
stack=${2:-rust}
bin=${CONFORMANCE_BIN:-$(dirname "$0")}
port=/dev/virtio-ports/connectx.control

objects() {
	if [ -e "$port" ]; then
		"$bin/odp_control" '{"cmd":"objects"}'
	else
		echo '{}'
	fi
}

splats() {
	dmesg | grep -c -E 'WARNING:|BUG:|Call Trace|Oops|refcount_t'
}

# All but mlx5_core; repeats because users go before what they use.
unload() {
	moved=1
	while [ "$moved" = 1 ]; do
		moved=0
		for module in mlx5_ib rdma_rxe rdma_ucm rdma_cm ib_umad ib_uverbs ib_cm iw_cm \
			ib_uverbs_support ib_core; do
			[ -d "/sys/module/$module" ] && rmmod "$module" 2>/dev/null && moved=1
		done
	done
	[ ! -d /sys/module/ib_core ] || { lsmod | grep '^ib_core'; return 1; }
}

traffic() { # DEV
	tries=0
	# The port needs a moment to become ACTIVE.
	while ! grep -q ACTIVE "/sys/class/infiniband/$1/ports/1/state" && [ "$tries" -lt 100 ]; do
		tries=$((tries + 1))
		sleep 0.1
	done
	"$bin/odp_traffic" --dev "$1" --size 4M --min-faults 1
}

report() { # NAME EXTRA DETAIL
	ok=true
	[ -z "$3" ] || { ok=false failed=1; }
	detail=$(printf '%s' "$3" | tr '"\n\\' "' /")
	echo "{\"test\":\"$1\",$2\"ok\":$ok,\"detail\":\"$detail\"}"
}

failed=0
rdma-stack unload || exit 2
baseline=
splats_before=$(splats)
cycle=0
while [ "$cycle" -lt "$count" ] && [ "$failed" = 0 ]; do
	cycle=$((cycle + 1))
	detail=
	faults=0
	if log=$(rdma-stack load "$stack" 2>&1); then
		log=$(traffic "$(ls /sys/class/infiniband | head -n 1)" 2>&1) ||
			detail="traffic: $log"
		faults=$(echo "$log" | grep -o '"faults":[0-9]*' | cut -d: -f2 |
			awk '{ n += $1 } END { print n + 0 }')
	else
		detail="load: $log"
	fi
	log=$(unload 2>&1) || detail="$detail unload: $log"
	left=$(objects)
	baseline=${baseline:-$left}
	if [ "$left" != "$baseline" ] ||
		echo "$left" | grep -q -E '"(cq|mkey|pd|qp|stall)": ?[1-9]'; then
		detail="$detail left in the device: $left, after the first cycle $baseline"
	fi
	[ "$(splats)" = "$splats_before" ] || detail="$detail splat in the kernel's log"
	report cycle "\"cycle\":$cycle,\"faults\":$faults," "$detail"
done
detail=
log=$(rdma-stack unload 2>&1) || detail="unload: $log"
left=$(objects)
echo "$left" | grep -q ':[ ]*[1-9]' && detail="$detail left in the device: $left"
report cycles "\"cycles\":$cycle," "$detail"
exit "$failed"
