#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""percpu bench as an interface: names, JSON, refusals, files that cannot be written. Never how fast anything is.

Usage: bench.py PERCPU results|skipped|refused|lost|plot|malloc|malloc-broken [BROKEN_MALLOC]
Exits with 77 when what a group needs is not installed.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

PERCPU = os.path.abspath(sys.argv[1])
BROKEN = os.path.abspath(sys.argv[3]) if len(sys.argv) > 3 else None
SHORT = ["--quick", "--seconds", "0.05"]
NAMES = {
    "cpu_number": {"percpu", "raw_field", "sched_getcpu", "getcpu_vdso", "getcpu_syscall"},
    "counter_add": {"percpu", "plain", "tls", "getcpu_atomic", "shared_atomic", "mutex"},
    "stack_pair": {"percpu", "plain_add", "index_outside", "index_outside_tuned", "mutex", "lockfree", "getcpu_lockfree", "ck_stack"},
    "runqueue_pair": {"percpu", "percpu_front", "plain_add", "mutex", "getcpu_mutex", "getcpu_ck_stack", "getcpu_ck_fifo",
                      "getcpu_lfstack", "getcpu_wfcqueue"},
    "runqueue_steal": {"percpu", "mutex", "ck_stack", "wfcqueue"},
    "ring_record_16": {"percpu", "percpu_overwrite", "plain", "byte_copy", "getcpu_atomic", "mutex"},
    "ring_record_64": {"percpu", "percpu_overwrite", "plain", "byte_copy", "getcpu_atomic", "mutex"},
    "ring_pointer_pair": {"percpu", "percpu_one_consumer", "percpu_batch", "ck_ring_spsc", "ck_ring_mpsc", "wfcqueue"},
    "c_section_pair": {"percpu", "builtin"},
    "histogram_record": {"percpu", "plain", "getcpu_atomic", "mutex"},
    "mutex_pair": {"percpu", "pthread_mutex", "pthread_adaptive", "pthread_spin"},
    "mutex_50ns": {"percpu", "pthread_mutex", "pthread_adaptive", "pthread_spin"},
    "mutex_1us": {"percpu", "pthread_mutex", "pthread_adaptive", "pthread_spin"},
    "mutex_crowd": {"percpu", "pthread_mutex", "pthread_adaptive", "pthread_spin"},
    "eventcount_notify": {"percpu", "percpu_waitqueue", "pthread_cond"},
    "eventcount_turns": {"percpu", "percpu_waitqueue", "pthread_cond"},
    "eventcount_herd": {"percpu", "percpu_waitqueue", "pthread_cond"},
    "rwlock_read_pair": {"percpu", "pthread_rwlock", "bravo", "plain_add"},
    "rwlock_write_pair": {"percpu", "pthread_rwlock", "bravo"},
    "ref_pair": {"percpu", "shared_atomic", "thread_atomic", "plain_add"},
    "ref_kill": {"percpu"},
    "rcu_read_pair": {"percpu", "percpu_domain", "percpu_rwlock", "urcu_memb", "urcu_bp", "urcu_qsbr", "urcu_mb",
                      "pthread_rwlock"},
    "rcu_synchronize": {"percpu", "percpu_expedited", "percpu_domain", "fence", "urcu_memb", "urcu_bp", "urcu_qsbr",
                        "urcu_mb"},
    "rcu_call": {"percpu", "percpu_defer", "urcu_memb", "urcu_bp", "urcu_qsbr", "urcu_mb"},
    "fence": {"percpu", "percpu_cpu", "membarrier_syscall", "membarrier_private_expedited",
              "membarrier_global_expedited"},
    "opv": {"percpu", "mutex"},
    "pool_pair": {"percpu", "plain_add", "malloc", "mutex", "tls_cache", "ck_stack"},
    "pool_bulk": {"percpu", "singly", "malloc", "mutex", "tls_cache"},
    "seqdata_read": {"percpu", "plain", "version", "cached", "seqlock", "rwlock", "mutex"},
    "perf_read": {"percpu", "percpu_page", "syscall"},
    "timed_pair": {"percpu", "ticks", "clock_gettime", "getrusage"},
    "spinlock_pair": {"percpu", "pthread_spin", "pthread_spin_percpu", "pthread_mutex"},
    "spinlock_remote": {"percpu", "percpu_biased", "percpu_all", "pthread_spin"},
    "slow_path": {"percpu", "percpu_gate", "percpu_remainder", "counter_remainder"},
}
# In so many threads, whatever is asked for.
THREADS = {"mutex_50ns": [2], "mutex_1us": [2], "mutex_crowd": [16], "eventcount_turns": [2], "eventcount_herd": [8]}
# Where libpercpu-libc was built.
LIBC = {name: {"percpu", "glibc"} for name in (
    "localtime_r", "localtime_r_summer", "localtime", "mktime", "dl_iterate_phdr", "dl_iterate_phdr_all", "dladdr",
    "gettext", "pthread_getattr_default_np", "thread_create")}
