#!/usr/bin/env python3
"""What composing costs to compile: CPU seconds of `-fsyntax-only`, the median of several runs interleaved with those
of an empty file, against a budget. A figure above its budget is marked; the exit status is 0 all the same
(timings are never tests) unless --strict is given.
Usage: compile_time.py [--compiler g++] [--runs 5] [--strict] [case ...]"""

import argparse
import os
import pathlib
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENTS = ["Toy", "MuJoCo<Push>", "MuJoCo<Reach>", "MuJoCo<PickAndPlace>", "Gymnasium"]
PIPELINES = [f"Pipeline<Sampler<{e}>, Trainer<GRPO{more}>>" for e in ENVIRONMENTS for more in ("", ", FSDP")]


def pipelines(count):
    lines = ["#include <dvla/dvla.hpp>", "using namespace dvla;"]
    for i, pipeline in enumerate(PIPELINES[:count]):
        lines += [f"using P{i} = {pipeline};", f"P{i}::config config{i};"]
    return "\n".join(lines) + "\n"


FRONT = "#include <dvla/dvla.hpp>\n#include <dvla/pipeline/command_line.hpp>\n"
CASES = {  # name: (source, budget in CPU seconds above the empty file)
    "empty": ("", 0.0),
    "dvla.hpp": ("#include <dvla/dvla.hpp>\n", 0.6),
    "one pipeline": (pipelines(1), 0.65),
    "ten pipelines": (pipelines(10), 0.7),
    "describe": (pipelines(1) + "const auto text = P0::describe();\n", 0.7),
    "table": ("#include <dvla/pipeline/table.hpp>\n" + pipelines(1) + "const auto table = P0::table();\n", 0.9),
    "validate.hpp": (pipelines(1) + "#include <dvla/pipeline/validate.hpp>\nvoid f() { dvla::validate(config0); }\n", 1.3),
    "command_line.hpp": (FRONT, 4.0),
    "a command line": (FRONT + "template std::optional<dvla::Config<dvla::Pipeline<dvla::Toy, dvla::GRPO>>> "
                       "dvla::parse_command_line(int, const char* const*, "
                       "dvla::Config<dvla::Pipeline<dvla::Toy, dvla::GRPO>>, std::ostream&);\n", 4.5),
}


def cpu_seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a budget is exceeded")
    parser.add_argument("cases", nargs="*", metavar="case", help="all, or some of: " + ", ".join(CASES))
    arguments = parser.parse_args()
    if unknown := [case for case in arguments.cases if case not in CASES]:
        parser.error(f"no case '{unknown[0]}'; there are: {', '.join(CASES)}")
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    if shutil.which(arguments.compiler) is None:
        parser.error(f"there is no compiler '{arguments.compiler}'")
    names = ["empty"] + [name for name in (arguments.cases or CASES) if name != "empty"]

    with tempfile.TemporaryDirectory() as folder:
        sources = {name: pathlib.Path(folder, f"case{i}.cpp") for i, name in enumerate(names)}
        for name, source in sources.items():
            source.write_text(CASES[name][0])
        seconds = {name: [] for name in names}
        for _ in range(arguments.runs):
            for name, source in sources.items():
                seconds[name].append(
                    cpu_seconds([arguments.compiler, "-std=c++20", "-fsyntax-only", "-I", str(ROOT / "include"), str(source)]))

    print(f"{arguments.compiler} -std=c++20 -fsyntax-only, median CPU seconds of {arguments.runs} interleaved runs; "
          f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f}")
    print(f"{'case':<18} {'seconds':>8} {'above empty':>12} {'budget':>7}")
    empty = statistics.median(seconds["empty"])
    over = 0
    for name in names:
        median = statistics.median(seconds[name])
        above, budget = median - empty, CASES[name][1]
        exceeded = name != "empty" and above > budget
        over += exceeded
        print(f"{name:<18} {median:8.2f} {above:12.2f} {budget:7.2f}{'  over' if exceeded else ''}")
    return 1 if over and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
