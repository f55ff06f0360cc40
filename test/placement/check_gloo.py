"""check_gloo.py FOLDER PROGRAM: no program in FOLDER, PROGRAM among them, needs libgloo.so or defines a class of Gloo.

The Gloo inside libtorch_cpu and Debian's libgloo export the same symbols: with both in a process, a call runs the other
one's code. What the headers declare must therefore come from libtorch_cpu alone.
"""

import os
import re
import subprocess
import sys


def is_program(path):
    if os.path.islink(path) or not os.access(path, os.X_OK) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main():
    folder, program = sys.argv[1], os.path.realpath(sys.argv[2])
    programs = [
        os.path.realpath(os.path.join(place, name))
        for place, folders, names in os.walk(folder)
        for name in names
        if is_program(os.path.join(place, name))
    ]
    faults = [] if program in programs else [f"{program} is not in {folder}"]
    for path in programs:
        if "libgloo" in run("readelf", "-d", path):
            faults.append(f"{path} needs libgloo")
        symbols = run("nm", "-C", "--defined-only", path)
        for vtable in re.findall(r"vtable for ((?:gloo::|c10d::ProcessGroupGloo).*)", symbols):
            faults.append(f"{path} defines the vtable of {vtable}")
    print("\n".join(faults) or f"{len(programs)} programs: none needs libgloo, none defines a class of Gloo")
    return 1 if faults else 0


sys.exit(main())