if "localtime_r:" in subprocess.run([PERCPU, "bench", "--list"], stdout=subprocess.PIPE, text=True, check=False).stdout:
    NAMES |= LIBC
# Only when asked for: not in a run of everything.
ALLOCATORS = {"percpu", "glibc", "jemalloc", "mimalloc", "gperftools"}
MALLOC = {
    **{f"malloc_pair_{size}": ALLOCATORS | {"floor"} for size in (16, 64, 512, 4096)},
    **{f"malloc_{name}": ALLOCATORS for name in (
        "random", "larson", "producer_consumer", "burst", "threads_8", "threads_100", "threads_1000", "fragmentation",
        "realloc", "calloc_large", "startup", "redis_set", "redis_get", "redis_memory")},
}

os.chdir(tempfile.mkdtemp(prefix="percpu-bench-"))
failures = 0


def check(truth, what):
    global failures
    if not truth:
        failures += 1
        print("FAILED:", what)


def bench(*args, env=None, stdout=subprocess.PIPE, percpu=PERCPU):
    environment = dict(os.environ, **(env or {}))
    return subprocess.run([percpu, "bench", *args], stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment,
                          timeout=280, check=False)


def check_cells(text, names, threads):
    cells = json.loads(text)
    check(isinstance(cells, list), "the JSON is an array")
    seen = [(c["bench"], c["subject"], c["threads"]) for c in cells]
    wanted = {(b, s, t) for b in names for s in NAMES[b] for t in THREADS.get(b, threads)}
    check(len(seen) == len(set(seen)), "each cell is there once")
    check(set(seen) == wanted, f"all cells: missing {wanted - set(seen)}, too many {set(seen) - wanted}")
    for cell in cells:
        if "skipped" in cell:
            check(set(cell) == {"bench", "subject", "threads", "skipped"}, f"keys of {cell}")
            check(isinstance(cell["skipped"], str) and len(cell["skipped"]) > 10, f"the reason in {cell}")
            check(cell["subject"] != "percpu" or cell["bench"] == "gettext", f"ours is never skipped, but for want of a locale: {cell}")
        else:
            keys = {"bench", "subject", "threads", "best_ns", "median_ns"}
            if cell["bench"] in {"mutex_50ns", "mutex_1us", "mutex_crowd"}:
                keys |= {"p999_ns", "max_per_min"}
                check(cell["p999_ns"] > 0 and cell["max_per_min"] >= 1, f"numbers in {cell}")
            check(set(cell) == keys, f"keys of {cell}")
            check(isinstance(cell["best_ns"], float) and isinstance(cell["median_ns"], float), f"numbers in {cell}")
            check(0 < cell["best_ns"] <= cell["median_ns"] < 1e9, f"times in {cell}")
    return {(c["bench"], c["subject"]): c.get("skipped") for c in cells}


def one_line(result, status, *words):
    what = f"{result.args[2:]}: status {result.returncode}, {result.stderr!r}"
    check(result.returncode == status, f"exit status {status} from {what}")
    check(result.stderr.startswith("percpu: ") and result.stderr.count("\n") == 1, f"one line from {what}")
    for word in words:
        check(word in result.stderr, f"'{word}' in {what}")


def results():
    with open("all.json", "w") as old:
        old.write("x" * 100000)
    run = bench(*SHORT, "--threads", "3", "--json", "all.json")
    check(run.returncode == 0 and run.stderr == "", f"a run of everything: {run.returncode} {run.stderr}")
    with open("all.json") as file:
        check_cells(file.read(), NAMES, [1, 2, 3])
    lines = [line.split() for line in run.stdout.splitlines()]
    for name, subjects in NAMES.items():
        for subject in subjects:
            check(any(line[:2] == [name, subject] for line in lines), f"{name} {subject} in the table")
    check("7.7x" in run.stdout and "53.9" in run.stdout, "what was published in the table")

    run = bench(*SHORT, "--threads", "1", "--json", "-", "opv", "counter_add", "opv")
    check(run.returncode == 0, "chosen benches")
    check_cells(run.stdout, ["opv", "counter_add"], [1])

    run = bench("--list")
    check(run.returncode == 0 and all(name + ":" in run.stdout for name in [*NAMES, *MALLOC]), "--list")
    run = bench("--help")
    check(run.returncode == 0 and "--plot" in run.stdout, "--help")


