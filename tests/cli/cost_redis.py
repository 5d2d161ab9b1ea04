#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What `percpu stat` adds to redis-server under redis-benchmark: its own CPU time, and requests per second, in turns.

usage: cost_redis.py PERCPU [RUNS [REQUESTS]]
"""
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

percpu = sys.argv[1]
runs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
requests = sys.argv[3] if len(sys.argv) > 3 else "100000"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def measure(prefix):
    """Seconds of CPU time of the server, and requests per second."""
    port = free_port()
    client = ["redis-cli", "-h", "127.0.0.1", "-p", port]
    with tempfile.TemporaryDirectory() as place, subprocess.Popen(
            [*prefix, "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--daemonize", "no", "--dir", place], stdout=subprocess.DEVNULL) as server:
        while subprocess.run([*client, "ping"], capture_output=True, check=False).returncode:
            time.sleep(0.02)

        def used():
            info = subprocess.run([*client, "info", "cpu"], capture_output=True, text=True, check=True).stdout
            return sum(float(t) for t in re.findall(r"used_cpu_(?:sys|user):([\d.]+)", info))
        before = used()
        out = subprocess.run(["redis-benchmark", "-h", "127.0.0.1", "-p", port, "-n", requests, "-r", "100000", "-t",
                              "set,get,lpush", "--csv"], capture_output=True, text=True, check=True).stdout
        cpu = used() - before
        subprocess.run([*client, "shutdown", "nosave"], check=True)
        server.wait()
    rates = [float(line.split(",")[1].strip('"')) for line in out.splitlines()[1:]]
    return cpu, statistics.harmonic_mean(rates)


commands = {"alone": [], "counted": [percpu, "stat", "-q", "--json", "/dev/null", "--"]}
results = {name: [] for name in commands}
for _ in range(runs):
    for name, command in commands.items():
        results[name].append(measure(command))
for name, values in results.items():
    cpu, rate = zip(*values)
    print(f"{name:<8} CPU seconds: median {statistics.median(cpu):.3f} best {min(cpu):.3f}   "
          f"requests/s: median {statistics.median(rate):.0f} best {max(rate):.0f}")
for text, choose in (("median", statistics.median), ("best", min)):
    ratio = choose([c for c, _ in results["counted"]]) / choose([c for c, _ in results["alone"]])
    print(f"CPU time counted / alone, {text}: {ratio:.4f}")
