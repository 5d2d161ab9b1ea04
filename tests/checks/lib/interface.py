# SPDX-License-Identifier: MIT
"""What the public headers offer, read from the preprocessed text: {name: header} of each kind."""
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[3]
INCLUDE = ROOT / "include"


def headers():
    """All public headers, as they are named in an #include."""
    return sorted(str(path.relative_to(INCLUDE)) for path in INCLUDE.rglob("*.h"))


def without_attributes(text):
    """Drop __attribute__((...)), whatever is nested in it."""
    out, rest = "", text
    while (at := rest.find("__attribute__")) >= 0:
        out += rest[:at]
        depth, end = 0, rest.index("(", at)
        while True:
            depth += {"(": 1, ")": -1}.get(rest[end], 0)
            end += 1
            if depth == 0:
                break
        rest = rest[end:]
    return out + rest


class Interface:
    """exported: functions and variables; inline: functions of the headers; macros: all but include guards."""

    def __init__(self):
        self.exported, self.inline, self.macros = {}, {}, {}
        text = subprocess.run(
            ["cc", "-std=gnu11", "-E", "-dD", f"-I{INCLUDE}", str(INCLUDE / "percpu.h")],
            check=True, capture_output=True, text=True).stdout
        header, code = None, {}
        for line in text.splitlines():
            if marker := re.match(r'# \d+ "([^"]*)"', line):
                path = pathlib.Path(marker[1])
                header = str(path.relative_to(INCLUDE)) if INCLUDE in path.parents else None
            elif header and (macro := re.match(r"#define (\w+)", line)):
                if not macro[1].endswith("_H"):
                    self.macros[macro[1]] = header
            elif header and not line.startswith("#"):
                code[header] = code.get(header, "") + line + "\n"
        for header, lines in code.items():
            for mark, rest in re.findall(
                    r'(__attribute__\(\(visibility\("default"\)\)\)|static inline __attribute__\(\(always_inline, unused\)\))'
                    r"(.*?(?=[;{]))", lines, re.S):
                declaration = without_attributes(rest)
                function = re.match(r"[^(]*?(\w+)\s*\(", declaration)
                name = function[1] if function else re.findall(r"\w+", declaration)[-1]
                (self.inline if "inline" in mark else self.exported)[name] = header


def public(names):
    """Those that users may name: without a double underscore."""
    return sorted(name for name in names if "__" not in name)