def skipped():
    """Rivals that need the C library's registration, without it; and everything without sections."""
    own = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
    raw = [("cpu_number", "raw_field")]
    outside = [("stack_pair", "index_outside"), ("stack_pair", "index_outside_tuned"), ("ring_record_16", "byte_copy"),
               ("ring_record_64", "byte_copy")]
    for env, gone in (own, raw), (dict(own, PERCPU_RSEQ="off"), raw + outside):
        run = bench(*SHORT, "--threads", "2", "--json", "some.json", env=env)
        check(run.returncode == 0 and run.stderr == "", f"{env}: {run.returncode} {run.stderr}")
        with open("some.json") as file:
            reasons = check_cells(file.read(), NAMES, [1, 2])
        for cell in gone:
            check(reasons[cell], f"{env}: {cell} is skipped")
            check(f"not measured: {cell[0]} {cell[1]}: " in run.stdout, f"{env}: the table tells why {cell} is missing")
    check(not reasons["counter_add", "plain"], "what can run anywhere is not skipped")


def refused():
    one_line(bench("counter_add", "nosuch"), 2, "nosuch", *NAMES, *MALLOC)
    for number in "0", "1025", "-1", "2.5", "two", "":
        one_line(bench("--threads", number), 2, "1 to 1024")
    for number in "0", "-1", "nan", "inf", "1x", "":
        one_line(bench("--seconds", number), 2, "--seconds")
    one_line(bench("--nosuch"), 2, "--nosuch")
    one_line(bench("--json"), 2, "--json")
    for name in "plot.pdf", "plot", "dir.svg/plot", "svg":
        one_line(bench("--plot", name), 2, ".svg or .png", name)
        check(not os.path.exists(name), f"{name} was not made")
    # Before the first measurement: these would take minutes.
    for option, name in ("--json", "missing/x.json"), ("--plot", "missing/x.png"), ("--json", "."):
        one_line(bench("--seconds", "3000", option, name), 1, name)


def lost():
    """Results that cannot be delivered: told, never a crash."""
    short = [*SHORT, "--threads", "1", "counter_add"]
    os.symlink("/dev/full", "full.json")
    one_line(bench(*short, "--json", "full.json"), 1, "full.json", "No space left")
    with open("/dev/full", "w") as full:
        one_line(bench(*short, stdout=full), 1, "standard output", "No space left")
        one_line(bench(*short, "--json", "-", stdout=full), 1, "standard output", "No space left")
        check(bench("--list", stdout=full).returncode == 1, "--list on a full disk")
    reader, writer = os.pipe()
    os.close(reader)
    run = bench(*short, "--json", "piped.json", stdout=writer)
    os.close(writer)
    check(run.returncode == 1 and run.stderr == "", f"a closed pipe: {run.returncode} {run.stderr}")
    with open("piped.json") as file:
        check_cells(file.read(), ["counter_add"], [1])

    os.mkdir("bin")
    run = bench(*short, "--json", "noplot.json", "--plot", "noplot.svg", env={"PATH": os.path.abspath("bin")})
    one_line(run, 1, "gnuplot")
    with open("noplot.json") as file:
        check_cells(file.read(), ["counter_add"], [1])
    for script in "exit 3", "exit 0", "kill -9 $$":
        with open("bin/gnuplot", "w") as file:
            file.write(f"#!/bin/sh\n{script}\n")
        os.chmod("bin/gnuplot", 0o755)
        one_line(bench(*short, "--plot", "noplot.svg", env={"PATH": os.path.abspath("bin")}), 1, "gnuplot")


