#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tests of `percpu run`, of the allocator's options and of its statistics, from outside.

usage: run.py PERCPU BLOCKS LINKED STATIC OWN ALLOCATOR PRELOAD [unittest arguments]

BLOCKS is the program of blocks.c, LINKED the same with the allocator in it, STATIC one linked statically ("" if that cannot be built here), OWN one with a malloc of
its own, PRELOAD what counts calls for `percpu stat`. Nothing here depends on how long anything takes, but for limits against
hanging.
"""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import xml.dom.minidom

PERCPU = BLOCKS = LINKED = STATIC = OWN = ALLOCATOR = PRELOAD = None
LIMIT = 60

MODES = {
    "libc": {},
    "own": {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"},
    "none": {"PERCPU_RSEQ": "off"},
}
# Sizes that nobody else uses: class, and what to ask for.
CLASS, SIZE = 5120, 5000
# Nothing is sampled by chance: samples are in no class.
EXACT = "guard=0"
TOTALS = ("live", "cached", "stock", "used", "most_used", "free", "released", "large", "large_bytes", "metadata", "resident",
          "guarded", "profiled")


def run(*args, env=None, **options):
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.run([PERCPU, *args], env={**os.environ, **(env or {})}, timeout=LIMIT, **options)


def preloaded(*args, options, env=None, **more):
    """A program on the allocator, with its options, without the command."""
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    return subprocess.run(args, env={**os.environ, "LD_PRELOAD": ALLOCATOR, "PERCPU_MALLOC": f"{EXACT},{options}",
                                     **(env or {})}, timeout=LIMIT, **more)


def class_of(stats, size=CLASS):
    found = [c for c in stats["classes"] if c["size"] == size]
    return found[0] if found else dict.fromkeys(("live", "objects", "hits", "misses", "flushes", "new_spans", "spans"), 0)


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="percpu-test-")
        self.addCleanup(shutil.rmtree, self.dir)

    def path(self, name):
        return os.path.join(self.dir, name)

    def load(self, path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def adds_up(self, stats):
        total = stats["total"]
        self.assertEqual(sorted(total), sorted(TOTALS))
        live, used, cached, stock = total["large_bytes"], total["large_bytes"], 0, 0
        for c in stats["classes"]:
            self.assertEqual(c["objects"], c["live"] + c["cached"] + c["stock"] + c["free"], c)
            self.assertGreaterEqual(c["span_bytes"], c["objects"] * c["size"], c)
            self.assertGreaterEqual(c["new_spans"], c["spans"], c)
            if c["live"]:
                self.assertAlmostEqual(c["fragmentation"], c["span_bytes"] / c["live"] / c["size"], delta=0.011)
            else:
                self.assertIsNone(c["fragmentation"])
            live += c["live"] * c["size"]
            cached += c["cached"] * c["size"]
            stock += c["stock"] * c["size"]
            used += c["span_bytes"]
        self.assertEqual((total["live"], total["cached"], total["stock"], total["used"]), (live, cached, stock, used))
        self.assertGreaterEqual(total["most_used"], total["used"])
        self.assertEqual(sum(i["cached"] for i in stats["indexes"]), total["cached"])
        for what in ("misses", "flushes", "hits"):
            self.assertEqual(sum(i[what] for i in stats["indexes"]), sum(c[what] for c in stats["classes"]), what)

    def stats(self, *command, env=None, status=0, options=(), stderr=b""):
        """What `percpu run` tells of a program, which ends with a last word."""
        out = self.path("stats.json")
        done = run("run", "--json", out, *options, "--", *command, env=env)
        self.assertEqual((done.returncode, done.stderr), (status, stderr))
        stats = self.load(out)
        self.assertTrue(stats["last"])
        self.assertEqual(stats["command"], list(command))
        self.adds_up(stats)
        return stats

    def own_stats(self, *command, options="", env=None):
        """What the allocator writes by itself."""
        out = self.path("own.json")
        done = preloaded(*command, options=f"stats-json={out}{options}", env=env)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        stats = self.load(out)
        self.adds_up(stats)
        return stats

    def each_mode(self, test):
        for mode, env in MODES.items():
            with self.subTest(mode=mode):
                test(mode, env)

    def complains(self, done, status, text):
        """Exactly one line, that says so, and nothing on standard output."""
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertEqual(done.stdout, b"")
        lines = done.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], "^percpu: .*" + text)


class Counts(Case):
    """Blocks in use are exact, in every mode, by both ways to tell them."""

    def test_small(self):
        def test(mode, env):
            for stats in (self.stats, self.own_stats):
                nothing = class_of(stats(BLOCKS, "exit=0", env=env))
                some = stats(BLOCKS, f"1000x{SIZE}", "free=300", env=env)
                self.assertEqual(class_of(some)["live"] - nothing["live"], 700)
                some = stats(BLOCKS, f"1000x{SIZE}", "free=300", f"70x{SIZE}", env=env)
                self.assertEqual(class_of(some)["live"] - nothing["live"], 770)
                self.assertEqual(some["mode"], "none" if mode == "none" else some["mode"])
                self.assertGreaterEqual(class_of(some)["misses"] + class_of(some)["new_spans"], 10)
        self.each_mode(test)

    def nodes(self):
        """Steps that allocate on two CPUs, and so, with the option, on two nodes of memory."""
        cpus = sorted(os.sched_getaffinity(0))
        first = [cpu for cpu in cpus if cpu % 3 == cpus[0] % 3][0]
        second = [cpu for cpu in cpus if cpu % 3 != cpus[0] % 3]
        if not second:
            self.skipTest("there is one CPU")
        return (f"cpu={first}", f"1000x{SIZE}", f"cpu={second[0]}", f"500x{SIZE}", "free=300")

    def test_nodes(self):
        """Each node of memory has stocks and spans of its own."""
        for stats in (self.stats(BLOCKS, *self.nodes(), options=("--option", "nodes=3")),
                      self.own_stats(BLOCKS, *self.nodes(), options=",nodes=3")):
            self.assertEqual(class_of(stats)["live"], 1200)
        # A class that is on one of them only; the other one has others.
        for steps in (("30x20000", "cpu={1}", "30x25000"), ("cpu={1}", "30x20000", "cpu={0}", "30x25000")):
            cpus = [step[4:] for step in self.nodes() if step.startswith("cpu=")]
            steps = [step.format(*cpus) for step in (f"cpu={cpus[0]}", *steps)]
            stats = self.stats(BLOCKS, *steps, options=("--option", "nodes=3"))
            self.assertGreaterEqual(class_of(stats, 20480)["live"], 30)

    def test_trim(self):
        def test(_mode, env):
            stats = self.stats(BLOCKS, f"1000x{SIZE}", "free=300", "trim", env=env)
            self.assertEqual(class_of(stats)["live"], 700)
            self.assertEqual((class_of(stats)["cached"], class_of(stats)["stock"]), (0, 0))
            for index in stats["indexes"]:
                self.assertGreater(index["drains"], 0)
        self.each_mode(test)

    def test_resize(self):
        for steps, size in ((("resize=30000000",), 30000000), (("resize=30000000", "resize=3000000"), 3000000)):
            nothing = self.stats(BLOCKS)["total"]
            some = self.stats(BLOCKS, "1x1000000", *steps)["total"]
            self.assertEqual(some["large"] - nothing["large"], 1)
            self.assertGreaterEqual(some["large_bytes"] - nothing["large_bytes"], size)
            self.assertLess(some["large_bytes"] - nothing["large_bytes"], size * 3 // 2)

    def test_samples(self):
        """Guarded objects are in no class; samples of the heap profile are large blocks."""
        def test(_mode, env):
            for stats in (self.stats(BLOCKS, "100x1000", env=env, options=("--option", "guard=1")),
                          self.own_stats(BLOCKS, "100x1000", env=env, options=",guard=1")):
                self.assertGreaterEqual(stats["total"]["guarded"], 100)
                self.assertEqual((class_of(stats, 1024)["live"], stats["total"]["profiled"]), (0, 0))
            for stats in (self.stats(BLOCKS, "100x5000", "free=40", env=env,
                                     options=("--heap-profile", self.path("profile"), "--option", "profile-interval=1")),
                          self.own_stats(BLOCKS, "100x5000", "free=40", env=env,
                                         options=f",profile-interval=1,profile={self.path('profile')}")):
                self.assertGreaterEqual(stats["total"]["profiled"], 60)
                self.assertLess(stats["total"]["profiled"], 100)
                self.assertEqual((class_of(stats)["live"], stats["total"]["guarded"]), (0, 0))
                self.assertGreaterEqual(stats["total"]["large"], 60)
        self.each_mode(test)

    def test_large(self):
        def test(_mode, env):
            for stats in (self.stats, self.own_stats):
                nothing = stats(BLOCKS, "exit=0", env=env)["total"]
                some = stats(BLOCKS, "7x1000000", "free=2", env=env)["total"]
                self.assertEqual(some["large"] - nothing["large"], 5)
                self.assertGreaterEqual(some["large_bytes"] - nothing["large_bytes"], 5 * 1000000)
                self.assertLess(some["large_bytes"] - nothing["large_bytes"], 5 * 1020000)
                self.assertGreaterEqual(some["most_used"] - some["used"], 2 * 1000000)
        self.each_mode(test)

    def test_hits(self):
        """With the option each allocation of a thread on magazines is a hit or a miss."""
        def test(mode, env):
            options = ("--option", "count")
            nothing = class_of(self.stats(BLOCKS, "exit=0", env=env, options=options))
            stats = self.stats(BLOCKS, f"900x{SIZE}", "free=900", f"500x{SIZE}", env=env, options=options)
            some = class_of(stats)
            self.assertTrue(stats["hits_counted"])
            if stats["mode"] != "none":
                self.assertEqual(some["hits"] + some["misses"] - nothing["hits"] - nothing["misses"], 1400, mode)
                self.assertGreater(some["misses"], nothing["misses"])
                self.assertGreater(some["hits"], nothing["hits"])
                self.assertGreater(some["flushes"], 0)
            else:
                self.assertEqual((some["hits"], some["misses"], stats["indexes"]), (0, 0, []))
        self.each_mode(test)

    def test_children(self):
        """They are processes of their own: what they do is not in the program's statistics, whichever ends last."""
        def test(_mode, env):
            stats = self.stats(BLOCKS, f"100x{SIZE}", f"fork=400x{SIZE}", env=env)
            self.assertEqual(class_of(stats)["live"], 100)
            stats = self.stats(sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", BLOCKS,
                               "1000x240000", env=env)
            self.assertLess(class_of(stats, 245760)["live"], 100)
        self.each_mode(test)

    def test_exec(self):
        stats = self.stats(BLOCKS, f"100x{SIZE}", "exec", f"30x{SIZE}")
        self.assertEqual(class_of(stats)["live"], 30)

    def test_exec_of_a_program_without(self):
        if not STATIC:
            self.skipTest("no static C library here")
        done = run("run", "--json", self.path("x"), "--", "sh", "-c", f"sleep 0.3; exec {STATIC} 0")
        self.assertIn(b"ended without a last word", done.stderr)

    def test_many_at_once(self):
        """%p keeps the files of several processes apart."""
        done = preloaded(sys.executable, "-c", "import os; [os.fork() for i in range(3)]; "
                         "exec('try:\\n while True: os.wait()\\nexcept ChildProcessError: pass')",
                         options="stats-json=" + self.path("%p.json"))
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        names = os.listdir(self.dir)
        self.assertEqual(len(names), 8)
        for name in names:
            stats = self.load(self.path(name))
            self.assertEqual(f"{stats['process']}.json", name)
            self.adds_up(stats)

    def test_malloc_info(self):
        code = ("import ctypes; libc = ctypes.CDLL(None); libc.fdopen.restype = ctypes.c_void_p; "
                "out = ctypes.c_void_p(libc.fdopen(1, b'w')); print(libc.malloc_info(1, out)); "
                "assert not libc.malloc_info(0, out); libc.fflush(out)")
        done = preloaded(sys.executable, "-u", "-c", code, options="")
        error, text = done.stdout.decode().split("\n", 1)
        self.assertEqual((done.returncode, error), (0, "22"))
        root = xml.dom.minidom.parseString(text).documentElement
        self.assertEqual((root.tagName, root.getAttribute("version")), ("malloc", "1"))
        self.assertGreater(len(root.getElementsByTagName("size")), 5)
        for size in root.getElementsByTagName("size"):
            of = {name: int(size.getAttribute(name)) for name in size.attributes.keys()}
            self.assertEqual(of["total"], of["count"] * of["to"])
            self.assertEqual(of["objects"], of["live"] + of["count"])

    def test_malloc_stats(self):
        done = preloaded(sys.executable, "-c", "import ctypes; ctypes.CDLL(None).malloc_stats()", options="")
        lines = done.stderr.decode().splitlines()
        self.assertRegex(lines[0], "^percpu-malloc: .*, process [0-9]+: mode ")
        self.assertEqual(len(lines), 1 + len(TOTALS))


