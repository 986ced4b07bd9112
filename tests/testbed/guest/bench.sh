#!/bin/sh
# SPDX-License-Identifier: GPL-2.0 OR Linux-OpenIB
#
# The guest's part of `cargo xtask bench`.
#
#   bench.sh ROUNDS SYMBOLS LINE...
#
# Runs odp_bench for each line, in a process of its own, so that one that fails costs no
# other. SYMBOLS is 1 if the kernel's symbols are to follow.

rounds=$1 symbols=$2
shift 2

for try in $(seq 100); do
	grep -q ACTIVE /sys/class/infiniband/mlx5_0/ports/1/state && break
	sleep 0.1
done

profiles=0
for line; do
	echo "{\"event\":\"start\",\"line\":\"$line\"}"
	/modules/conformance/odp_bench --dev mlx5_0 --rounds "$rounds" --profiles "$profiles" \
		"$line" > /tmp/bench.out
	status=$?
	cat /tmp/bench.out
	echo "{\"event\":\"end\",\"line\":\"$line\",\"status\":$status}"
	profiles=$((profiles + $(grep -c '"profile"' /tmp/bench.out)))
done
[ "$symbols" = 0 ] || grep -i ' [tw] ' /proc/kallsyms
