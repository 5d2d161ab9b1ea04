#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run tests/libc/gettext in a folder of its own, with locales that are made there: gettext.py PROGRAM DOMAIN..."""
import os
import shutil
import subprocess
import sys
import tempfile

# Whatever is in them, their names are what messages are looked for by.
LOCALES = ["de_DE.UTF-8", "fr_FR.UTF-8", "pl_PL.UTF-8"]
SOURCE = "/usr/lib/locale/C.utf8"
program, environment = os.path.abspath(sys.argv[1]), dict(os.environ)
# (Not for the tools of this script.)
os.environ.pop("LD_PRELOAD", None)
folder = tempfile.mkdtemp()
try:
    if os.path.isdir(SOURCE):
        for name in [*LOCALES, "C.utf8"]:
            shutil.copytree(SOURCE, os.path.join(folder, "locales", name))
        environment |= {"LOCPATH": os.path.join(folder, "locales"), "LOCALES": " ".join(LOCALES)}
    else:
        print("skipped in part: threads' own locales, for there is no", SOURCE)
    sys.stdout.flush()
    status = subprocess.run([program, *sys.argv[2:]], check=False, cwd=folder, env=environment).returncode
finally:
    shutil.rmtree(folder)
sys.exit(status if status >= 0 else 1)