class Live(Case):
    """While the program runs."""

    @contextlib.contextmanager
    def running(self, *command, options=(), env=None):
        """A program that waits for a byte; yields its process, and what reads the statistics until they are as wanted."""
        out = self.path("live.json")
        with subprocess.Popen([PERCPU, "run", "--stats=0.02", "--json", out, *options, "--", *command],
                              env={**os.environ, **(env or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            def until(wanted):
                limit = time.monotonic() + LIMIT
                while time.monotonic() < limit:
                    with contextlib.suppress(OSError):
                        stats = self.load(out)
                        if wanted(stats):
                            return stats
                    time.sleep(0.01)
                raise AssertionError("it did not come to that")
            watchdog = threading.Timer(LIMIT, process.kill)
            watchdog.start()
            try:
                yield process, until
            finally:
                watchdog.cancel()
                process.kill()

    def test_asleep(self):
        """What a program holds that sleeps is as exact as its last word."""
        def test(_mode, env):
            with self.running(BLOCKS, f"1000x{SIZE}", "3x1000000", "wait", f"500x{SIZE}", env=env) as (process, until):
                stats = until(lambda stats: class_of(stats)["live"] == 1000 and stats["total"]["large"] >= 3)
                self.adds_up(stats)
                self.assertFalse(stats["last"])
                self.assertNotIn("exit_status", stats)
                self.assertGreater(stats["total"]["resident"], 8000000)
                _, errors = process.communicate(b"x", timeout=LIMIT)
                self.assertEqual((process.returncode, errors), (0, b""))
                stats = until(lambda stats: stats["last"])
                self.assertEqual((class_of(stats)["live"], stats["exit_status"]), (1500, 0))
        self.each_mode(test)

    def test_children(self):
        """One that has ended said nothing in the program's name."""
        with self.running(BLOCKS, f"100x{SIZE}", f"fork=400x{SIZE}", "3x1000000", "wait") as (_, until):
            stats = until(lambda stats: stats["total"]["large"] >= 3)
            self.assertEqual((class_of(stats)["live"], stats["last"]), (100, False))

    def test_nodes(self):
        with self.running(BLOCKS, *Counts.nodes(self), "3x1000000", "wait", options=("--option", "nodes=3")) as (_, until):
            stats = until(lambda stats: stats["total"]["large"] >= 3)
            self.assertEqual(class_of(stats)["live"], 1200)
            self.adds_up(stats)

    def test_exec(self):
        with self.running(BLOCKS, f"100x{SIZE}", "wait", "exec", f"30x{SIZE}", "wait") as (process, until):
            until(lambda stats: class_of(stats)["live"] == 100)
            process.stdin.write(b"x")
            process.stdin.flush()
            until(lambda stats: class_of(stats)["live"] == 30)

    def test_killed(self):
        for end, status in ((f"kill={int(signal.SIGKILL)}", {"signal": 9}), ("_exit=5", {"exit_status": 5})):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path("live.json"))
            with self.running(BLOCKS, f"100x{SIZE}", "wait", end) as (process, until):
                until(lambda stats: class_of(stats)["live"] == 100)
                _, errors = process.communicate(b"x", timeout=LIMIT)
                stats = until(lambda stats, status=status: stats.items() >= status.items())
                self.assertEqual((class_of(stats)["live"], stats["last"]), (100, False))
                self.assertEqual(process.returncode, -9 if "signal" in status else 5)
                self.assertRegex(errors.decode(), "^percpu: .* ended without a last word: this is how it was [0-9.]+ seconds"
                                 " before\n$")

    def test_signals_are_sent_on(self):
        with self.running(BLOCKS, f"handler={int(signal.SIGUSR1)}", f"100x{SIZE}", "wait") as (process, until):
            until(lambda stats: class_of(stats)["live"] == 100)
            process.send_signal(signal.SIGUSR1)
            self.assertEqual(process.stdout.readline(), b"caught\n")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(LIMIT), -signal.SIGTERM)

    def test_tables(self):
        """On standard error, again and again."""
        with subprocess.Popen([PERCPU, "run", "--stats=0.05", BLOCKS, f"100x{SIZE}", "wait"], stdin=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            heads = 0
            while heads < 3:
                heads += b"percpu: " in process.stderr.readline()
            _, rest = process.communicate(b"x", timeout=LIMIT)
            self.assertEqual(process.returncode, 0)
            self.assertIn(b"in use by the program", rest)
            self.assertIn(b"INDEX", rest)


class Tables(Case):
    def test_final(self):
        def test(_mode, env):
            done = run("run", "--stats", "--", BLOCKS, f"1000x{SIZE}", "2x1048576", "exit=3", env=env)
            self.assertEqual((done.returncode, done.stdout), (3, b""))
            lines = done.stderr.decode().splitlines()
            row = [line.split() for line in lines if line.split()[:1] == [str(CLASS)]]
            self.assertEqual((len(row), row[0][1]), (1, "1000"))
            self.assertTrue(any(line.split()[1:] == ["in", "2", "large", "blocks"] for line in lines), lines)
            self.assertNotIn("HITS", done.stderr.decode())
        self.each_mode(test)

    def test_only_used_classes(self):
        lines = run("run", "--stats", "--", BLOCKS).stderr.decode().splitlines()
        self.assertFalse([line for line in lines if line.split()[:1] == [str(CLASS)]])

    def test_hits(self):
        lines = run("run", "--stats", "--option", "count", "--", BLOCKS, "1x100").stderr.decode()
        self.assertIn("HITS", lines)

    def test_nothing_allocated(self):
        done = run("run", "--stats", "--", "true")
        self.assertEqual(done.returncode, 0)
        self.assertIn(b"in use by the program", done.stderr)

    def test_own_table(self):
        done = preloaded(BLOCKS, f"1000x{SIZE}", options="stats")
        row = [line.split() for line in done.stderr.decode().splitlines() if line.split()[:1] == [str(CLASS)]]
        self.assertEqual((done.returncode, row[0][4]), (0, "1000"))

    def test_own_table_after_stderr_was_closed(self):
        """As many programs close theirs at the end; and where nothing is left to write to, nothing is written."""
        done = preloaded("ls", "/", options="stats")
        self.assertIn(b"percpu-malloc: ls, process", done.stderr)
        out = self.path("table")
        done = preloaded(BLOCKS, f"1000x{SIZE}", "closed", options=f"stats={out}")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        with open(out, encoding="ascii") as file:
            self.assertIn("\n       5120 ", file.read())
        self.assertEqual(preloaded(BLOCKS, "closed", options="stats").returncode, 0)


class Broken(Case):
    """Nothing that happens to the output does anything to the program."""

    def full(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full here")
        return open("/dev/full", "wb")  # pylint: disable=consider-using-with

    def closed_pipe(self):
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)
        return writer

    def test_full_disk(self):
        with self.full() as full:
            self.assertEqual(run("run", "--stats", "--", BLOCKS, "exit=4", stderr=full).returncode, 4)
            self.assertEqual(run("run", "--stats=0.01", "--", "sleep", "0.2", stderr=full).returncode, 0)
            done = run("run", "--json", "-", "--", BLOCKS, "exit=4", stdout=full)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr.decode(), "^percpu: cannot write to standard output: No space left on device\n$")
            done = preloaded(BLOCKS, "exit=4", options="stats", stderr=full)
            self.assertEqual(done.returncode, 4)
        done = run("run", "--json", "/dev/full", "--", BLOCKS, "exit=4")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 1)
        done = preloaded(BLOCKS, "exit=4", options="stats-json=/dev/full,stats=/dev/full")
        self.assertEqual(done.returncode, 4)
        self.assertEqual(done.stderr, b"percpu-malloc: cannot write /dev/full: No space left on device\n" * 2)

    def test_closed_pipe(self):
        self.assertEqual(run("run", "--stats", "--", BLOCKS, "exit=4", stderr=self.closed_pipe()).returncode, 4)
        self.assertEqual(run("run", "--stats=0.01", "--", "sleep", "0.2", stderr=self.closed_pipe()).returncode, 0)
        self.assertEqual(run("run", "--json", "-", "--", BLOCKS, stdout=self.closed_pipe()).returncode, 1)
        # (Python ignores the signal that this is about, and its children would.)
        done = preloaded(BLOCKS, "exit=4", options="stats", stderr=self.closed_pipe(), restore_signals=True)
        self.assertEqual(done.returncode, 4)

    def test_no_room_for_files(self):
        """A limit on the size of files raises a signal as well."""
        done = preloaded("sh", "-c", f"ulimit -f 0; exec {BLOCKS} exit=4", options="stats=" + self.path("table"))
        self.assertEqual(done.returncode, 4, done.stderr)
        self.assertIn(b"File too large", done.stderr)

    def test_files_that_cannot_be(self):
        done = preloaded(BLOCKS, "exit=4", options="stats-json=/no/such/folder")
        self.assertEqual((done.returncode, done.stderr),
                         (4, b"percpu-malloc: cannot write /no/such/folder: No such file or directory\n"))
        os.mkfifo(self.path("fifo"))
        done = preloaded(BLOCKS, "exit=4", options="stats-json=" + self.path("fifo"))
        self.assertEqual(done.returncode, 4)
        self.assertIn(b"Nobody reads from the pipe", done.stderr)
        self.complains(run("run", "--json", "/no/such/folder", "--", BLOCKS), 125, "cannot write /no/such/folder")

    def test_session_is_not_trusted(self):
        """With the variable set to something else, a program runs, and nothing is written anywhere."""
        odd = self.path("odd")
        with open(odd, "wb") as file:
            file.truncate(1 << 20)
        fd = os.open(odd, os.O_RDWR)
        key = "0123456789abcdef"
        values = ("", "x", f"/etc/passwd {key} 1", f"/proc/{os.getpid()}/fd/{fd} {key}", f"/proc/1/fd/0 {key} 1",
                  "/proc/self/fd/" + "9" * 60 + f" {key} 1", f"/proc/{os.getpid()}/fd/{fd} {key} 99999999999999999999999")
        for value in values:
            done = preloaded(BLOCKS, "exit=4", options="", env={"PERCPU_MALLOC_SESSION": value})
            self.assertEqual((done.returncode, done.stderr), (4, b""), value)
        # Its own process is meant, and the file is none of ours: by its name, then by what is in it.
        wrong = os.memfd_create("something")
        os.truncate(wrong, 1 << 20)
        right = os.memfd_create("percpu-run")
        os.truncate(right, 1 << 20)
        for number in (fd, wrong, right):
            code = (f"import os; os.environ['PERCPU_MALLOC_SESSION'] = f'/proc/{os.getpid()}/fd/{number} {key} "
                    f"{{os.getpid()}}'; os.execv({BLOCKS!r}, ['blocks', 'exit=4'])")
            done = preloaded(sys.executable, "-c", code, options="")
            self.assertEqual((done.returncode, done.stderr), (4, b""), number)
            os.lseek(number, 0, os.SEEK_SET)
            self.assertEqual(os.read(number, 1 << 20).count(b"\0"), 1 << 20)
            os.close(number)


