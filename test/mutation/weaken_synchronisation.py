#!/usr/bin/env python3
"""Weakens one synchronisation at a time, and counts how many ThreadSanitizer or a test notices. Run by hand; not part of ctest.

The places: orders of atomics (to relaxed), locks of a mutex (left out), releases of a semaphore (left out) in the folders below.
Each is changed in a copy of the tree, the tests marked tsan of its folder and of those that are built on it are compiled and run
there, and the place counts as caught where one of them fails, does not end, or the change does not compile.

    weaken_synchronisation.py --list                            the places, by name
    weaken_synchronisation.py --only handoff/mailbox --limit 3  some of them
    weaken_synchronisation.py --keep FOLDER                     build there, and go on there later: results are in results.json
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = {  # whose places, and the tests that notice them
    "handoff": ["handoff", "schedule"],
    "data_plane": ["data_plane"],
    "control_plane": ["control_plane"],
    "memory": ["memory"],
}
NOT_RUN = {"cuda"}  # under ThreadSanitizer
LOCK = re.compile(r"^\s*(?:const )?std::(?:scoped_lock|lock_guard)(?:<[^>]*>)? \w+\((\w+)\);")
UNIQUE = re.compile(r"^(\s*std::unique_lock(?:<[^>]*>)? \w+)\((\w+)\);")
ORDER = re.compile(r"std::memory_order_(?:acquire|release|acq_rel|seq_cst)")
RELEASE = re.compile(r"^(\s*)(?:if \(.*\) )?\w+_\.release\(\);")


def places():
    """(name, file, line number, the line instead, what was done)"""
    for folder in FOLDERS:
        for file in sorted((ROOT / "include/dvla" / folder).glob("**/*.hpp")):
            if file.stem in NOT_RUN:
                continue
            short = file.relative_to(ROOT / "include/dvla").with_suffix("")
            for number, line in enumerate(file.read_text().splitlines()):
                code = line.split("//")[0]
                changes = []
                for i, order in enumerate(ORDER.finditer(code)):
                    changes.append((f"order{i}", line[: order.start()] + "std::memory_order_relaxed" + line[order.end():], f"{order[0]} to relaxed"))  # fmt: skip
                if lock := LOCK.match(code):
                    own = f"std::mutex weakened_{number}; const std::lock_guard weakened_lock_{number}(weakened_{number});"
                    changes.append(("lock", own, f"no lock of {lock[1]}"))
                if lock := UNIQUE.match(code):
                    own = f"std::mutex weakened_{number}; {lock[1].strip()}(weakened_{number});"
                    changes.append(("lock", own, f"a lock of another mutex than {lock[2]}"))
                if RELEASE.match(code):
                    changes.append(("release", re.sub(r"\w+_\.release\(\);", "(void)0;", line), "no release"))
                for kind, instead, what in changes:
                    yield f"{short}:{number + 1}:{kind}", file.relative_to(ROOT), number, instead, what


def tests_of(folder, tree, header=None):
    """Targets and ctest names; those of the header itself first."""
    for of in FOLDERS[folder]:
        for file in sorted((tree / "test" / of).glob("test_*.cpp"), key=lambda file: (file.stem != f"test_{header}", file)):
            first = file.read_text().splitlines()[0]
            if first.startswith("// dvla-test:") and "tsan" in first.split():
                yield f"test_{of}_{file.stem.removeprefix('test_')}", f"{of}.{file.stem.removeprefix('test_')}"


def run(command, tree, seconds):
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, "does not end"
    return done.returncode, done.stdout + done.stderr


def build_and_test(tree, folder, jobs, seconds, header=None):
    """How it was noticed; None: it was not."""
    for target, name in tests_of(folder, tree, header):
        code, text = run(["cmake", "--build", "--preset", "tsan", "-j", str(jobs), "--target", target], tree, 3600)
        if code != 0:
            error = next((line for line in text.splitlines() if "error:" in line), "the build fails")
            return f"{name} does not compile: {error[-160:]}"
        code, text = run(["ctest", "--preset", "tsan", "-R", f"^{re.escape(name)}$", "--timeout", str(seconds)], tree, seconds + 60)
        if code != 0:
            for sign, means in (("data race", "a data race"), ("Timeout", "does not end"), ("WARNING: ThreadSanitizer", "ThreadSanitizer")):
                if sign in text:
                    return f"{name}: {means}"
            return f"{name}: {'does not end' if code is None else 'a check fails'}"
    return None


def copy_tree(to):
    for file in subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0"):
        if file and (ROOT / file).is_file():
            target = to / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.read_bytes() != (ROOT / file).read_bytes():
                shutil.copy(ROOT / file, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the places, and stop")
    parser.add_argument("--only", default="", help="places whose name contains it")
    parser.add_argument("--limit", type=int, default=0, help="at most so many, spread evenly over those; 0 = all")
    parser.add_argument("--keep", help="a folder to build in; results there are not made again")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=300, help="for a test")
    arguments = parser.parse_args()
    chosen = [place for place in places() if arguments.only in place[0]]
    if arguments.limit and len(chosen) > arguments.limit:
        chosen = [chosen[i * len(chosen) // arguments.limit] for i in range(arguments.limit)]
    if arguments.list or not chosen:
        for name, _, _, _, what in chosen:
            print(f"{name}  {what}")
        print(f"{len(chosen)} places")
        return 0 if chosen else 1
    with tempfile.TemporaryDirectory(prefix="dvla-weaken-") as temporary:
        tree = pathlib.Path(arguments.keep or temporary).resolve()
        copy_tree(tree)
        code, text = run(["cmake", "--preset", "tsan", "-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF"], tree, 600)
        if code != 0:
            sys.exit(f"the tree does not configure:\n{text}")
        for folder in sorted({name.split("/")[0] for name, *_ in chosen}):  # what fails unchanged notices nothing
            if noticed := build_and_test(tree, folder, arguments.jobs, arguments.seconds):
                sys.exit(f"without a change: {noticed}")
        kept = tree / "results.json"
        results = json.loads(kept.read_text()) if arguments.keep and kept.exists() else {}
        for name, file, number, instead, what in chosen:
            if name not in results:
                whole = (ROOT / file).read_text()
                lines = whole.splitlines()
                lines[number] = instead
                (tree / file).write_text("\n".join(lines) + "\n")
                began = time.monotonic()
                results[name] = build_and_test(tree, name.split("/")[0], arguments.jobs, arguments.seconds, file.stem)
                (tree / file).write_text(whole)
                kept.write_text(json.dumps(results, indent=1))
                print(f"{name}  {what}: {results[name] or 'SURVIVES'} ({time.monotonic() - began:.0f} s)", flush=True)
        caught = sum(results[name] is not None for name, *_ in chosen)
        print(f"{caught} of {len(chosen)} are noticed")
        for name, _, _, _, what in chosen:
            if results[name] is None:
                print(f"survives: {name}  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