def plot():
    if not shutil.which("gnuplot"):
        print("gnuplot is not installed")
        sys.exit(77)
    name = "it's a \"plot\".svg"
    run = bench(*SHORT, "--threads", "2", "--plot", name)
    check(run.returncode == 0 and run.stderr == "", f"drawing SVG: {run.returncode} {run.stderr}")
    with open(name) as file:
        picture = file.read()
    check(picture.startswith("<?xml") and picture.rstrip().endswith("</svg>"), "a whole SVG")
    for text in *NAMES, "index_outside", "shared_atomic", "threads":
        check(text in picture, f"'{text}' in the picture")
    run = bench(*SHORT, "--threads", "1", "--plot", "one.PNG", "fence")
    check(run.returncode == 0 and run.stderr == "", f"drawing PNG: {run.returncode} {run.stderr}")
    with open("one.PNG", "rb") as file:
        check(file.read(8) == b"\x89PNG\r\n\x1a\n", "a PNG")
    run = bench(*SHORT, "--threads", "1", "--plot", "malloc.svg", "malloc_pair_16", "malloc_random", "fence")
    check(run.returncode == 0 and run.stderr == "", f"drawing allocators: {run.returncode} {run.stderr}")
    with open("malloc.svg") as file:
        picture = file.read()
    for text in "glibc", "2 results", "peak resident memory", "fence":
        check(text in picture, f"'{text}' in the picture of allocators")
    os.symlink("/dev/full", "full.svg")
    one_line(bench(*SHORT, "--threads", "1", "--plot", "full.svg", "fence"), 1, "full.svg", "No space left")


def check_allocators(text, threads):
    """The cells of rows by name, each with a dictionary of subjects. `threads`: in how many a row was measured."""
    cells, rows = json.loads(text), {}
    for cell in cells:
        rows.setdefault(cell["bench"], {}).setdefault(cell["threads"], {})[cell["subject"]] = cell
        keys = {"bench", "subject", "threads"}
        if "skipped" in cell or "failed" in cell:
            why = "skipped" if "skipped" in cell else "failed"
            check(set(cell) == keys | {why} and len(cell[why]) > 3, f"the reason in {cell}")
            continue
        keys |= {"best_ns", "median_ns", "peak_kib"}
        keys |= {"p9999_ns"} if cell["bench"] == "malloc_larson" else set()
        keys |= {"resident_per_live"} if cell["bench"] == "malloc_fragmentation" else set()
        if cell["bench"].startswith(("malloc_threads", "malloc_burst", "malloc_frag", "malloc_startup", "malloc_redis_memory")):
            keys |= {"idle_kib"}
            check(500 < cell["idle_kib"] < 1 << 22, f"memory in {cell}")
        check(set(cell) - {"note"} == keys, f"keys of {cell}")
        check(0 < cell["best_ns"] <= cell["median_ns"] < 1e11, f"times in {cell}")
        check(500 < cell["peak_kib"] < 1 << 22, f"memory in {cell}")
        check(cell.get("p9999_ns", 1) > 0 and cell.get("resident_per_live", 1) >= 1, f"numbers in {cell}")
    for name, row in rows.items():
        check(set(row) == threads.get(name, threads[""]), f"{name} in {set(row)} threads")
        for count, subjects in row.items():
            check(set(subjects) == MALLOC[name], f"subjects of {name} in {count} threads: {set(subjects)}")
    return rows