class Options(Case):
    KNOWN = ("cache", "cache-total", "check", "count", "decay", "guard", "huge", "keep", "nodes", "profile",
             "profile-interval", "random", "stats", "stats-json", "stats-signal", "zero")
    WRONG = {
        "colour=blue": "there is no such option; known are " + ", ".join(KNOWN),
        "": None, ",,": None,
        "cache": "it must be a size, 64K to 1G", "cache=": "it must be a size, 64K to 1G",
        "cache=1": "it must be a size, 64K to 1G", "cache=2G": "it must be a size, 64K to 1G",
        "cache=1MB": "it must be a size, 64K to 1G", "cache=-1M": "it must be a size, 64K to 1G",
        "cache=M": "it must be a size, 64K to 1G", "cache=99999999999999999999G": "it must be a size, 64K to 1G",
        "cache=18446744073709551616": "it must be a size, 64K to 1G",
        "cache-total=4K": "it must be a size, 64K to 1024G",
        "guard=x": "it must be a number, 0 to 4294967295", "guard=4294967296": "it must be a number, 0 to 4294967295",
        "guard": "it must be a number, 0 to 4294967295", "nodes=0": "it must be a number, 1 to 64",
        "nodes=65": "it must be a number, 1 to 64", "huge=maybe": "it must be never, auto or always",
        "huge": "it must be never, auto or always", "decay=2": "it must be never, auto or always",
        "keep=0": "it must be a size, 1 to 1024G", "keep": "it must be a size, 1 to 1024G",
        "zero=1": "it takes no value", "zero=": "it takes no value",
        "profile": "it must be the name of a file, of less than 4096 bytes",
        "profile=": "it must be the name of a file, of less than 4096 bytes",
        "profile=" + "x" * 4096: "it must be the name of a file, of less than 4096 bytes",
        "stats=": "it must be the name of a file, of less than 4096 bytes",
        "stats-signal=KILL": "it must be a signal, by number or as USR2, that is not KILL, STOP or for a crash",
        "stats-signal=9": "it must be a signal, by number or as USR2, that is not KILL, STOP or for a crash",
        "stats-signal=32": "it must be a signal, by number or as USR2, that is not KILL, STOP or for a crash",
        "stats-signal=SEGV": "it must be a signal, by number or as USR2, that is not KILL, STOP or for a crash",
        "stats-signal=0": "it must be a signal, by number or as USR2, that is not KILL, STOP or for a crash",
    }
    RIGHT = ("cache=64K", "cache=1g", "cache=65536", "cache-total=1M", "check", "count", "guard=0", "guard=1000",
             "huge=never", "huge=auto", "huge=always", "decay=never", "decay=always", "keep=64M", "nodes=1", "random", "zero", "stats-signal=USR2",
             "stats-signal=SIGUSR1", "stats-signal=40", "zero,check,random", "profile-interval=1M,profile=/dev/null")

    def test_wrong(self):
        """A line for each, and the others hold; the program does not notice."""
        for option, why in self.WRONG.items():
            with self.subTest(option=option[:40]):
                done = preloaded(BLOCKS, "exit=4", options=option)
                expected = f"percpu-malloc: PERCPU_MALLOC: {option}: {why}\n" if why else ""
                if len(option) > 100:
                    expected = f"percpu-malloc: PERCPU_MALLOC: {option[:100]}...: {why}\n"
                self.assertEqual((done.returncode, done.stderr.decode()), (4, expected))
                out = self.path("out.json")
                done = preloaded(BLOCKS, "exit=4", options=f"{option},stats-json={out}")
                self.assertEqual((done.returncode, done.stderr.decode()), (4, expected))
                os.unlink(out)

    def test_wrong_on_the_command_line(self):
        for option, why in self.WRONG.items():
            if why and len(option) <= 100:
                with self.subTest(option=option):
                    done = run("run", "--option", option, "--", BLOCKS, "exit=4")
                    self.assertEqual((done.returncode, done.stdout, done.stderr.decode()), (
                        2, b"", f'percpu: --option {option}: {why}; see "percpu run --help"\n'))

    def test_odd_bytes(self):
        done = preloaded(BLOCKS, options=b"\x1b[31m\xff=\n".decode("latin-1"))
        self.assertNotIn(b"\x1b", done.stderr)
        self.assertEqual((done.returncode, len(done.stderr.splitlines())), (0, 1))

    def test_right(self):
        def test(_mode, env):
            for option in self.RIGHT:
                with self.subTest(option=option):
                    done = preloaded(BLOCKS, f"1000x{SIZE}", "free=500", f"100x{SIZE}", options=option, env=env)
                    self.assertEqual((done.returncode, done.stderr), (0, b""))
                    done = run("run", "--option", option, "--", BLOCKS, "exit=4", env=env)
                    self.assertEqual((done.returncode, done.stderr), (4, b""))
        self.each_mode(test)

    def test_help_has_all(self):
        text = run("run", "--help").stdout.decode()
        for name in self.KNOWN:
            self.assertRegex(text, f"[ \n]{name}[,\n]")

    def test_profile_interval_alone(self):
        done = preloaded(BLOCKS, options="profile-interval=1M")
        self.assertEqual((done.returncode, done.stderr),
                         (0, b"percpu-malloc: PERCPU_MALLOC: profile-interval: there is no profile=FILE\n"))

    def test_cache(self):
        """What magazines hold is bounded: each by `cache`, all by `cache-total`, but for a first batch of each class."""
        sizes = [f"{step}" for size in (2000, 4000, 7000, 14000, 28000, 60000) for step in (f"200x{size}",)]
        first = 96 * 8192
        held = {}
        for option in ("cache=64K", "cache=1G", "cache=1G,cache-total=64K"):
            stats = self.stats(BLOCKS, *sizes, "free=1200", options=("--option", option))
            if stats["mode"] == "none":
                self.skipTest("no magazines here")
            held[option] = max(i["cached"] for i in stats["indexes"])
        self.assertLessEqual(held["cache=64K"], (64 << 10) + first)
        self.assertLessEqual(held["cache=1G,cache-total=64K"], (64 << 10) + first)
        self.assertGreater(held["cache=1G"], held["cache=64K"])

    def test_command_line_wins(self):
        stats = self.stats(BLOCKS, options=("--option", "count"), env={"PERCPU_MALLOC": "zero"})
        self.assertTrue(stats["hits_counted"])
        done = run("run", "--option", "stats=" + self.path("b"), "--", BLOCKS,
                   env={"PERCPU_MALLOC": "stats=" + self.path("a")})
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertFalse(os.path.exists(self.path("a")))
        self.assertTrue(os.path.exists(self.path("b")))

    def test_rights(self):
        """A program with rights of its own writes no file that its environment names."""
        path, out = self.path("program"), self.path("out")
        shutil.copy(LINKED, path)
        try:
            os.chown(path, 65534, 65534)
        except PermissionError:
            self.skipTest("cannot give files away here")
        os.chmod(path, 0o4755)
        os.chmod(self.dir, 0o777)
        if os.statvfs(path).f_flag & os.ST_NOSUID:
            self.skipTest("programs get no rights here")
        for option in ("stats", "stats-json", "profile"):
            env = {"PERCPU_MALLOC": f"{option}={out},count"}
            done = subprocess.run([path, f"100x{SIZE}", "exit=4"], capture_output=True, timeout=LIMIT, check=False,
                                  env={**os.environ, **env})
            self.assertEqual((done.returncode, done.stderr.decode(), os.path.exists(out)), (
                4, f"percpu-malloc: PERCPU_MALLOC: {option}={out}: ignored, as the program has rights of its own\n", False))

    def test_linked(self):
        """Options hold where the allocator is part of the program, too."""
        out = self.path("out")
        done = subprocess.run([LINKED, f"100x{SIZE}"], capture_output=True, timeout=LIMIT, check=False,
                              env={**os.environ, "PERCPU_MALLOC": f"{EXACT},stats-json={out}"})
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        stats = self.load(out)
        self.adds_up(stats)
        self.assertEqual(class_of(stats)["live"], 100)

    def test_files_are_the_program_s(self):
        """The command, which knows the options too, writes none."""
        for name in ("stats", "stats-json", "profile"):
            out = self.path(name)
            done = run("run", "--stats", "--option", f"{name}={out},profile-interval=1", "--option", "profile=/dev/null"
                       if name != "profile" else "count", "--", BLOCKS, f"100x{SIZE}")
            self.assertEqual(done.returncode, 0)
            with open(out, encoding="utf-8") as file:
                self.assertIn("blocks", file.read())
            os.unlink(out)

    def test_relative_names(self):
        """They are meant where the program was started."""
        done = preloaded(sys.executable, "-c", "import os; os.chdir('/')", options="stats-json=x.json,stats=y", cwd=self.dir)
        self.assertEqual((done.returncode, sorted(os.listdir(self.dir))), (0, ["x.json", "y"]))
        self.assertEqual(os.stat(self.path("y")).st_mode & 0o777, 0o600)

    def test_signal(self):
        out, profile = self.path("signal.json"), self.path("profile")
        with subprocess.Popen([BLOCKS, f"100x{SIZE}", "wait", f"100x{SIZE}"], stdin=subprocess.PIPE,
                              env={**os.environ, "LD_PRELOAD": ALLOCATOR,
                                   "PERCPU_MALLOC": f"{EXACT},stats-json={out},stats-signal=USR2,"
                                                    f"profile={profile},profile-interval=1G"}) as process:
            limit = time.monotonic() + LIMIT
            live = 0
            while live != 100 and time.monotonic() < limit:
                # Before it has a handler it would die of that.
                with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
                    caught = [int(line.split()[1], 16) for line in file if line.startswith("SigCgt:")][0]
                if caught >> (signal.SIGUSR2 - 1) & 1:
                    process.send_signal(signal.SIGUSR2)
                time.sleep(0.02)
                with contextlib.suppress(OSError, ValueError):
                    live = class_of(self.load(out))["live"]
            self.assertEqual(live, 100)
            # The profile comes behind the statistics.
            while time.monotonic() < limit and not os.path.exists(profile):
                time.sleep(0.02)
            self.assertTrue(os.path.exists(profile))
            process.communicate(b"x", timeout=LIMIT)
            self.assertEqual(process.returncode, 0)
        self.assertEqual(class_of(self.load(out))["live"], 200)

    def test_signals_inside_of_the_allocator(self):
        """Whatever it was doing, nothing waits for anything."""
        def test(_mode, env):
            out = self.path("storm.json")
            done = preloaded(BLOCKS, "storm=200000", f"100x{SIZE}", env=env,
                             options=f"stats=/dev/null,stats-json={out},stats-signal=ALRM")
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            stats = self.load(out)
            self.adds_up(stats)
            self.assertEqual(class_of(stats)["live"], 100)
        self.each_mode(test)

    def test_signal_of_the_program(self):
        """A handler of the program's stays, and so does what was to be ignored."""
        number = int(signal.SIGUSR2)
        done = preloaded(BLOCKS, f"handler={number}", f"raise={number}", options="stats-signal=USR2")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"caught\n", b""))
        done = preloaded("sh", "-c", f"trap '' USR2; exec {BLOCKS} raise={number}", options="stats-signal=USR2")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        done = preloaded(BLOCKS, f"raise={number}", options="stats-signal=USR2")
        self.assertEqual(done.returncode, 0)
        self.assertIn(b"percpu-malloc: ", done.stderr)


