#!/usr/bin/env python3
"""Lists the tasks of ManiSkill that run without a download, as docs/maniskill_tasks.md has them.

    .venv-maniskill/bin/python docs/list_maniskill_tasks.py > docs/maniskill_tasks.md

Each is made in a process of its own, in state mode on the CPU; one that asks for assets, or takes longer than 100 s, is left out.
"""
import json
import os
import subprocess
import sys

ONE = r"""
import builtins, json, os, sys
def refuse(question=""): raise SystemExit("assets")
builtins.input = refuse
os.environ.update({name: value.replace("{prefix}", sys.prefix) for name, value in json.load(open(os.path.join(sys.prefix, "dvla-environment.json"))).items()})
import gymnasium, mani_skill.envs
from mani_skill.utils import gym_utils
env = gymnasium.make(sys.argv[1], num_envs=1, obs_mode="state", sim_backend="physx_cpu", render_backend="none")
env.reset(seed=0)
base = env.unwrapped
print("TASK " + json.dumps([sys.argv[1], list(base.single_observation_space.shape), list(getattr(base.single_action_space, "shape", None) or ["a dict"]),
    str(base.control_mode), getattr(base.robot_uids, "__name__", str(base.robot_uids)), gym_utils.find_max_episode_steps_value(env)]), flush=True)
os._exit(0)
"""


def main():
    settings = os.path.join(sys.prefix, "dvla-environment.json")
    with open(settings) as file:
        os.environ.update({name: value.replace("{prefix}", sys.prefix) for name, value in json.load(file).items()})
    import mani_skill.envs  # noqa: F401
    from mani_skill.utils.registration import REGISTERED_ENVS

    rows, left_out = [], []
    for name in sorted(REGISTERED_ENVS):
        try:
            done = subprocess.run([sys.executable, "-c", ONE, name], capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
            made = [line[5:] for line in done.stdout.splitlines() if line.startswith("TASK ")]
        except subprocess.TimeoutExpired:
            made = []
        if made:
            rows.append(json.loads(made[0]))
        else:
            left_out.append(name)
        print(f"{len(rows)} of {len(rows) + len(left_out)}", file=sys.stderr, flush=True)
    print("# Tasks of ManiSkill that need no download\n")
    print(f"Made by `docs/list_maniskill_tasks.py`: {len(rows)} of {len(REGISTERED_ENVS)} registered tasks of ManiSkill "
          f"{__import__('importlib.metadata').metadata.version('mani_skill')}, in state mode on a CPU, each with its own robot and control mode.\n")
    print("| task | state | action | control mode | robot | longest episode |")
    print("|---|---|---|---|---|---|")
    for name, state, action, control, robot, limit in rows:
        print(f"| `{name}` | {' x '.join(map(str, state))} | {' x '.join(map(str, action))} | `{control}` | {robot} | {limit or 'not stated'} |")
    print("\nThe others ask for assets, or do not run on a CPU: " + ", ".join(f"`{name}`" for name in left_out) + ".")


main()