def malloc():
    """Each row once; glibc is always there, and whichever rivals are must have results too."""
    redis = ["malloc_redis_set", "malloc_redis_get", "malloc_redis_memory"]
    fixed = {f"malloc_threads_{n}": {n} for n in (8, 100, 1000)} | {"malloc_producer_consumer": {2}}
    fixed |= {name: {1} for name in ["malloc_startup", *redis]}
    run = bench(*SHORT, "--threads", "1", "--json", "malloc.json", "malloc")
    check(run.returncode == 0 and run.stderr == "", f"all rows: {run.returncode} {run.stderr}")
    with open("malloc.json") as file:
        rows = check_allocators(file.read(), {"": {1}, **fixed})
    check(set(rows) == set(MALLOC), f"rows: {set(rows)}")
    for name in MALLOC:
        if name in redis and not (shutil.which("redis-server") and shutil.which("redis-benchmark")):
            check(f"not measured: {name}: redis-" in run.stdout, f"{name} is skipped")
            continue
        for cells in rows[name].values():
            check("best_ns" in cells["glibc"], f"glibc is measured: {cells['glibc']}")
            check(all("failed" not in cell for cell in cells.values()), f"nobody fails: {cells}")
    check("not 1 GiB" in run.stdout, "the size of bursts is told")
    check("PEAK KIB" in run.stdout and "IDLE KIB" in run.stdout and "P99.99 NS" in run.stdout, "columns")
    lines = [line.split() for line in run.stdout.splitlines()]
    check(not any("BENCH" in line and "2018" in line for line in lines), "columns of others")
    check(all(any(line[:2] == [name, "glibc"] for line in lines) for name in MALLOC), "rows of the table")
    # 84 MiB live at the peak: in no allocator less.
    check(rows["malloc_threads_1000"][1000]["glibc"]["peak_kib"] > 84 << 10, "1000 threads have what they should")

    run = bench(*SHORT, "--threads", "3", "--json", "-", "malloc_random", "malloc_producer_consumer")
    check(run.returncode == 0, f"numbers of threads: {run.returncode} {run.stderr}")
    check_allocators(run.stdout, {"": {1, 2, 3}, "malloc_producer_consumer": {2}})

    # A program that is not there; and one that ends at once.
    os.mkdir("programs")
    run = bench(*SHORT, "--json", "no.json", *redis, env={"PATH": os.path.abspath("programs")})
    check(run.returncode == 0 and run.stderr == "", f"no redis: {run.returncode} {run.stderr}")
    check(run.stdout.count("not measured: malloc_redis") == 3 and "redis-server is not installed" in run.stdout, "no redis: told")
    with open("no.json") as file:
        check(all("skipped" in cell for cell in json.load(file)), "no redis: all are skipped")
    for name in "redis-server", "redis-benchmark":
        os.symlink("/bin/true", "programs/" + name)
    run = bench(*SHORT, "malloc_redis_get", env={"PATH": os.path.abspath("programs")})
    check(run.returncode == 1 and "redis-server does not start" in run.stderr, f"no server: {run.returncode} {run.stderr}")

    # One that is not there, and options that would make another one different from what it is by default.
    os.mkdir("libs")
    with open("libs/libjemalloc.so.2", "w") as file:
        file.write("no object\n")
    env = {"LD_LIBRARY_PATH": os.path.abspath("libs"), "MALLOC_PERTURB_": "7", "LD_PRELOAD": ""}
    run = bench(*SHORT, "--threads", "1", "--json", "some.json", "malloc_pair_16", "malloc_calloc_large", env=env)
    check(run.returncode == 0 and run.stderr == "", f"one not there: {run.returncode} {run.stderr}")
    with open("some.json") as file:
        rows = check_allocators(file.read(), {"": {1}})
    for name in "malloc_pair_16", "malloc_calloc_large":
        check("libjemalloc.so.2" in rows[name][1]["jemalloc"].get("skipped", ""), f"{name}: jemalloc is skipped")
    check(run.stdout.count("not measured: malloc jemalloc: libjemalloc.so.2") == 1, "the reason is told once")

    os.symlink("/dev/full", "full.json")
    one_line(bench(*SHORT, "--threads", "1", "malloc_pair_16", "--json", "full.json"), 1, "full.json", "No space left")


def malloc_broken():
    """An allocator that fails fails its own cells, in one line each; all others have their results."""
    os.makedirs("tree/cli")
    os.makedirs("tree/malloc")
    shutil.copy(PERCPU, "tree/cli/percpu")
    shutil.copy(BROKEN, "tree/malloc/libpercpu-malloc.so")
    short = [*SHORT, "--threads", "1", "malloc_random", "--json", "broken.json"]
    for how, words in ("abort", ["killed by signal 6", "this heap is broken"]), ("kill", ["killed by signal 9"]), \
                      ("null", ["no memory"]):
        run = bench(*short, env={"BROKEN": how}, percpu=os.path.abspath("tree/cli/percpu"))
        one_line(run, 1, "malloc_random, 1 thread, percpu: ", *words)
        check("failed: malloc_random percpu" in run.stdout, f"{how}: told under the table")
        with open("broken.json") as file:
            row = check_allocators(file.read(), {"": {1}})["malloc_random"][1]
        check(all(word in row["percpu"].get("failed", "") for word in words), f"{how}: {row['percpu']}")
        check("best_ns" in row["glibc"], f"{how}: glibc is measured all the same")
    # Something that the loader cannot take.
    with open("tree/malloc/libpercpu-malloc.so", "w") as file:
        file.write("no object\n")
    run = bench(*short, percpu=os.path.abspath("tree/cli/percpu"))
    check(run.returncode == 0 and run.stderr == "", f"no object: {run.returncode} {run.stderr}")
    check("not measured: malloc percpu: libpercpu-malloc.so cannot be preloaded" in run.stdout, "no object: told")


directory = os.getcwd()
try:
    {"results": results, "skipped": skipped, "refused": refused, "lost": lost, "plot": plot, "malloc": malloc,
     "malloc-broken": malloc_broken}[sys.argv[2]]()
finally:
    os.chdir("/")
    shutil.rmtree(directory)
sys.exit(failures != 0)