class Started(Case):
    """Which programs are started, and how."""

    def copy(self, name="program", mode=0o755, patch=None):
        with open(BLOCKS, "rb") as file:
            data = bytearray(file.read())
        if patch:
            patch(data)
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)
        return path

    def script(self, text):
        path = self.path("script")
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(path, 0o755)
        return path

    def refused(self, program, status, text):
        for options in ((), ("--stats",)):
            self.complains(run("run", *options, "--", program), status, text)

    def test_static(self):
        if not STATIC:
            self.skipTest("no static C library here")
        self.refused(STATIC, 125, "statically linked: the allocator cannot be preloaded")
        self.refused(self.script(f"#! {STATIC} x\n"), 125, "statically linked")

    def test_rights(self):
        self.refused(self.copy(mode=0o4755), 125, "set-user-id")
        self.refused(self.copy(mode=0o2755), 125, "set-group-id")
        path = self.copy("capable")
        try:
            os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        except OSError as error:
            self.skipTest(f"cannot set file capabilities here: {error}")
        self.refused(path, 125, "file capabilities")

    def test_other_kinds(self):
        def small(data):
            data[4] = 1

        def loader(data):
            at = data.index(b"/ld-")
            data[at:at + 8] = b"/ld-musl"
        self.refused(self.copy("elf32", patch=small), 125, "another kind of machine than percpu: the allocator cannot")
        self.refused(self.copy("musl", patch=loader), 125, "another C library than percpu: the allocator cannot")

    def test_not_there(self):
        self.refused("no-such-program-anywhere", 127, "not found")
        self.refused("/no/such/program", 127, "No such file")
        self.refused(self.copy(mode=0o644), 126, "Permission denied")
        self.refused(self.script("#!/no/such/interpreter\n"), 127, "No such file")

    def test_malloc_of_its_own(self):
        """It is told about, and runs."""
        self.complains(run("run", "--", OWN), 0, "own-malloc brings a malloc of its own")

    def test_usage(self):
        for arguments, text in (
                ([], "which program"), (["--"], "which program"), (["--frob", "true"], "unknown option --frob"),
                (["-x", "true"], "unknown option -x"), (["--stats=", "true"], "from 0.01 to 86400"),
                (["--stats=0", "true"], "from 0.01"), (["--stats=-1", "true"], "from 0.01"), (["--stats=1s", "true"], "from 0.01"),
                (["--stats=nan", "true"], "from 0.01"), (["--stats=86401", "true"], "from 0.01"), (["--json"], "needs a value"),
                (["--json", "", "true"], "empty"), (["--heap-profile", "a,b", "true"], "comma"),
                (["--heap-profile", "", "true"], "empty"), (["--option"], "needs a value")):
            with self.subTest(arguments=arguments):
                self.complains(run("run", *arguments), 2, text)

    def test_ends_as_the_program(self):
        for options in ((), ("--stats",)):
            self.assertEqual(run("run", *options, "--", BLOCKS, "exit=77").returncode, 77)
            self.assertEqual(run("run", *options, "--", BLOCKS, "kill=11").returncode, -11)
            self.assertEqual(run("run", *options, "--", self.script("#!/bin/sh\nexit 9\n")).returncode, 9)

    def test_becomes_the_program(self):
        """Without statistics there is no process beside it."""
        with subprocess.Popen([PERCPU, "run", "--", "sh", "-c", "echo $$ $LD_PRELOAD"], stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(timeout=LIMIT)
            self.assertEqual(out.decode().split(), [str(process.pid), os.path.realpath(ALLOCATOR)])

    def test_other_preloads(self):
        for options in ((), ("--stats",)):
            done = run("run", *options, "--", "sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": "libm.so.6"})
            self.assertEqual(done.stdout.decode().strip(), f"{os.path.realpath(ALLOCATOR)}:libm.so.6")
        done = run("run", "--", PERCPU, "run", "--", "sh", "-c", "echo $LD_PRELOAD")
        self.assertEqual(done.stdout.decode().strip(), os.path.realpath(ALLOCATOR))

    def test_under_stat(self):
        """What counts calls stays in front, and counts."""
        out = self.path("counts.json")
        done = run("stat", "-q", "--json", out, "--", PERCPU, "run", "--", BLOCKS, f"1000x{SIZE}")
        self.assertEqual(done.returncode, 0)
        self.assertGreaterEqual(self.load(out)["counters"]["alloc_calls"]["total"], 1000)
        done = run("stat", "-q", "--", PERCPU, "run", "--", "sh", "-c", "echo $LD_PRELOAD")
        self.assertEqual(done.stdout.decode().strip(), f"{os.path.realpath(PRELOAD)}:{os.path.realpath(ALLOCATOR)}")

    def test_descriptors_and_environment(self):
        """The program sees its own descriptors; of the environment only our variables are new."""
        code = "import os; print(sorted(os.environ)); print(os.listdir('/proc/self/fd').__len__())"
        plain = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=LIMIT, check=True).stdout.decode()
        under = run("run", "--stats", "--", sys.executable, "-c", code).stdout.decode()
        names, count = plain.splitlines()
        new = set(eval(under.splitlines()[0])) - set(eval(names))  # pylint: disable=eval-used
        self.assertLessEqual(new, {"LD_PRELOAD", "PERCPU_MALLOC_SESSION"})
        self.assertEqual(under.splitlines()[1], count)

    def test_libc(self):
        """Functions of the C library, with the allocator and without, once."""
        library = os.path.realpath(os.path.join(os.path.dirname(ALLOCATOR), "..", "libc", "libpercpu-libc.so"))
        if not os.path.exists(library):
            self.skipTest("libpercpu-libc was not built")
        show = ["--", "sh", "-c", "echo $LD_PRELOAD"]
        both = f"{os.path.realpath(ALLOCATOR)}:{library}"
        for before, expected in ((["run", "--libc"], both), (["run", "--libc", "--no-malloc"], library),
                                 (["run", "--libc", "--", PERCPU, "run", "--libc"], both),
                                 (["run", "--libc", "--", PERCPU, "run"], both),
                                 (["run", "--", PERCPU, "run", "--libc", "--no-malloc"], f"{library}:{os.path.realpath(ALLOCATOR)}"),
                                 (["stat", "-q", "--", PERCPU, "run", "--libc"], f"{os.path.realpath(PRELOAD)}:{both}")):
            done = run(*before, *show)
            self.assertEqual((done.returncode, done.stdout.decode().strip()), (0, expected), before)
        done = run("run", "--libc", "--stats", "--", sys.executable, "-c", "import os; print(os.environ['LD_PRELOAD'])")
        self.assertEqual(done.stdout.decode().strip(), both)
        self.assertIn(b"SIZE", done.stderr)
        for wrong in (["--no-malloc"], ["--no-malloc", "--libc", "--stats"], ["--libc", "--option", "zero", "--no-malloc"]):
            done = run("run", *wrong, *show)
            self.assertEqual((done.returncode, done.stdout), (2, b""), wrong)
            self.assertIn(b"--no-malloc", done.stderr)
        for value, expected in (("", ""), ("=parallel", "parallel")):
            done = run("run", "--libc" + value, "--no-malloc", "--", "sh", "-c", "echo $PERCPU_LIBC_PHDR")
            self.assertEqual((done.returncode, done.stdout.decode().strip()), (0, expected))
        done = run("run", "--libc=serial", *show)
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        self.assertIn(b'"parallel", not "serial"', done.stderr)
        if STATIC:
            done = run("run", "--libc", "--no-malloc", "--", STATIC)
            self.assertEqual(done.returncode, 125)
            self.assertIn(b"functions cannot be preloaded", done.stderr)

    def test_terminal_is_standard_input(self):
        done = run("run", "--stats", "--", "cat", input=b"text")
        self.assertEqual((done.returncode, done.stdout), (0, b"text"))


if __name__ == "__main__":
    PERCPU, BLOCKS, LINKED, STATIC, OWN, ALLOCATOR, PRELOAD = (os.path.abspath(arg) if arg else "" for arg in sys.argv[1:8])
    os.environ["PERCPU_MALLOC"] = EXACT
    os.environ.pop("LD_PRELOAD", None)
    unittest.main(argv=[sys.argv[0], *sys.argv[8:]], verbosity=2)
