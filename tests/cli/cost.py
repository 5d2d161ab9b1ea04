#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What `percpu stat` adds to a call, in nanoseconds: tight loops with and without it, in turns.

usage: cost.py PERCPU COST [RUNS]
"""
import subprocess
import sys

percpu, cost = sys.argv[1:3]
runs = int(sys.argv[3]) if len(sys.argv) > 3 else 5
commands = {"alone": [cost], "counted": [percpu, "stat", "-q", "--json", "/dev/null", "--", cost]}
best = {name: {} for name in commands}

for _ in range(runs):
    for name, command in commands.items():
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        for line in out.splitlines():
            loop, ns = line.split()
            best[name][loop] = min(best[name].get(loop, 1e30), float(ns))

print(f"{'loop':<20} {'alone':>8} {'counted':>8} {'added':>8} {'ratio':>6}   (ns per call, best of {runs} runs)")
for loop, alone in best["alone"].items():
    counted = best["counted"][loop]
    print(f"{loop:<20} {alone:8.2f} {counted:8.2f} {counted - alone:8.2f} {counted / alone:6.2f}")
