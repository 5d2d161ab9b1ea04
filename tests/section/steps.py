# SPDX-License-Identifier: MIT
# For gdb: steps through every operation of steps.c by single instructions, each with a bound. gdb tells about every stop
# on its standard output, whatever one does, so what matters goes to standard error.
import os

import gdb

BOUND = 20000  # instructions of one operation, the slow path included
CHUNK = 25     # steps at once


def say(text):
    os.write(2, (text + "\n").encode())


def step_through():
    name = gdb.parse_and_eval("now").string()
    for steps in range(CHUNK, BOUND, CHUNK):
        gdb.execute("stepi %d" % CHUNK, to_string=True)
        # Ends early at the breakpoint there.
        if gdb.selected_frame().name() == "step_end":
            say("%-28s fewer than %5d steps" % (name, steps + 1))
            return steps
    raise gdb.GdbError("%s: no end after %d steps" % (name, BOUND))


def main():
    operations = most = 0
    for command in ("set pagination off", "set confirm off", "set debuginfod enabled off", "set width 0",
                    "break step_begin", "break step_end", "run"):
        gdb.execute(command, to_string=True)
    while gdb.selected_inferior().pid:
        gdb.execute("finish", to_string=True)
        most = max(most, step_through())
        operations += 1
        gdb.execute("continue", to_string=True)
    code = int(gdb.parse_and_eval("$_exitcode"))
    say("operations %d, most steps %d, exit status %d" % (operations, most, code))
    return 1 if code or operations < 15 else 0


status = 1
try:
    status = main()
except Exception as problem:  # whatever it is: gdb must not end with 0
    say("wrong: %s" % problem)
if gdb.selected_inferior().pid:
    gdb.execute("kill", to_string=True)
os._exit(status)
