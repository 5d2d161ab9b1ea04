#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run tests/libc/gettext in a folder of its own, with locales that are made there: gettext.py PROGRAM DOMAIN..."""
import os
import shutil
import subprocess
import sys
import tempfile

LOCALES = {"de_DE.UTF-8": ("de_DE", "UTF-8"), "fr_FR.UTF-8": ("fr_FR", "UTF-8"), "pl_PL.UTF-8": ("pl_PL", "UTF-8")}
program, preload = os.path.abspath(sys.argv[1]), os.environ.pop("LD_PRELOAD")
folder = tempfile.mkdtemp()
made = []
try:
    locales = os.path.join(folder, "locales")
    os.mkdir(locales)
    for name, (source, charset) in LOCALES.items():
        if shutil.which("localedef") and subprocess.run(
                ["localedef", "--no-archive", "-i", source, "-f", charset, os.path.join(locales, name)], check=False,
                capture_output=True).returncode < 2 and os.path.exists(os.path.join(locales, name, "LC_MESSAGES")):
            made.append(name)
    environment = {**os.environ, "LD_PRELOAD": preload}
    if len(made) == len(LOCALES):
        # (Where there is such a path nothing is looked for elsewhere.)
        shutil.copytree("/usr/lib/locale/C.utf8", os.path.join(locales, "C.utf8"))
        environment |= {"LOCPATH": locales, "LOCALES": " ".join(made)}
    else:
        print("skipped in part: threads' own locales, for localedef cannot make", *(set(LOCALES) - set(made)))
    sys.stdout.flush()
    status = subprocess.run([program, *sys.argv[2:]], check=False, cwd=folder, env=environment).returncode
finally:
    shutil.rmtree(folder)
sys.exit(status if status >= 0 else 1)
