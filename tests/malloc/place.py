# SPDX-License-Identifier: MIT
"""What programs and servers share: where a program runs, with what preloaded, and a client of redis."""
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Skip(Exception):
    """Why a program cannot be run here."""


class Wrong(Exception):
    """What went wrong."""


def tail(text, size=2000):
    return text[-size:].decode(errors="replace")


class Place:
    """Where a program runs once: a folder, what is preloaded, and what it said and made."""

    def __init__(self, folder, library, limit):
        self.folder, self.library, self.results, self.limit = folder, library, [], limit
        self.deadline = time.monotonic() + limit
        self.user = None  # of whoever runs here, by name; None: as we are
        self.seconds = 0  # of load

    def environment(self, **more):
        keep = {name: value for name, value in os.environ.items()
                if name.startswith("PERCPU_") or name in ("PATH", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "MALLOC_BREAK")}
        keep |= {"HOME": str(self.folder), "LC_ALL": "C.UTF-8", "TZ": "UTC", **more}
        if self.library:
            keep["LD_PRELOAD"] = self.library
        return keep

    def left(self):
        return max(self.deadline - time.monotonic(), 0.1)

    def as_user(self):
        return {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}

    def run(self, *command, stdin=None, keep=True, forget="", **environment):
        """Run a command. What matches `forget` in its output, as times do, may differ."""
        command = [str(word) for word in command]
        try:
            done = subprocess.run(command, cwd=self.folder, env=self.environment(**environment), timeout=self.left(),
                                  input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                                  capture_output=True, check=False, **self.as_user())
        except subprocess.TimeoutExpired as late:
            raise Wrong(f"{' '.join(command)[:80]}: not done after {self.limit:.0f} s") from late
        if done.returncode:
            raise Wrong(f"{' '.join(command)[:80]}: exit status {done.returncode}\n{tail(done.stdout + done.stderr)}")
        if keep:
            for name, text in ("output", done.stdout), ("errors", done.stderr):
                self.add(f"{name} of {' '.join(command)[:60]}", re.sub(forget.encode(), b"", text) if forget else text)
        return done.stdout

    def start(self, *command, **environment):
        """Start a server, whose words go into the file `log`."""
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen([str(word) for word in command], cwd=self.folder, env=self.environment(**environment),
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.as_user())

    def log(self):
        return (self.folder / "log").read_bytes()

    def wait_for(self, ready, server, what):
        while not ready():
            if server.poll() is not None or self.left() <= 0.1:
                raise Wrong(f"{what}\n{tail(self.log())}")
            time.sleep(0.02)

    def wait_end(self, server, name):
        try:
            return server.wait(self.left())
        except subprocess.TimeoutExpired as late:
            raise Wrong(f"{name} does not end") from late

    def check_preloaded(self, pid):
        """Of a process that runs."""
        if not self.library:
            return
        path = os.path.realpath(self.library) if "/" in self.library else "/" + self.library
        if path not in pathlib.Path(f"/proc/{pid}/maps").read_text():
            raise Wrong(f"process {pid} runs without {self.library}")

    def add(self, name, content):
        self.results.append((name, content))

    def add_file(self, name):
        self.add(name, (self.folder / name).read_bytes())

    def write(self, name, text):
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path


def end(server):
    if server.poll() is None:
        server.kill()
        server.wait()


def need(*names):
    """The paths of commands."""
    paths = [shutil.which(name) for name in names]
    for name, path in zip(names, paths):
        if not path:
            raise Skip(f"{name} is not installed")
    return paths


def is_preloaded(library):
    """Whether a program has the library and no complaint about it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(pathlib.Path(folder), library, 60)
        try:
            maps = place.run("cat", "/proc/self/maps")
        except Wrong as error:
            print(error)
            return False
        return os.path.realpath(library).encode() in maps and not place.results[1][1]


def resp(*words):
    """A command as redis reads it."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        word = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


class Redis:
    """A server in a place, and a connection to it."""

    def __init__(self, place, *options):
        program, = need("redis-server")
        self.place = place
        # (The path of a socket is short.)
        self.sockets = tempfile.TemporaryDirectory(prefix="r")  # pylint: disable=consider-using-with
        self.path = self.sockets.name + "/s"
        self.process = place.start(program, "--port", 0, "--unixsocket", self.path, "--save", "", "--daemonize", "no", *options)
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            place.wait_for(self.connected, self.process, "redis-server does not start")
            self.socket.settimeout(place.left())
            self.replies = self.socket.makefile("rb", 1 << 20)
            place.wait_for(lambda: self.info("persistence", "loading") == b"0", self.process, "redis-server does not load")
            place.check_preloaded(self.process.pid)
        except BaseException:
            self.close()
            raise

    def connected(self):
        try:
            self.socket.connect(self.path)
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def reply(self):
        try:
            line = self.replies.readline()
        except OSError as error:
            raise Wrong(f"redis-server does not answer: {error}") from error
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.replies.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind in (b"+", b":"):
            return rest
        raise Wrong(f"redis-server answers {line[:200]!r}\n{tail(self.place.log())}")

    def many(self, commands):
        """Send commands, each a tuple of words, some hundreds at once. Returns the replies."""
        replies = []
        for i in range(0, len(commands), 500):
            some = commands[i:i + 500]
            try:
                self.socket.sendall(b"".join(resp(*words) for words in some))
            except OSError as error:
                raise Wrong(f"redis-server is gone: {error}\n{tail(self.place.log())}") from error
            replies += [self.reply() for _ in some]
        return replies

    def ask(self, *words):
        return self.many([words])[0]

    def info(self, section, name):
        return re.search(rb"(?m)^%b:(\S+)" % name.encode(), self.ask("INFO", section)).group(1)

    def memory(self):
        """Bytes in use as the server counts them, and resident."""
        used = int(self.info("memory", "used_memory"))
        rollup = pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return used, int(re.search(r"(?m)^Rss:\s+(\d+)", rollup).group(1)) << 10

    def shutdown(self, how):
        """Returns the server's exit status."""
        self.socket.sendall(resp("SHUTDOWN", how))
        status = self.place.wait_end(self.process, "redis-server")
        self.close()
        return status

    def close(self):
        end(self.process)
        self.socket.close()
        self.sockets.cleanup()
