#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""lint.py LINT SANITIZED INCLUDE LIBRARY GROUP: percpu-lint against objects that deserve what it says, and others.

LINT is the program; SANITIZED is the same built with AddressSanitizer, for damaged files. Objects are made here, by every
compiler that is found. GROUP is one of those at the end of this file. Exit status 77: no compiler for it.
"""
import json
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
LINT, SANITIZED, INCLUDE, LIBRARY, GROUP = sys.argv[1:6]
RULES = {"call", "jump", "commit", "signature", "instrumented", "store", "state", "nested", "decode"}
WORK = pathlib.Path(tempfile.mkdtemp())
failures = []


def check(what, condition, *details):
    """Notes a failure."""
    if not condition:
        failures.append(what)
        print("FAIL", what, *details, sep="\n  ")


def run(*command, **options):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace", check=False,
                          **options)


def lint(*arguments, program=LINT):
    result = run(program, *arguments)
    return result.returncode, result.stdout.splitlines(), result.stderr.splitlines()


def findings(lines):
    """(place, rule) of each line of text."""
    found = [re.fullmatch(r"\S+: (\S+): .* \[(\w+)\]", line) for line in lines]
    check("every line is a finding", all(found), *lines)
    return [(f[1], f[2]) for f in found if f]


def compilers(arch):
    """Commands that compile for @arch."""
    native = os.uname().machine
    known = {"x86_64": [["x86_64-linux-gnu-gcc"], ["clang", "--target=x86_64-linux-gnu"]],
             "aarch64": [["aarch64-linux-gnu-gcc"], ["clang", "--target=aarch64-linux-gnu"]]}[arch]
    if native == arch:
        known[0] = ["gcc"]
    options = ["-march=armv8.3-a"] if arch == "aarch64" else []
    return [c + options for c in known if shutil.which(c[0])]


def all_compilers():
    return [(arch, c) for arch in ("x86_64", "aarch64") for c in compilers(arch)]


def compile_to(out, command, *arguments):
    """Whether it could be compiled."""
    result = run(*command, *arguments, "-o", out)
    if result.returncode:
        print("not compiled:", *command, *arguments, result.stderr[:300])
    return result.returncode == 0


def symbols(path):
    """(name, value, size, type, section) from the symbol table."""
    for line in run("readelf", "-sW", path).stdout.splitlines():
        words = line.split()
        if len(words) == 8 and re.fullmatch(r"\d+:", words[0]):
            yield words[7], int(words[1], 16), int(words[2], 0), words[3], words[6]


def expected(path):
    """What the EXPECT labels of an object say."""
    table = list(symbols(path))
    functions = [s for s in table if s[3] == "FUNC"]
    for name, value, _, _, section in table:
        if not name.startswith("expect."):
            continue
        place = name
        for function, start, size, _, where in functions:
            body = function.endswith("__body")
            if where == section and (start <= value < start + size or body):
                place = function.removesuffix("__body") + (f"+{value - start:#x}" if value != start else "")
        yield place, name.split(".")[1]


def by_hand():
    """Each instruction that must be found, and no other."""
    made = 0
    for arch, command in all_compilers():
        out = WORK / f"{arch}-{command[0]}.o"
        if not compile_to(out, command, "-c", HERE / f"{arch}.S"):
            check(f"{command}: {arch}.S", False)
            continue
        made += 1
        status, lines, errors = lint(out)
        wanted, found = sorted(expected(out)), sorted(findings(lines))
        check(f"{out.name}: exit status {status}", status == 1 and not errors, *errors)
        check(f"{out.name}: many are expected", len(wanted) > 50)
        for missing in [w for w in wanted if wanted.count(w) > found.count(w)]:
            check(f"{out.name}: not found: {missing}", False)
        for surplus in [f for f in found if found.count(f) > wanted.count(f)]:
            check(f"{out.name}: found but good: {surplus}", False)
        check(f"{out.name}: every rule", RULES <= {rule for _, rule in wanted})
    return made


def judged(path):
    """Section in C -> the rules it breaks, from --json."""
    status, lines, errors = lint("--json", path)
    check(f"{path.name}: readable", status in (0, 1) and not errors, *errors)
    listing = json.loads("\n".join(lines))
    return {s["symbol"]: {f["rule"] for f in s["findings"]} for f in listing["files"] for s in f["sections"]
            if s["kind"] == "C"}


def in_c():
    """Bodies in C, compiled in many ways: those named after a rule break it and no other, others none."""
    made = 0
    for arch, command in all_compilers():
        for options in (["-O0"], ["-O1", "-fPIC"], ["-O2"], ["-O3", "-g"], ["-Os", "-fno-pic"]):
            out = WORK / "c.o"
            if not compile_to(out, command, "-Wno-all", f"-I{INCLUDE}", *options, "-c", HERE / "sections.c"):
                check(f"{command} {options}", False)
                continue
            made += 1
            sections = judged(out)
            check(f"{command} {options}: sections", len(sections) >= 8, sections)
            for name, rules in sections.items():
                rule = name.split("_")[0]
                wanted = {rule} if rule in RULES else set()
                if rule == "nested":
                    rules = rules - {"jump"}  # the inner section's abort label is outside
                check(f"{' '.join(command + options)}: {name}", rules == wanted, rules)
    return made


INSTRUMENTS = ["-fstack-protector-all", "-fsanitize=address", "-fsanitize=undefined", "--coverage", "-pg", "-pg -mfentry",
               "-finstrument-functions", "-fprofile-generate", "-fsanitize-coverage=trace-pc", "-fprofile-instr-generate",
               "-fsanitize=memory -fno-sanitize-recover"]


def instruments():
    """What compilers add is found where a body lets them add it, and nothing is added where the header forbids it."""
    made = 0
    for arch, command in all_compilers():
        for option in INSTRUMENTS:
            bare, pure = WORK / "bare.o", WORK / "pure.o"
            build = [f"-I{INCLUDE}", "-O2", "-w", *option.split(), "-c", HERE / "instrumented.c"]
            if not compile_to(bare, command, "-DBARE", *build) or not compile_to(pure, command, *build):
                continue  # not every compiler has all
            made += 1
            for path, wanted in (bare, {"instrumented"}), (pure, set()):
                for name, rules in judged(path).items():
                    check(f"{' '.join(command)} {option}: {path.name} {name}", rules == wanted, rules)
    check("enough ways", not all_compilers() or made >= 6)
    return made


def linked():
    """The same sections before and after linking, with all kinds of relocations, stripped, and at a fixed address."""
    made = 0
    for arch, command in all_compilers():
        if command[0] == "clang" and os.uname().machine != arch:
            continue  # has no linker of its own
        part = WORK / "part.o"
        if not compile_to(part, command, "-w", f"-I{INCLUDE}", "-O2", "-fPIC", "-c", HERE / "sections.c"):
            continue
        before = judged(part)
        (WORK / "rest.c").write_text("unsigned long external; void somebody(void) {} int main(void) { return 0; }\n",
                                     encoding="ascii")
        assert compile_to(WORK / "rest.o", command, "-c", WORK / "rest.c")
        for options in (["-shared"], ["-shared", "-Wl,-z,pack-relative-relocs"], ["-shared", "-Wl,-z,now"], ["-shared", "-s"],
                        ["-shared", "-fuse-ld=lld", "-Wl,--pack-dyn-relocs=relr"], ["-shared", "-fuse-ld=gold"],
                        ["-r"], ["-static", "-no-pie"], ["-static-pie"]):
            out = WORK / "linked"
            if "-shared" in options or "-r" in options:
                rest = ["-nostdlib"]
            else:
                rest = [WORK / "rest.o", LIBRARY.removesuffix("so") + "a", "-lpthread"]
            if not compile_to(out, command, *options, part, *rest):
                continue
            made += 1
            after = judged(out)
            named = [line for line in lint(out)[1] if ": call_somebody+" in line]
            check(f"{' '.join(command + options)}: knows who is called",
                  len(named) == 1 and "calls somebody inside" in named[0], *named)
            check(f"{' '.join(command + options)}: as before", before == after,
                  *(f"{name}: {rules} and {after.get(name)}" for name, rules in before.items() if rules != after.get(name)))
    return made


def files():
    """What is no object, and what holds several."""
    if not all_compilers():
        return 0
    command = all_compilers()[0][1]
    bad, good, none = WORK / "bad.o", WORK / "good.o", WORK / "none.o"
    (WORK / "none.c").write_text("int x;\n", encoding="ascii")
    assert compile_to(bad, command, "-w", f"-I{INCLUDE}", "-O2", "-c", HERE / "sections.c")
    assert compile_to(good, command, "-w", f"-I{INCLUDE}", "-O2", "-c", HERE / "instrumented.c")
    assert compile_to(none, command, "-c", WORK / "none.c")

    def ends(what, wanted, *arguments, says=None):
        status, lines, errors = lint(*arguments)
        check(f"{what}: exit status {status}, not {wanted}", status == wanted, *lines, *errors)
        if wanted == 2:
            check(f"{what}: one plain line on stderr", len(errors) == 1 and errors[0].startswith("percpu-lint: "), *errors)
        if says:
            check(f"{what}: says {says}", any(says in line for line in lines + errors), *lines, *errors)
        return lines

    ends("good", 0, good)
    ends("bad", 1, bad)
    ends("both", 1, good, bad)
    ends("none", 0, none)
    ends("none required", 1, "--require-sections", none, says="there is no section")
    ends("some required", 0, "--require-sections", good)
    ends("verbose", 0, "-v", good, says="sections in 1 objects, 0 findings")
    ends("version", 0, "--version", says="percpu-lint ")
    ends("help", 0, "--help", says="Usage:")
    ends("nothing", 2)
    ends("unknown option", 2, "--nonsense", good)
    ends("a rule that is certain", 2, "--allow", "call", bad, says="only store")
    ends("an empty symbol", 2, "--allow", "store:", bad)
    ends("absent", 2, WORK / "absent.o")
    ends("a folder", 2, WORK)
    ends("text", 2, HERE / "lint.py", says="no ELF file")
    ends("unreadable and bad", 2, WORK / "absent.o", bad)
    (WORK / "empty").write_bytes(b"")
    ends("an empty file", 2, WORK / "empty", says="no ELF file")
    (WORK / "empty.a").write_bytes(b"!<arch>\n")
    ends("an empty archive", 0, WORK / "empty.a")
    (WORK / "code.bc").write_bytes(b"BC\xc0\xde" + bytes(60))
    ends("bitcode", 2, WORK / "code.bc", says="intermediate code")
    (WORK / "thin").write_bytes(b"\x7fELF")
    ends("a header only", 2, WORK / "thin")
    other = bytearray(good.read_bytes())
    other[18:20] = struct.pack("<H", 243)
    (WORK / "riscv.o").write_bytes(other)
    ends("another architecture", 2, WORK / "riscv.o", says="architecture")
    other[4] = 1
    (WORK / "small.o").write_bytes(other)
    ends("32 bits", 2, WORK / "small.o")
    if run("objcopy", "--only-keep-debug", good, WORK / "debug").returncode == 0:
        ends("debugging information only", 2, WORK / "debug", says="no code")

    alone = lint(bad)[1]
    for flags, members in ("rcs", [bad, none, good]), ("rcsT", [bad, none]), ("rcs", [good]):
        archive = WORK / "lib.a"
        archive.unlink(missing_ok=True)
        assert run("ar", flags, archive, *members).returncode == 0
        lines = ends(f"archive {flags} {len(members)}", 1 if bad in members else 0, archive)
        check("the same findings", [line.split(": ", 1)[1] for line in lines] ==
              [line.split(": ", 1)[1] for line in alone] * (bad in members))
        if "T" not in flags and lines:
            check("names the member", lines[0].startswith(f"{archive}(bad.o): "), lines[0])
    long_name = WORK / "a-name-that-is-too-long-for-a-header.o"
    shutil.copy(bad, long_name)
    (WORK / "lib.a").unlink()
    run("ar", "rcs", WORK / "lib.a", long_name, good)
    check("long names", lint(WORK / "lib.a")[1][0].startswith(f"{WORK}/lib.a({long_name.name}): "))

    stores = [line for line in alone if line.endswith("[store]")]
    check("there are stores", len(stores) >= 2)
    allowed = ends("all stores allowed", 1, "--allow", "store", bad)
    check("no store is told", allowed == [line for line in alone if line not in stores])
    one = "store_twice"
    allowed = ends("one store allowed", 1, "--allow", f"store:{one}", bad)
    check("the others are", allowed == [line for line in alone if f": {one}" not in line], *allowed)
    check("shown with -v", any("(allowed)" in line for line in lint("-v", "--allow", "store", bad)[1]))

    listing = json.loads("\n".join(lint("--json", bad, good, none)[1]))
    check("json counts", listing["finding_count"] == len(alone) and
          listing["section_count"] == sum(len(f["sections"]) for f in listing["files"]))
    check("json files", [f["file"] for f in listing["files"]] == [str(bad), str(good), str(none)])
    if os.geteuid():
        os.chmod(good, 0)
        ends("unreadable", 2, good)
    return 1


def library():
    """The C++ way: sections in groups, of which the linker keeps one."""
    compiler = next((c for c in ("g++", "clang++") if shutil.which(c)), None)
    if not compiler:
        return 0
    source = WORK / "groups.cc"
    source.write_text('#include <percpu.h>\ntemplate <int N> inline void turn(uint64_t *w) { percpu_this_add(w, N); '
                      'percpu_this_store_if_eq(w, 1, N); }\n'
                      '#ifdef MAIN\nvoid other(uint64_t *w);\nint main() { uint64_t *w = 0; turn<1>(w); turn<2>(w); other(w); }\n'
                      '#else\nvoid other(uint64_t *w) { turn<1>(w); turn<3>(w); }\n#endif\n', encoding="ascii")
    for options in (["-O0"], ["-O2"], ["-O2", "-ffunction-sections", "-Wl,--gc-sections"]):
        for name, extra in ("a.o", ["-c", "-DMAIN"]), ("b.o", ["-c"]):
            if not compile_to(WORK / name, [compiler], "-std=c++17", "-w", f"-I{INCLUDE}", *options, *extra, source):
                check("C++ compiles", False)
                return 1
        assert compile_to(WORK / "groups", [compiler], *options, WORK / "a.o", WORK / "b.o", LIBRARY)
        for path in WORK / "a.o", WORK / "b.o", WORK / "groups":
            status, lines, _ = lint("--require-sections", path)
            check(f"C++ {options}: {path.name} is clean", status == 0, *lines)
    return 1


def damaged():
    """Files that are cut off or wrong in places: an answer, and never a crash."""
    command = next((c for _, c in all_compilers()), None)
    if not command:
        return 0
    originals = []
    for arch, compiler in all_compilers():
        if compiler[0] != "clang":
            out = WORK / f"{arch}.o"
            assert compile_to(out, compiler, "-c", HERE / f"{arch}.S")
            originals.append(out)
            if compile_to(WORK / f"{arch}.so", compiler, "-w", "-shared", "-nostdlib", "-fPIC", "-O2", f"-I{INCLUDE}",
                          "-Wl,-z,pack-relative-relocs", HERE / "sections.c"):
                originals.append(WORK / f"{arch}.so")
    run("ar", "rcs", WORK / "all.a", *originals)
    originals.append(WORK / "all.a")
    rounds = int(os.environ.get("LINT_ROUNDS", "150"))
    seed = int(os.environ.get("LINT_SEED", "1"))
    rng = random.Random(seed)
    victim = WORK / "victim"
    answers = {0: 0, 1: 0, 2: 0}
    for turn in range(rounds):
        original = originals[turn % len(originals)]
        data = bytearray(original.read_bytes())
        if turn % 3 == 0:
            del data[rng.randrange(len(data)):]
        else:
            # Most often where the tables are: an ELF header that is damaged is soon refused.
            tables = struct.unpack_from("<Q", data, 40)[0] if data[1:4] == b"ELF" else len(data) // 2
            places = [range(len(data))] * 4 + [range(min(tables, len(data) - 1), len(data))] * 3 + [range(64)]
            place = rng.choice(places)
            for _ in range(rng.choice([1, 1, 3, 10])):
                at = rng.choice(place)
                data[at] = rng.choice([0, 1, 0x7f, 0x80, 0xff, rng.randrange(256), data[at] ^ 1 << rng.randrange(8)])
        victim.write_bytes(data)
        try:
            result = run(SANITIZED, *(["--json"] if turn % 2 else ["-v"]), victim, timeout=60,
                         env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:abort_on_error=0"
                                                            ":exitcode=99"})
        except subprocess.TimeoutExpired:
            result = subprocess.CompletedProcess([], -1, "", "no end")
        answers[result.returncode] = answers.get(result.returncode, 0) + 1
        if result.returncode not in (0, 1, 2) or "runtime error" in result.stderr:
            kept = pathlib.Path(tempfile.gettempdir()) / f"percpu-lint-victim-{seed}-{turn}"
            shutil.copy(victim, kept)
            check(f"turn {turn} of seed {seed}: {original.name}, kept as {kept}", False, result.stderr[:1500])
    print("exit status:", answers)
    return 1


groups = {"by-hand": by_hand, "in-c": in_c, "instruments": instruments, "linked": linked, "files": files,
          "library": library, "damaged": damaged}
try:
    ran = groups[GROUP]()
finally:
    shutil.rmtree(WORK)
print(f"{ran} ways, {len(failures)} failures")
sys.exit(1 if failures else 0 if ran else 77)
