"""A program of its own that runs another one and says what it cost: `casstore.bench.measuring` starts it.

Usage: ``python -I -S launch.py RESULT [NAME=VALUE…] -- PROGRAM [ARG…]``; RESULT is a file descriptor to write
to. It imports next to nothing, because the peak memory of a process is never less than that of the one that started
it: so ours is small (about 8 MB). What it writes is one line: exit status, seconds, user and system CPU seconds,
peak resident KiB. CPU seconds are those of the program and of all descendants it waited for; the peak is that of the
largest of these processes.
"""

import os
import sys
import time


def main() -> None:
    """Run the program; the exit status here is always 0 if there is a result."""
    descriptor = int(sys.argv[1])
    at = sys.argv.index("--")
    environment = dict(os.environ)  # noqa: TID251 - this process is the world of the program it starts
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody compiles a program anew at each start
    for word in sys.argv[2:at]:
        name, _, value = word.partition("=")
        environment[name] = value
    program = sys.argv[at + 1 :]
    os.set_inheritable(descriptor, False)
    begun = time.perf_counter()
    process = os.posix_spawnp(program[0], program, environment)
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - begun
    code = os.waitstatus_to_exitcode(status)
    line = f"{code} {wall:.6f} {usage.ru_utime:.6f} {usage.ru_stime:.6f} {usage.ru_maxrss}\n"
    os.write(descriptor, line.encode())


if __name__ == "__main__":
    main()
