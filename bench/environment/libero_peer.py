#!/usr/bin/env python3
"""LIBERO in C++ against the original in Python, in turn, on this machine.

    bench/environment/libero_peer.py BENCH FOLDER [--suite spatial] [--task 0] [--rounds 5] [--seconds 5] [--pixels 128] [--rows 1 4 16 64]

BENCH is build/libero/bench/bench_environment_libero, FOLDER what scripts/convert_libero wrote, and the working folder the one that has
.venv-libero. Both play one task with random actions from its initial states; a round runs each once. Two of the original are two
processes at once, as its users run it. Prints medians of control steps a second, their spread, and ratios within the rounds; then
dvla's with so many rows on two threads.
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
    parser.add_argument("--rows", nargs="*", default=["1", "4", "16", "64"])
    options = parser.parse_args()
    scripts = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts")

    def ours(rows, threads, *more):
        return [options.bench, options.folder, options.suite, options.task, rows, threads, options.seconds, *more]

    def theirs(pixels):
        return [".venv-libero/bin/python", "-c", PEER, options.suite, options.task, pixels, options.seconds, scripts]

    pixels = options.pixels
    names, ways, compared = [], [], []

    def way(name, command, processes=1, against=None):
        names.append(name)
        ways.append((command, processes))
        if against is not None:
            compared.append((len(names) - 1, names.index(against)))

    way("original", theirs("0"))
    way("dvla, 1 row", ours("1", "1"), against="original")
    way("original, 2 processes", theirs("0"), 2)
    way("dvla, 2 rows on 2 threads", ours("2", "2"), against="original, 2 processes")
    way("original, cameras", theirs(pixels))
    way("dvla, 1 row, cameras", ours("1", "1", pixels), against="original, cameras")
    way("dvla, 1 row, cameras, fast", ours("1", "1", pixels, "fast"), against="original, cameras")
    way("dvla, 1 row, cameras, chunks of 8", ours("1", "1", pixels, "original", "8"), against="original, cameras")
    way("original, 2 processes, cameras", theirs(pixels), 2)
    way("dvla, 2 rows on 2 threads, cameras", ours("2", "2", pixels), against="original, 2 processes, cameras")
    way("dvla, 2 rows on 2 threads, cameras, fast", ours("2", "2", pixels, "fast"), against="original, 2 processes, cameras")
    environment = {**os.environ, "MUJOCO_GL": "osmesa"}

    def run(command, processes=1):
        each = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
                for _ in range(processes)]
        said = [one.communicate()[0] for one in each]
        for one, words in zip(each, said):
            if one.returncode != 0:
                sys.exit(f"{command}: {words}")
        return said

    figures = [[] for _ in names]
    for _ in range(options.rounds):
        for each, (command, processes) in zip(figures, ways):
            each.append(sum(float(words.split(" steps_per_s")[0].split()[-1]) for words in run(command, processes)))
    print(f"{options.suite} {options.task}, {pixels} pixels, {options.rounds} rounds of {options.seconds} s, load {os.getloadavg()[0]:.1f}")
    for name, each in zip(names, figures):
        print(f"  {name:42s} {statistics.median(each):9.1f} steps/s   {min(each):.1f} to {max(each):.1f}")
    for one, other in compared:
        ratios = [a / b for a, b in zip(figures[one], figures[other])]
        print(f"  {names[one]} / {names[other]}: {statistics.median(ratios):.2f}   {min(ratios):.2f} to {max(ratios):.2f}")
    for rows in options.rows:
        print(f"  {rows} rows on 2 threads: {' '.join(run(ours(rows, '2'))[0].split())}")
        print(f"  {rows} rows on 2 threads, cameras, fast: {' '.join(run(ours(rows, '2', pixels, 'fast'))[0].split())}")

main()
