#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tests of `percpu stat` and `percpu info`, from outside.

usage: stat.py PERCPU CALLS STATIC PRELOAD [unittest arguments]

CALLS is the program of calls.c, STATIC the same or another one linked statically ("" if that cannot be built here),
PRELOAD the counting object. Nothing here depends on how long anything takes, but for limits against hanging.
"""
import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PERCPU = CALLS = STATIC = PRELOAD = None
LIMIT = 60

MODES = {
    "libc": {},
    "own": {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"},
    "none": {"PERCPU_RSEQ": "off"},
}

# What one round of each part of calls.c does.
PARTS = {
    "memory": {"alloc_calls": 6, "alloc_bytes": 350032, "realloc_calls": 2, "free_calls": 4},
    "locks": {"mutex_lock_calls": 5, "mutex_lock_waits": 2, "mutex_trylock_calls": 2, "mutex_unlock_calls": 3,
              "cond_wait_calls": 2},
    "times": {"localtime_calls": 2, "gmtime_calls": 2, "mktime_calls": 1},
    "files": {"read_calls": 6, "read_bytes": 25, "write_calls": 3, "write_bytes": 30,
              "send_calls": 4, "send_bytes": 42, "recv_calls": 4, "recv_bytes": 42},
}
SIZES = {8192: 1, 16384: 1, 32768: 1, 65536: 2, 131072: 1}
# What the C library itself allocates is in these: they are compared with a run of 0 rounds where that makes sense.
OWN = ("alloc_calls", "alloc_bytes", "free_calls", "realloc_calls")


def run(*args, env=None, **options):
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.run([PERCPU, *args], env={**os.environ, **(env or {})}, timeout=LIMIT, **options)


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="percpu-test-")
        self.addCleanup(shutil.rmtree, self.dir)

    def path(self, name):
        return os.path.join(self.dir, name)

    def counted(self, *command, env=None, status=0, options=()):
        """Runs a command under stat, and returns what it counted."""
        out = self.path("counts.json")
        done = run("stat", "-q", *options, "--json", out, "--", *command, env=env)
        self.assertEqual((done.returncode, done.stderr), (status, b""))
        with open(out, encoding="utf-8") as file:
            result = json.load(file)
        for name, counter in result["counters"].items():
            self.assertEqual(counter["total"], sum(counter["by_index"].values()), name)
        self.output = done.stdout
        return result

    def complains(self, done, status, text):
        """Exactly one line, that says so, and nothing on standard output."""
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertEqual(done.stdout, b"")
        lines = done.stderr.decode().splitlines()
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], "^percpu: .*" + text)


class Counts(Case):
    """The counts are exact, in every mode."""

    def totals(self, result):
        return {name: counter["total"] for name, counter in result["counters"].items()}

    def check(self, what, times, env, rounds=200, extra=None):
        result = self.counted(CALLS, str(rounds), what, env=env)
        totals = self.totals(result)
        expected = {name: 0 for name in totals if name not in OWN}
        for part in times:
            for name, count in PARTS[part].items():
                if name not in OWN:
                    expected[name] += count * times[part] * rounds
        expected.update(extra or {})
        self.assertEqual({name: totals[name] for name in expected}, expected)
        sizes = {size["low"]: size["calls"] for size in result["allocation_sizes"]}
        if "memory" in times:
            for low, count in SIZES.items():
                self.assertEqual(sizes.get(low), count * times["memory"] * rounds, low)
        return result

    def each_mode(self, test):
        for mode, env in MODES.items():
            with self.subTest(mode=mode):
                test(env)

    def test_one_thread(self):
        def test(env):
            nothing = self.totals(self.counted(CALLS, "0", "memory", env=env))
            totals = self.totals(self.counted(CALLS, "1000", "memory", env=env))
            for name, count in PARTS["memory"].items():
                self.assertEqual(totals[name] - nothing[name], 1000 * count, name)
            self.check("all", dict.fromkeys(PARTS, 1), env)
        self.each_mode(test)

    def test_bytes_by_size(self):
        result = self.counted(CALLS, "10", "memory")
        sizes = {size["low"]: size for size in result["allocation_sizes"]}
        self.assertEqual(sizes[65536]["bytes"], 10 * 140000)
        self.assertEqual(sizes[65536]["high"], 131071)
        self.assertEqual(sum(sizes[65536]["bytes_by_index"].values()), 10 * 140000)
        self.assertEqual(sum(sizes[65536]["calls_by_index"].values()), 20)

    def test_threads(self):
        self.each_mode(lambda env: self.check("threads", dict.fromkeys(PARTS, 5), env,
                                              extra={"thread_create_calls": 5}))

    def test_forks(self):
        self.each_mode(lambda env: self.check("forks", dict.fromkeys(PARTS, 3), env))

    def test_execs(self):
        def test(env):
            result = self.check("execs", {"memory": 1, "times": 1}, env)
            self.assertEqual(result["programs"], 3)
        self.each_mode(test)

    def test_vforks(self):
        rounds = 500
        self.each_mode(lambda env: self.check("vforks", {}, env, rounds, {
            "thread_create_calls": 4, "write_calls": 4 * 5 * rounds, "write_bytes": 4 * 5 * rounds * 4}))

    def test_signal_handlers(self):
        def test(env):
            result = self.counted(CALLS, "300000", "signals", env=env)
            self.assertEqual(result["counters"]["write_calls"]["total"], 300000 + int(self.output))
            self.assertGreater(int(self.output), 0)
        self.each_mode(test)

    def test_killed(self):
        def test(env):
            result = self.counted(CALLS, "300", "memory", "kill=9", env=env, status=-9)
            sizes = {size["low"]: size["calls"] for size in result["allocation_sizes"]}
            self.assertEqual({low: sizes.get(low) for low in SIZES}, {low: n * 300 for low, n in SIZES.items()})
            self.assertEqual(result["signal"], 9)
        self.each_mode(test)

    def test_mode_none_counts_in_the_remainder(self):
        result = self.counted(CALLS, "50", "times", env=MODES["none"])
        self.assertEqual(result["counters"]["mktime_calls"]["by_index"], {"other": 50})
        result = self.counted(CALLS, "50", "times")
        if json.loads(run("info", "--json").stdout)["mode"] != "none":
            self.assertNotIn("other", result["counters"]["mktime_calls"]["by_index"])

    def test_shell_pipeline(self):
        result = self.counted("sh", "-c", f"{CALLS} 10 times | cat; exec {CALLS} 7 times")
        self.assertEqual(result["counters"]["mktime_calls"]["total"], 17)

    def test_nested(self):
        inner = self.path("inner.json")
        self.counted(PERCPU, "stat", "-q", "--json", inner, "--", CALLS, "10", "times")
        with open(inner, encoding="utf-8") as file:
            self.assertEqual(json.load(file)["counters"]["mktime_calls"]["total"], 10)

    def test_other_preloads_stay(self):
        self.counted("sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": "libm.so.6"})
        self.assertEqual(self.output.decode().strip(), f"{os.path.realpath(PRELOAD)}:libm.so.6")

    def test_not_trusted(self):
        """With the variable set to something else, a program runs, and counts nothing."""
        odd = self.path("odd")
        with open(odd, "wb") as file:
            file.truncate(64 << 20)
        fd = os.open(odd, os.O_RDWR)
        values = ("", "x", "/etc/passwd 0123456789abcdef", f"/proc/{os.getpid()}/fd/{fd} 0123456789abcdef",
                  "/proc/1/fd/0 0123456789abcdef", f"{odd} 0123456789abcdef")
        for value in values:
            env = {**os.environ, "LD_PRELOAD": os.path.realpath(PRELOAD), "PERCPU_STAT_SESSION": value}
            done = subprocess.run([CALLS, "100", "all"], env=env, timeout=LIMIT, capture_output=True, check=False)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""), value)
        os.close(fd)
        with open(odd, "rb") as file:
            self.assertEqual(file.read(1 << 20).count(b"\0"), 1 << 20)


class Untouched(Case):
    """The program does not notice, but for two variables in its environment."""

    def test_exit_status(self):
        for status in (0, 1, 3, 125, 126, 127, 255):
            self.assertEqual(run("stat", "-q", "--", CALLS, "0", f"exit={status}").returncode, status)

    def test_signal_status(self):
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGKILL, signal.SIGUSR1,
                       signal.SIGSEGV, signal.SIGPIPE, signal.SIGALRM, signal.SIGTERM, signal.SIGXFSZ, 40):
            self.assertEqual(run("stat", "-q", "--", CALLS, "0", f"kill={int(number)}").returncode, -number)

    def test_filter(self):
        data = os.urandom(1 << 20) + b"line\n" * 100000
        for command in (["cat"], ["xz", "-1", "-c", "-T2"], ["tr", "a-z", "A-Z"]):
            if not shutil.which(command[0]):
                continue
            plain = subprocess.run(command, input=data, capture_output=True, timeout=LIMIT, check=True)
            done = run("stat", "-q", "--json", self.path("json"), "--", *command, input=data)
            self.assertEqual(done.stdout, plain.stdout)
            self.assertEqual(done.stderr, plain.stderr)

    def test_arguments(self):
        arguments = ["-i", "--json", "", "a b", "*", "--", "\udcff"]
        done = run("stat", "-q", "--", "printf", "<%s>", *arguments)
        self.assertEqual(done.stdout, b"<-i><--json><><a b><*><--><\xff>")
        json_file = self.path("json")
        run("stat", "-q", "--json", json_file, "--", "printf", "<%s>", *arguments)
        with open(json_file, encoding="utf-8") as file:
            self.assertEqual(json.load(file)["command"], ["printf", "<%s>", *arguments[:-1], "?"])

    def test_environment(self):
        def variables(command):
            done = subprocess.run(command, capture_output=True, timeout=LIMIT, check=True)
            return {line.split(b"=", 1)[0] for line in done.stdout.splitlines()}
        self.assertEqual(variables([PERCPU, "stat", "-q", "--", "env"]) - variables(["env"]),
                         {b"LD_PRELOAD", b"PERCPU_STAT_SESSION"})

    def test_descriptors_and_signal_state(self):
        script = ("import os, signal; print(sorted(os.listdir('/proc/self/fd'))); "
                  "print([str(signal.getsignal(s)) for s in signal.valid_signals()]); "
                  "print(open('/proc/self/status').read().split('SigBlk')[1].split('CapInh')[0])")
        plain = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=LIMIT, check=True)
        done = run("stat", "-q", "--", sys.executable, "-c", script)
        self.assertEqual(done.stdout, plain.stdout)

    def test_ignored_signals_stay_ignored(self):
        script = "trap '' INT PIPE TERM CHLD; exec \"$@\""
        command = ["sh", "-c", "grep SigIgn /proc/self/status"]
        plain = subprocess.run(["sh", "-c", script, "sh", *command], capture_output=True, timeout=LIMIT, check=True)
        done = subprocess.run(["sh", "-c", script, "sh", PERCPU, "stat", "-q", "--", *command],
                              capture_output=True, timeout=LIMIT, check=True)
        self.assertEqual(done.stdout, plain.stdout)

    def test_mutex_answers(self):
        plain = subprocess.run([CALLS, "1", "answers"], capture_output=True, timeout=LIMIT, check=True)
        self.counted(CALLS, "1", "answers")
        self.assertEqual(self.output, plain.stdout)

    def test_cancellation(self):
        self.counted(CALLS, "1", "cancel")
        self.assertEqual(self.output, b"cancelled\n")

    def test_closed_descriptors(self):
        for closed in ((0,), (1,), (2,), (0, 1, 2)):
            done = subprocess.run([PERCPU, "stat", "--", CALLS, "5", "all", "exit=7"], timeout=LIMIT, check=False,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                  preexec_fn=lambda fds=closed: [os.close(fd) for fd in fds])
            self.assertEqual(done.returncode, 7)
        # They are closed in the program, too.
        out = self.path("fds")
        subprocess.run([PERCPU, "stat", "-q", "--json", self.path("json"), "--", "sh", "-c",
                        f"exec ls /proc/self/fd 3>{out} >&3"], timeout=LIMIT, check=False,
                       preexec_fn=lambda: os.close(0))
        with open(out, encoding="ascii") as file:
            self.assertEqual(file.read().split()[0], "0")  # the directory that ls opened

    def test_nothing_left_behind(self):
        def files():
            return {place: sorted(os.listdir(place)) for place in ("/dev/shm", self.dir)}
        env = {"TMPDIR": self.dir, "XDG_RUNTIME_DIR": self.dir}
        before = files()
        run("stat", "--", CALLS, "5", "all", env=env)
        run("stat", "--", CALLS, "5", "all", "kill=9", env=env)
        self.assertEqual(files(), before)

    def test_memory_is_private(self):
        done = run("stat", "-q", "--", "sh", "-c", "stat -L -c '%a %u %F' ${PERCPU_STAT_SESSION% *}")
        self.assertEqual(done.stdout.decode().strip(), f"600 {os.getuid()} regular file")


class Signals(Case):
    """What is sent to percpu alone reaches the program, once; what the terminal sends reaches it without percpu."""

    PROGRAM = ("import signal, sys, time\n"
               "got = []\n"
               "for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT,\n"
               "          signal.SIGRTMIN + 3):\n"
               "    signal.signal(s, lambda number, frame: got.append(number))\n"
               "print('ready', flush=True)\n"
               "sys.stdin.readline()\n"
               "while len(got) < int(sys.argv[1]): time.sleep(0.01)\n"
               "time.sleep(0.1)\n"
               "print(got, flush=True)\n")

    def test_sent_to_us(self):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGRTMIN + 3):
            with subprocess.Popen([PERCPU, "stat", "-q", "--json", self.path("json"), "--", sys.executable, "-c",
                                   self.PROGRAM, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                self.assertEqual(process.stdout.readline(), b"ready\n")
                process.send_signal(number)
                out, _ = process.communicate(b"\n", timeout=LIMIT)
                self.assertEqual((process.returncode, out.decode().strip()), (0, f"[{int(number)}]"))

    def test_ends_the_program(self):
        with subprocess.Popen([PERCPU, "stat", "-q", "--", "sh", "-c", "echo $$; exec sleep 1000"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            pid = int(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=LIMIT)
            self.assertEqual(process.returncode, -signal.SIGTERM)
            self.assertIn(b"alloc_calls", error)
            self.assertFalse(os.path.exists(f"/proc/{pid}"))

    @contextlib.contextmanager
    def on_terminal(self, *command):
        """A session with a terminal of its own, and the command as its foreground job."""
        pid, master = pty.fork()
        if not pid:
            # The session's leader plays the shell; it only waits.
            child = os.fork()
            if not child:
                os.setpgid(0, 0)
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)
                os.tcsetpgrp(0, os.getpgrp())
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                os.execv(PERCPU, [PERCPU, *command])
            while True:
                _, status = os.waitpid(child, os.WUNTRACED)
                text = (f"stopped {os.WSTOPSIG(status)}" if os.WIFSTOPPED(status) else
                        f"killed {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else
                        f"exited {os.WEXITSTATUS(status)}")
                with open(self.path("job"), "a", encoding="ascii") as file:
                    file.write(f"{text}\n")
                if not os.WIFSTOPPED(status):
                    os._exit(0)
                os.killpg(child, signal.SIGCONT)
        try:
            yield master
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.close(master)
            os.waitpid(pid, 0)

    def read_until(self, master, text):
        seen = b""
        limit = time.monotonic() + LIMIT
        while text not in seen:
            self.assertTrue(select.select([master], [], [], limit - time.monotonic())[0], seen)
            try:
                seen += os.read(master, 65536)
            except OSError:
                self.fail(f"the terminal was closed after {seen!r}")
        return seen

    def job(self):
        limit = time.monotonic() + LIMIT
        while time.monotonic() < limit:
            with contextlib.suppress(FileNotFoundError), open(self.path("job"), encoding="ascii") as file:
                lines = file.read().splitlines()
                if lines and not lines[-1].startswith("stopped"):
                    return lines
            time.sleep(0.02)
        self.fail("the job did not end")
        return None

    def test_interrupt_key(self):
        with self.on_terminal("stat", "-q", "--", sys.executable, "-c", self.PROGRAM, "1") as master:
            self.read_until(master, b"ready")
            os.write(master, b"\x03")
            os.write(master, b"\n")
            self.read_until(master, b"[2]")
            self.assertEqual(self.job(), ["exited 0"])

    def test_interrupt_key_kills(self):
        with self.on_terminal("stat", "-q", "--", "sh", "-c", "echo ready; exec sleep 1000") as master:
            self.read_until(master, b"ready")
            os.write(master, b"\x03")
            self.read_until(master, b"thread_create_calls")
            self.assertEqual(self.job(), ["killed 2"])

    def test_stop_key(self):
        with self.on_terminal("stat", "-q", "--", sys.executable, "-c", self.PROGRAM, "0") as master:
            self.read_until(master, b"ready")
            os.write(master, b"\x1a")
            limit = time.monotonic() + LIMIT
            while not os.path.exists(self.path("job")) and time.monotonic() < limit:
                time.sleep(0.02)
            os.write(master, b"\n")
            self.read_until(master, b"[]")
            self.assertEqual(self.job(), [f"stopped {int(signal.SIGTSTP)}", "exited 0"])

    def test_table_on_terminal(self):
        """The table is drawn, and what the program prints meanwhile stays readable, in its order."""
        lines = 40
        with self.on_terminal("stat", "--top", "-i", "10", "--", "sh", "-c",
                              f"for i in $(seq {lines}); do echo line$i; {CALLS} 3000 files; done") as master:
            seen = self.read_until(master, b"ALLOCATION SIZE")
            self.assertEqual(self.job(), ["exited 0"])
        screen = Screen(seen.decode())
        self.assertGreater(screen.frames, 3)
        printed = [line for line in screen.lines() if line.startswith("line")]
        self.assertEqual([re.match(r"line\d+", line).group() for line in printed],
                         [f"line{i}" for i in range(1, lines + 1)])
        final = [line for line in screen.lines() if line.startswith("read_calls")]
        self.assertGreaterEqual(int(final[-1].split()[1]), 6 * 3000 * lines)


class Screen:
    """As much of a terminal as the live table needs: 24 lines, and what was scrolled out of them."""

    HEIGHT = 24

    def __init__(self, text):
        self.gone, self.rows = [], [[] for _ in range(self.HEIGHT)]
        self.row = self.column = self.frames = 0
        self.saved = (0, 0)
        for part in re.findall(r"\x1b(?:\[\d*[A-Za-z]|[D78])|[^\x1b]|\x1b", text, re.S):
            self.take(part)

    def down(self):
        if self.row == self.HEIGHT - 1:
            self.gone.append(self.rows.pop(0))
            self.rows.append([])
        else:
            self.row += 1

    def take(self, part):
        if part in ("\n", "\x1bD"):
            self.down()
        elif part == "\r":
            self.column = 0
        elif part == "\x1b7":
            self.saved = (self.row, self.column)
            self.frames += 1
        elif part == "\x1b8":
            self.row, self.column = self.saved
        elif part == "\x1b[J":
            self.rows[self.row] = self.rows[self.row][:self.column]
            self.rows[self.row + 1:] = [[] for _ in self.rows[self.row + 1:]]
        elif part.endswith("A") and part.startswith("\x1b["):
            self.row = max(0, self.row - int(part[2:-1]))
        elif part.startswith("\x1b"):
            raise AssertionError(f"what is {part!r}?")
        else:
            row = self.rows[self.row]
            row.extend(" " * (self.column + 1 - len(row)))
            row[self.column] = part
            self.column += 1

    def lines(self):
        return ["".join(row) for row in self.gone + self.rows]


class Output(Case):
    """What percpu stat itself prints and writes."""

    def test_final_table(self):
        done = run("stat", "-q", "--", CALLS, "1000", "all")
        rows = {line.split()[0]: line.split()[1:] for line in done.stderr.decode().splitlines() if line.strip()}
        self.assertEqual(rows["COUNT"][:3], ["TOTAL", "PER", "SECOND"])
        self.assertEqual(rows["mktime_calls"][0], "1000")
        self.assertEqual(sum(map(int, rows["mktime_calls"][2:])), 1000)
        self.assertEqual(rows["65536-131071"][:2], ["2000", "140000000"])

    def test_lines_in_a_pipe(self):
        done = run("stat", "-i", "20", "--", CALLS, "400000", "files")
        lines = [line for line in done.stderr.decode().splitlines() if re.match(r"percpu: [0-9.]+ s .*/s", line)]
        self.assertGreater(len(lines), 1)
        self.assertRegex(done.stderr.decode(), r"percpu: \d+\.\d s .*read_calls \d+/s read_bytes \d+/s")
        self.assertNotIn(b"\x1b", done.stderr)
        done = run("stat", "-i", "20", "--top", "--", CALLS, "400000", "files")
        self.assertRegex(done.stderr.decode(), r"percpu: \d+\.\d s (cpu\d+|other) .*read_calls \d+/s")

    def test_json(self):
        result = self.counted(CALLS, "10", "all", "exit=3", status=3)
        self.assertEqual(result["command"], [CALLS, "10", "all", "exit=3"])
        self.assertEqual(result["exit_status"], 3)
        self.assertNotIn("signal", result)
        self.assertEqual(result["programs"], 1)
        self.assertGreater(result["seconds"], 0)
        self.assertEqual(os.stat(self.path("counts.json")).st_mode & 0o7777, 0o600)

    def test_json_on_stdout(self):
        for option in (["--json", "-", "--"], ["--json", "--"], ["--json=-"]):
            done = run("stat", "-q", *option, "echo", "hello")
            self.assertTrue(done.stdout.startswith(b"hello\n"))
            self.assertEqual(json.loads(done.stdout[6:])["command"], ["echo", "hello"])

    def check_openmetrics(self, text):
        """The rules of the format that can be seen without knowing what is measured."""
        self.assertTrue(text.endswith("# EOF\n"))
        values, family, kinds = {}, None, {}
        for line in text.splitlines()[:-1]:
            if line.startswith("#"):
                kind, name, rest = re.fullmatch(r"# (TYPE|UNIT|HELP) ([a-z_]+) (.+)", line).groups()
                if kind == "TYPE":
                    self.assertNotIn(name, kinds)
                    self.assertIn(rest, ("counter", "histogram"))
                    family, kinds[name] = name, rest
                self.assertEqual(name, family)
                if kind == "UNIT":
                    self.assertTrue(name.endswith("_" + rest))
                continue
            name, labels, value = re.fullmatch(r'([a-z_]+)(\{[a-z]+="[^"\\]*"\})? (\d+)', line).groups()
            suffixes = ("_total",) if kinds[family] == "counter" else ("_bucket", "_count", "_sum")
            self.assertIn(name, [family + suffix for suffix in suffixes])
            self.assertNotIn((name, labels), values)
            values[name, labels] = int(value)
        buckets = [v for (name, _), v in values.items() if name.endswith("_bucket")]
        self.assertEqual(buckets, sorted(buckets))
        self.assertEqual(buckets[-1], values["percpu_alloc_size_bytes_count", None])
        return values

    def test_openmetrics(self):
        out = self.path("metrics")
        done = run("stat", "-q", "--openmetrics", out, "--", CALLS, "100", "all")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        with open(out, encoding="ascii") as file:
            values = self.check_openmetrics(file.read())
        self.assertEqual(sum(v for (name, _), v in values.items() if name == "percpu_mktime_calls_total"), 100)
        self.assertEqual(values["percpu_alloc_size_bytes_bucket", '{le="131071"}'] -
                         values["percpu_alloc_size_bytes_bucket", '{le="65535"}'], 200)
        self.assertEqual(os.stat(out).st_mode & 0o7777, 0o600)
        self.assertEqual(os.listdir(self.dir), ["metrics"])

    def test_openmetrics_while_running(self):
        out = self.path("metrics")
        with subprocess.Popen([PERCPU, "stat", "-q", "-i", "10", "--openmetrics", out, "--", "cat"],
                              stdin=subprocess.PIPE) as process:
            limit = time.monotonic() + LIMIT
            while not os.path.exists(out) and time.monotonic() < limit:
                time.sleep(0.01)
            for _ in range(20):
                with open(out, encoding="ascii") as file:
                    self.check_openmetrics(file.read())
                time.sleep(0.005)
            process.communicate(b"", timeout=LIMIT)

    def test_file_errors(self):
        def stat(name):
            return run("stat", "-q", "--json", name, "--", CALLS, "0")
        link = self.path("link")
        target = self.path("target")
        os.symlink(target, link)
        self.complains(stat(link), 125, "symbolic link")
        self.assertFalse(os.path.exists(target))
        self.complains(stat(self.dir), 125, "directory")
        self.complains(stat(self.path("no/where")), 125, "No such file")
        self.complains(stat("/dev/full"), 1, "No space left on device")

    def test_full_disk_and_closed_pipe_on_stdout(self):
        with open("/dev/full", "wb") as full:
            done = run("stat", "-q", "--json", "-", "--", CALLS, "0", stdout=full)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, b"^percpu: .*No space left on device\n$")
            for arguments in (["info"], ["info", "--json"], ["help"], ["--version"], ["stat", "--help"]):
                done = run(*arguments, stdout=full)
                self.assertEqual(done.returncode, 1, arguments)
                self.assertRegex(done.stderr, b"^percpu: .*No space left on device\n$")
        ends = os.pipe()
        os.close(ends[0])
        done = run("stat", "-q", "--json", "-", "--", CALLS, "0", stdout=ends[1])
        os.close(ends[1])
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, b"^percpu: .*Broken pipe\n$")

    def test_stderr_lost(self):
        ends = os.pipe()
        os.close(ends[0])
        self.assertEqual(run("stat", "--", CALLS, "5", "all", "exit=6", stderr=ends[1]).returncode, 6)
        os.close(ends[1])
        with open("/dev/full", "wb") as full:
            self.assertEqual(run("stat", "--", CALLS, "5", "all", "exit=6", stderr=full).returncode, 6)

    def test_writes_to_a_pipe(self):
        fifo = self.path("fifo")
        os.mkfifo(fifo)
        with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
            run("stat", "-q", "--json", fifo, "--", CALLS, "0")
            out, _ = reader.communicate(timeout=LIMIT)
        self.assertEqual(json.loads(out)["exit_status"], 0)


class Refused(Case):
    """Programs that cannot be counted, and mistakes."""

    def copy(self, name="program", mode=0o755, patch=None):
        with open(CALLS, "rb") as file:
            data = bytearray(file.read())
        if patch:
            patch(data)
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)
        return path

    def script(self, text, mode=0o755):
        path = self.path("script")
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def test_static(self):
        if not STATIC:
            self.skipTest("no static C library here")
        self.complains(run("stat", "--", STATIC), 125, "statically linked")
        self.complains(run("stat", "--", self.script(f"#! {STATIC} x\n")), 125, "statically linked")

    def test_set_user_id(self):
        self.complains(run("stat", "--", self.copy(mode=0o4755), "0"), 125, "set-user-id")
        self.complains(run("stat", "--", self.copy(mode=0o2755), "0"), 125, "set-group-id")

    def test_file_capabilities(self):
        path = self.copy()
        try:
            os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        except OSError as error:
            self.skipTest(f"cannot set file capabilities here: {error}")
        self.complains(run("stat", "--", path, "0"), 125, "file capabilities")

    def test_other_machine(self):
        def machine(data):
            data[18:20] = b"\x08\x00"

        def small(data):
            data[4] = 1
        self.complains(run("stat", "--", self.copy("mips", patch=machine)), 125, "another kind of machine")
        self.complains(run("stat", "--", self.copy("elf32", patch=small)), 125, "another kind of machine")

    def test_damaged(self):
        def offset(data):
            data[32:40] = b"\xff" * 8
        self.complains(run("stat", "--", self.copy(patch=offset)), 125, "damaged")
        path = self.copy()
        os.truncate(path, 40)
        self.assertIn(run("stat", "--", path).returncode, (125, 126))

    def test_other_c_library(self):
        def loader(data):
            at = data.index(b"/ld-")
            data[at:at + 8] = b"/ld-musl"
        self.complains(run("stat", "--", self.copy(patch=loader)), 125, "another C library")

    def test_sanitizer(self):
        source = self.path("a.c")
        with open(source, "w", encoding="ascii") as file:
            file.write("int main(void) { return 0; }\n")
        done = subprocess.run(["gcc", "-fsanitize=address", source, "-o", self.path("a")], capture_output=True,
                              timeout=LIMIT, check=False) if shutil.which("gcc") else None
        if not done or done.returncode:
            self.skipTest("no compiler with a sanitizer here")
        self.complains(run("stat", "--", self.path("a")), 125, "sanitizer")

    def test_not_found(self):
        self.complains(run("stat", "--", "no-such-program-anywhere"), 127, "not found")
        self.complains(run("stat", "--", "/no/such/program"), 127, "No such file")
        self.complains(run("stat", "--", ""), 127, "")
        self.complains(run("stat", "--", "ls", env={"PATH": "/nowhere:"}), 127, "not found")

    def test_not_executable(self):
        self.complains(run("stat", "--", self.copy(mode=0o644)), 126, "Permission denied")
        self.complains(run("stat", "--", self.dir), 126, "Permission denied")
        self.complains(run("stat", "--", self.script("#!/no/such/interpreter\n")), 127, "No such file")

    def test_scripts(self):
        self.assertEqual(run("stat", "-q", "--", self.script("#!/bin/sh\nexit 9\n")).returncode, 9)
        self.assertEqual(run("stat", "-q", "--", self.script("exit 8\n")).returncode, 8)
        self.assertEqual(run("stat", "-q", "--", self.script("#!/usr/bin/env sh\nexit 7\n")).returncode, 7)

    def test_path_search(self):
        self.copy("percpu-test-program")
        path = f"/nowhere::{self.dir}:/bin"
        self.assertEqual(run("stat", "-q", "--", "percpu-test-program", "0", "exit=4", env={"PATH": path}).returncode, 4)
        done = run("stat", "-q", "--", "percpu-test-program", "0", "exit=5", env={"PATH": ""}, cwd=self.dir)
        self.assertEqual(done.returncode, 5)

    def test_usage(self):
        for arguments, text in (
                ([], "which command"), (["frob"], "unknown command frob"), (["--frob"], "unknown option --frob"),
                (["stat"], "which program"), (["stat", "--"], "which program"),
                (["stat", "--frob", "--", "true"], "unknown option --frob"), (["stat", "-x", "true"], "unknown option -x"),
                (["stat", "-i"], "-i needs"), (["stat", "-i", "9", "true"], "from 10 to 3600000"),
                (["stat", "-i", "3600001", "true"], "from 10"), (["stat", "-i", "1e3", "true"], "from 10"),
                (["stat", "-i", "-50", "true"], "from 10"), (["stat", "-i", "", "true"], "from 10"),
                (["stat", "-i", "99999999999999999999", "true"], "from 10"), (["stat", "--json"], "needs a value"),
                (["stat", "--json", "", "true"], "empty"), (["info", "x"], "unexpected argument x"),
                (["info", "--jsonx"], "unknown option --jsonx"), (["info", "--json=3"], "")):
            with self.subTest(arguments=arguments):
                self.complains(run(*arguments), 2, text)

    def test_preload_needs_a_plain_path(self):
        place = self.path("a b/cli")
        os.makedirs(place)
        os.makedirs(self.path("a b/preload"))
        shutil.copy(PERCPU, place)
        shutil.copy(PRELOAD, self.path("a b/preload"))
        done = subprocess.run([os.path.join(place, "percpu"), "stat", "--", "true"], capture_output=True,
                              timeout=LIMIT, check=False)
        self.complains(done, 125, "space or a colon")


class Info(Case):
    def info(self, *before, env=None):
        done = subprocess.run([*before, PERCPU, "info", "--json"], env={**os.environ, **(env or {})},
                              capture_output=True, timeout=LIMIT, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        return json.loads(done.stdout)

    def test_fields(self):
        info = self.info()
        self.assertEqual(info["kernel"], os.uname().release)
        self.assertIn(info["mode"], ("libc", "own", "none"))
        self.assertGreaterEqual(info["possible_cpus"], os.cpu_count())
        for name in ("reason", "index_kind", "topology", "arch", "version"):
            self.assertTrue(info[name], name)
        for name in ("fence", "v2", "node_id", "concurrency_id", "slice_extension", "thread_registered"):
            self.assertIsInstance(info[name], bool)

    def test_off(self):
        info = self.info(env=MODES["none"])
        self.assertEqual((info["mode"], info["thread_registered"]), ("none", False))
        self.assertIn("PERCPU_RSEQ", info["reason"])
        self.assertTrue(any("restartable sequences" in text for text in info["missing"]))

    def test_own(self):
        if self.info()["mode"] != "libc":
            self.skipTest("the C library does not register here")
        self.assertEqual(self.info(env=MODES["own"])["mode"], "own")

    def test_table(self):
        done = run("info")
        rows = {line[:line.index("  ")]: line.split("  ")[-1].strip()
                for line in done.stdout.decode().splitlines() if re.match(r"\S.*?  ", line)}
        info = self.info()
        self.assertEqual(rows["kernel"], info["kernel"])
        self.assertIn("mode", done.stdout.decode())

    def test_valgrind(self):
        if not shutil.which("valgrind"):
            self.skipTest("valgrind is not installed")
        done = subprocess.run(["valgrind", "-q", PERCPU, "--version"], capture_output=True, timeout=LIMIT, check=False)
        if b"dwarf" in done.stderr:
            self.skipTest("this valgrind cannot read what the compiler writes")
        info = self.info("valgrind", "-q", "--error-exitcode=9")
        self.assertEqual(info["mode"], "none")

    def test_without_sysfs(self):
        hide = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /sys && exec \"$@\"", "sh"]
        if not shutil.which("unshare") or subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
            self.skipTest("no user namespaces here")
        self.assertGreaterEqual(self.info(*hide)["possible_cpus"], 1)


class Exports(Case):
    def test_only_what_it_stands_for(self):
        if not shutil.which("nm"):
            self.skipTest("nm is not installed")
        names = {line.split()[-1].split("@")[0] for line in
                 subprocess.run(["nm", "-D", "--defined-only", PRELOAD], capture_output=True, text=True,
                                check=True).stdout.splitlines()}
        self.assertFalse({name for name in names if "percpu" in name})
        libc = {line.split()[-1].split("@")[0] for line in
                subprocess.run(["nm", "-D", "--defined-only", self.libc()], capture_output=True, text=True,
                               check=True).stdout.splitlines()}
        self.assertEqual({name for name in names - libc if not name.startswith("GLIBC_")}, set())
        for name in ("malloc", "free", "pthread_mutex_lock", "vfork", "clone", "__read_chk", "localtime_r"):
            self.assertIn(name, names)

    @staticmethod
    def libc():
        with open("/proc/self/maps", encoding="utf-8") as maps:
            return next(line.split()[-1] for line in maps if re.search(r"/libc[.-][^/]*so", line))


if __name__ == "__main__":
    PERCPU, CALLS, STATIC, PRELOAD = (os.path.abspath(arg) if arg else "" for arg in sys.argv[1:5])
    os.environ.pop("LD_PRELOAD", None)
    # Whoever runs us in the background may have these ignored; they would be in all that we start.
    for number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    unittest.main(argv=[sys.argv[0], *sys.argv[5:]], verbosity=2)
