#!/usr/bin/env python3
"""Environments in Python: dvla's workers against Python's own loops, in turn, on this machine.

    bench/environment/python_peers.py BENCH [--rounds 5] [--seconds 3] [--only gymnasium] [--envpool INTERPRETER]

BENCH is build/release/bench/bench_environment_python, and the working folder the one that has .venv-gymnasium and
.venv-maniskill. Everything steps the same number of environments with random actions; a round runs each once. Prints medians of
control steps a second, their spread, and ratios within the rounds. INTERPRETER has envpool, which needs an environment of its own.
"""
import argparse
import os
import statistics
import subprocess
import sys

# Python's loops: seconds of stepping alone, as the bench counts, with what one would write by hand.
PEER = r"""
import json, os, sys, time
kind, name, way, rows, seconds, mode = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), sys.argv[6]
for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[key] = "1"
settings = os.path.join(sys.prefix, "dvla-environment.json")
if os.path.exists(settings): os.environ.update({name: value.replace("{prefix}", sys.prefix) for name, value in json.load(open(settings)).items()})
import numpy as np
def make():
    import gymnasium
    if kind == "maniskill":
        import torch, mani_skill.envs
        torch.set_num_threads(1)
        more = {"control_mode": mode} if mode else {}
        from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper
        return CPUGymWrapper(gymnasium.make(name, num_envs=1, obs_mode="state", sim_backend="physx_cpu", render_backend="none", **more))
    return gymnasium.make(name)
if __name__ == "__main__":
    random = np.random.default_rng(1)
    if way == "envpool":
        import envpool
        env = envpool.make(name, env_type="gymnasium", num_envs=rows, num_threads=int(mode))
        env.reset()
        space = env.action_space
        step = lambda: env.step(random.uniform(space.low, space.high, (rows,) + space.shape).astype(space.dtype))
    elif way == "async":
        import gymnasium
        env = gymnasium.vector.AsyncVectorEnv([make] * rows, context="spawn" if kind == "maniskill" else None)
        env.reset(seed=0)
        space = env.single_action_space
        step = lambda: env.step(random.uniform(space.low, space.high, (rows,) + space.shape).astype(space.dtype))
    else:
        envs = [make() for _ in range(rows)]
        for number, each in enumerate(envs): each.reset(seed=number)
        space = envs[0].action_space
        def step():
            for each in envs:
                made = each.step(random.uniform(space.low, space.high).astype(space.dtype))
                if made[2] or made[3]: each.reset()
    for _ in range(20): step()
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        step(); calls += 1
    print(f"{calls * rows / (time.perf_counter() - begin):.1f} steps_per_s", flush=True)
    os._exit(0)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--only", default="")
    parser.add_argument("--envpool", default="")
    options = parser.parse_args()
    rows, seconds = str(options.rows), str(options.seconds)
    script = os.path.join(os.environ.get("TMPDIR", "/tmp"), "dvla_python_peer.py")
    with open(script, "w") as file:
        file.write(PEER)
    cases = [("gymnasium", "HalfCheetah-v5", ""), ("maniskill", "PushCube-v1", "pd_joint_delta_pos")]
    environment = {**os.environ, "PYTHONPATH": os.path.join(os.path.dirname(__file__), "..", "..", "test", "environment")}
    for kind, name, mode in cases:
        if options.only not in kind:
            continue
        python = f".venv-{kind}/bin/python"
        ways = {
            "dvla, embedded": [options.bench, kind, name, rows, "0", seconds, mode],
            "dvla, 1 worker": [options.bench, kind, name, rows, "1", seconds, mode],
            "dvla, 2 workers": [options.bench, kind, name, rows, "2", seconds, mode],
            "a Python loop": [python, script, kind, name, "loop", rows, seconds, mode],
            "AsyncVectorEnv": [python, script, kind, name, "async", rows, seconds, mode],
        }
        if kind == "gymnasium" and options.envpool:
            ways.update({f"envpool, {n} thread{'s' * (n > 1)}": [options.envpool, script, kind, name, "envpool", rows, seconds, str(n)] for n in (1, 2)})
        figures = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, command in ways.items():
                done = subprocess.run([each for each in command if each != ""] if way.startswith("dvla") else command, capture_output=True, text=True, env=environment)
                if done.returncode != 0:
                    sys.exit(f"{way}: {done.stdout}{done.stderr}")
                figures[way].append(float(done.stdout.split(" steps_per_s")[0].split()[-1]))
        print(f"{name}, {rows} environments, {options.rounds} rounds of {seconds} s, load {os.getloadavg()[0]:.1f}")
        for way, each in figures.items():
            print(f"  {way:16s} {statistics.median(each):9.0f} steps/s   {min(each):.0f} to {max(each):.0f}")
        for one, other in (("dvla, embedded", "a Python loop"), ("dvla, 1 worker", "a Python loop"), ("dvla, 2 workers", "dvla, 1 worker"), ("dvla, 2 workers", "AsyncVectorEnv"),
                           ("dvla, 2 workers", "envpool, 2 threads")):
            if other not in figures:
                continue
            print(f"  {one} / {other}: {statistics.median(a / b for a, b in zip(figures[one], figures[other])):.2f}")
    if not options.only or "message" in options.only:
        figures = []
        for _ in range(options.rounds):
            for width, workers in (("1", "1"), ("12000", "1"), ("12000", "0")):
                done = subprocess.run([options.bench, "message", width, "1", workers, seconds], capture_output=True, text=True, env=environment)
                if done.returncode != 0:
                    sys.exit(done.stdout + done.stderr)
                figures.append(float(done.stdout.split(" us_per_call")[0].split()[-1]))
        print(f"a call of one row, one worker, a step that does nothing: {statistics.median(figures[::3]):.0f} us with 4 bytes, {statistics.median(figures[1::3]):.0f} us with 48 KB; "
              f"embedded {statistics.median(figures[2::3]):.0f} us with 48 KB")


main()
