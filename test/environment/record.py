#!/usr/bin/env python3
"""Plays an environment in Python alone, with random actions from a seed, and writes what it showed: what test_gymnasium.cpp and
test_maniskill.cpp compare the bridge with.

    record.py gymnasium FetchReach-v4 OUT --rows 3 --steps 60      by Gymnasium's own SyncVectorEnv, which resets by itself
    record.py maniskill PushCube-v1 OUT --rows 2 --steps 60 --control-mode pd_ee_delta_pos

OUT: a line "rows steps A P horizon", then of every row its first observation [P], then of every step and row action [A],
observation [P], reward, terminated, truncated, success (float32; the observation is the one that ended an episode where one did),
and the observation that the next episode begins with [P], if one ended. The k-th episode of row r has seed 1000 * k + r.
"""
import argparse
import json
import os
import sys

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("kind", choices=["gymnasium", "maniskill"])
parser.add_argument("name")
parser.add_argument("out")
parser.add_argument("--rows", type=int, default=3)
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--limit", type=int, default=0)
parser.add_argument("--control-mode", default="")
parser.add_argument("--obs-mode", default="state")
options = parser.parse_args()
settings = os.path.join(sys.prefix, "dvla-environment.json")  # what scripts/setup found that the simulator needs
if os.path.exists(settings):
    with open(settings) as file:
        os.environ.update({name: value.replace("{prefix}", sys.prefix) for name, value in json.load(file).items()})


def make():
    import gymnasium

    arguments = {"max_episode_steps": options.limit} if options.limit else {}
    if options.kind == "maniskill":
        import mani_skill.envs  # noqa: F401
        import torch

        torch.set_num_threads(1)
        if options.control_mode:
            arguments["control_mode"] = options.control_mode
        return gymnasium.make(options.name, num_envs=1, obs_mode=options.obs_mode, sim_backend="physx_cpu", render_backend="none",
                              **arguments)
    if options.name.startswith("Fetch"):
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.make(options.name, **arguments)


def flat(seen):
    if isinstance(seen, dict):
        return np.concatenate([flat(seen[key]) for key in sorted(seen)])  # as its space has them
    return np.asarray(seen.numpy() if hasattr(seen, "numpy") else seen, dtype=np.float32).reshape(-1)


def one(value):
    return value.item() if hasattr(value, "item") else value


class Alone:
    """A row: an environment that is reset when an episode ends."""

    def __init__(self, row):
        self.env, self.row, self.episode = make(), row, 0
        unwrapped = self.env.unwrapped
        self.action_space = unwrapped.single_action_space if options.kind == "maniskill" else self.env.action_space

    def reset(self):
        seed = 1000 * self.episode + self.row
        self.episode += 1
        how = {"options": {"reconfigure": True}} if options.kind == "maniskill" else {}
        return flat(self.env.reset(seed=seed, **how)[0])

    def step(self, action):
        seen, reward, terminated, truncated, info = self.env.step(action)
        return flat(seen), float(reward), bool(terminated), bool(truncated), bool(one(info.get("success", info.get("is_success", False))))


def action_of(space, random):
    if hasattr(space, "n"):
        chosen = int(random.integers(space.n))
        return chosen, np.array([chosen], np.float32)
    chosen = random.uniform(space.low, space.high).astype(np.float32)
    return chosen.astype(space.dtype), chosen.reshape(-1)


def main():
    rows = [Alone(row) for row in range(options.rows)]
    horizon = options.limit or rows[0].env.spec.max_episode_steps
    random = np.random.default_rng(5)
    first = [row.reset() for row in rows]
    width = action_of(rows[0].action_space, np.random.default_rng(0))[1].size
    vector = None
    if options.kind == "gymnasium":  # its own vector environment says the same, from the same seeds
        import gymnasium

        vector = gymnasium.vector.SyncVectorEnv([make] * options.rows, autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED)
        seen, _ = vector.reset(seed=[row.row for row in rows])
    with open(options.out, "wb") as file:
        file.write(f"{options.rows} {options.steps} {width} {first[0].size} {horizon}\n".encode())
        for seen in first:
            file.write(seen.tobytes())
        for _ in range(options.steps):
            drawn = [action_of(row.action_space, random) for row in rows]
            if vector is not None:
                shown, rewards, ended, cut, infos = vector.step(np.stack([action for action, _ in drawn]))
            for row, (action, floats) in zip(rows, drawn):
                seen, reward, terminated, truncated, success = row.step(action)
                if vector is not None:
                    of_vector = flat({key: value[row.row] for key, value in shown.items()} if isinstance(shown, dict) else shown[row.row])
                    if not (np.array_equal(of_vector, seen) and rewards[row.row] == reward and ended[row.row] == terminated and cut[row.row] == truncated):
                        sys.exit(f"{options.name}: SyncVectorEnv and a single environment differ in row {row.row}")
                facts = np.array([reward, terminated, truncated, success], np.float32)
                file.write(floats.tobytes() + seen.tobytes() + facts.tobytes())
                # dvla ends an episode where its task is solved.
                if terminated or truncated or success:
                    file.write(row.reset().tobytes())
                    if vector is not None:
                        mask = np.arange(options.rows) == row.row
                        vector.reset(seed=[1000 * (row.episode - 1) + row.row if chosen else None for chosen in mask],
                                     options={"reset_mask": mask})
    sys.stdout.flush()
    os._exit(0)


main()
