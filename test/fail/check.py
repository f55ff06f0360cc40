#!/usr/bin/env python3
"""Compiles every test/fail/*.cpp, which must not compile: each with the text after each `// expect:` of its first lines,
exactly one error, and at most 25 lines of output, on g++ and on clang++ (one that is absent is skipped, and said so).
More flags for both may follow after `// flags:`.
Usage: check.py [-v] [file.cpp ...]"""

import concurrent.futures
import itertools
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
COMPILERS = {
    "g++": (["g++-12", "g++"], ["-fmax-errors=0"]),
    "clang++": (["clang++-14", "clang++"], ["-ferror-limit=0"]),
}
LINES = 25


def complaints(command, source):
    """What is wrong with the way `source` fails, and the compiler's output."""
    comments = list(itertools.takewhile(lambda line: line.startswith("//"), source.read_text().splitlines()))
    if not comments or not comments[0].startswith("// expect: "):
        return ["the first line must be `// expect: <text>`"], ""
    flags = [flag for line in comments if line.startswith("// flags: ") for flag in line.split()[2:]]
    run = subprocess.run(command + flags + [str(source)], capture_output=True, text=True)
    output = run.stderr
    wrong = []
    if run.returncode == 0:
        wrong.append("it compiles")
    wrong += [f"the expected text is missing: {text}"
              for line in comments if (text := line.removeprefix("// expect: ")) != line and text not in output]
    if (errors := output.count("error:")) != 1:
        wrong.append(f"{errors} errors instead of one")
    if (lines := len(output.splitlines())) > LINES:
        wrong.append(f"{lines} lines instead of at most {LINES}")
    return wrong, output


def main():
    arguments = sys.argv[1:]
    verbose = "-v" in arguments
    sources = [pathlib.Path(a).resolve() for a in arguments if a != "-v"] or sorted(HERE.glob("*.cpp"))
    failed = ran = 0
    for name, (candidates, flags) in COMPILERS.items():
        compiler = next(filter(None, map(shutil.which, candidates)), None)
        if compiler is None:
            print(f"{name}: skipped, not installed")
            continue
        command = [compiler, "-std=c++20", "-fsyntax-only", "-I", str(HERE.parents[1] / "include"), *flags]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(lambda source: complaints(command, source), sources))
        for source, (wrong, output) in zip(sources, results):
            ran += 1
            if wrong:
                failed += 1
                print(f"{name}: {source.name}: {'; '.join(wrong)}")
            if wrong or verbose:
                print(f"---- {name} {source.name}: {len(output.splitlines())} lines\n{output}----")
    print(f"{ran - failed} of {ran} mistakes fail as they should")
    return 1 if failed or ran == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
