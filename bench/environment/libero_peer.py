#!/usr/bin/env python3
"""LIBERO in C++ against the original in Python, in turn, on this machine.

    bench/environment/libero_peer.py BENCH FOLDER [--suite spatial] [--task 0] [--rounds 5] [--seconds 5] [--pixels 128]

BENCH is build/libero/bench/bench_environment_libero, FOLDER what scripts/convert_libero wrote, and the working folder the one that has
.venv-libero. Both play one task with random actions from its initial states; a round runs each once. Prints medians of control
steps a second, their spread, and ratios within the rounds.
"""
import argparse
import os
import statistics
import subprocess
import sys

# What the bench does, with the original: seconds of stepping alone.
PEER = r"""
import os, sys, time
suite, task, pixels, seconds, scripts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[key] = "1"
sys.path.insert(0, scripts)
sys.dont_write_bytecode = True
from libero_common import Task, np
task = Task(suite, task)
env = task.make(pixels)
env.seed(7)
env.reset()
env.set_init_state(task.states[0])
random = np.random.default_rng(1)
for _ in range(10): env.step([0, 0, 0, 0, 0, 0, -1])
steps, begin = 0, time.perf_counter()
while time.perf_counter() - begin < seconds:
    env.step(random.uniform(-1, 1, 7))
    steps += 1
print(f"{steps / (time.perf_counter() - begin):.1f} steps_per_s", flush=True)
os._exit(0)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("folder")
    parser.add_argument("--suite", default="spatial")
    parser.add_argument("--task", default="0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", default="5")
    parser.add_argument("--pixels", default="128")
    options = parser.parse_args()
    scripts = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts")

    def ours(rows, threads, *more):
        return [options.bench, options.folder, options.suite, options.task, rows, threads, options.seconds, *more]

    def theirs(pixels):
        return [".venv-libero/bin/python", "-c", PEER, options.suite, options.task, pixels, options.seconds, scripts]

    pixels = options.pixels
    ways = {
        "the original": theirs("0"),
        "dvla, a row": ours("1", "1"),
        "dvla, 2 rows on 2 threads": ours("2", "2"),
        f"the original, cameras of {pixels}": theirs(pixels),
        f"dvla, a row, cameras of {pixels}": ours("1", "1", pixels),
        f"dvla, a row, cameras of {pixels}, fast": ours("1", "1", pixels, "fast"),
    }
    figures = {way: [] for way in ways}
    environment = {**os.environ, "MUJOCO_GL": "osmesa"}
    for _ in range(options.rounds):
        for way, command in ways.items():
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                sys.exit(f"{way}: {done.stdout}{done.stderr}")
            figures[way].append(float(done.stdout.split(" steps_per_s")[0].split()[-1]))
    print(f"{options.suite} {options.task}, {options.rounds} rounds of {options.seconds} s, load {os.getloadavg()[0]:.1f}")
    for way, each in figures.items():
        print(f"  {way:40s} {statistics.median(each):9.1f} steps/s   {min(each):.1f} to {max(each):.1f}")
    names = list(ways)
    for one, other in ((1, 0), (2, 1), (4, 3), (5, 3)):
        ratios = [a / b for a, b in zip(figures[names[one]], figures[names[other]])]
        print(f"  {names[one]} / {names[other]}: {statistics.median(ratios):.2f}   {min(ratios):.2f} to {max(ratios):.2f}")


main()
