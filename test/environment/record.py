#!/usr/bin/env python3
"""Plays an environment in Python alone, with random actions from a seed, and writes what it showed: what test_gymnasium.cpp,
test_maniskill.cpp and test_maniskill_tasks.cpp compare the bridge with.

    record.py gymnasium FetchReach-v4 OUT --rows 3 --steps 60      by Gymnasium's own SyncVectorEnv, which resets by itself
    record.py maniskill PushCube-v1 OUT --rows 2 --steps 60 --control-mode pd_ee_delta_pos

OUT: a line "rows steps A P F horizon", then of every row its first observation, then of every step and row action [A],
observation, reward, terminated, truncated, success (float32; the observation is the one that ended an episode where one did),
and the observation that the next episode begins with, if one ended. An observation is P float32 and the F bytes of its
pictures. The k-th episode of row r has seed 1000 * k + r.
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
parser.add_argument("--robot-uids", default="")
parser.add_argument("--pixels", type=int, default=0, help="side of the cameras' pictures")
parser.add_argument("--plain-reset", action="store_true", help="ManiSkill's own reset, after which contacts of before show")
parser.add_argument("--push", action="store_true", help="not at random: behind PushCube's cube and on, with noise, so that it is solved")
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
        for key in ("control_mode", "robot_uids"):
            if getattr(options, key):
                arguments[key] = getattr(options, key)
        if options.pixels:
            arguments["sensor_configs"] = {"width": options.pixels, "height": options.pixels}
        if options.obs_mode == "state":
            arguments["render_backend"] = "none"
        return gymnasium.make(options.name, num_envs=1, obs_mode=options.obs_mode, sim_backend="physx_cpu", **arguments)
    if options.name.startswith("Fetch"):
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.make(options.name, **arguments)


def parts(seen, space):
    """Arrays, in the order of their space."""
    if isinstance(seen, dict):
        for key, inner in space.spaces.items():
            if key != "sensor_param":  # where ManiSkill's cameras stand
                yield from parts(seen[key], inner)
    else:
        yield np.asarray(seen.numpy() if hasattr(seen, "numpy") else seen)


def flat(seen, space):
    numbers = [part.reshape(-1) for part in parts(seen, space) if part.dtype != np.uint8]
    return np.concatenate(numbers).astype(np.float32) if numbers else np.zeros(0, np.float32)


def shown(seen, space):
    return flat(seen, space).tobytes() + b"".join(part.tobytes() for part in parts(seen, space) if part.dtype == np.uint8)


def one(value):
    return value.item() if hasattr(value, "item") else value


class Alone:
    """A row: an environment that is reset when an episode ends."""

    def __init__(self, row):
        self.env, self.row, self.episode = make(), row, 0
        unwrapped = self.env.unwrapped
        self.action_space = unwrapped.single_action_space if options.kind == "maniskill" else self.env.action_space
        self.space = unwrapped.single_observation_space if options.kind == "maniskill" else self.env.observation_space

    def horizon(self):
        if options.kind == "maniskill":
            from mani_skill.utils import gym_utils

            return gym_utils.find_max_episode_steps_value(self.env)
        return self.env.spec.max_episode_steps

    def reset(self):
        seed = 1000 * self.episode + self.row
        self.episode += 1
        how = {"options": {"reconfigure": True}} if options.kind == "maniskill" and not options.plain_reset else {}
        return self.env.reset(seed=seed, **how)[0]

    def step(self, action):
        seen, reward, terminated, truncated, info = self.env.step(action)
        return seen, float(reward), bool(terminated), bool(truncated), bool(one(info.get("success", info.get("is_success", False))))


def push_of(row, random):
    base = row.env.unwrapped
    tool, cube = (part.pose.p.numpy()[0] for part in (base.agent.tcp, base.obj))
    behind = abs(tool[1] - cube[1]) < 0.01 and tool[0] < cube[0] - 0.03 and tool[2] < 0.06
    above = 0.12 if tool[0] > cube[0] - 0.05 and tool[2] < 0.08 else cube[2]
    aim = [0.05, cube[1] - tool[1], cube[2] - tool[2]] if behind else [cube[0] - 0.08 - tool[0], cube[1] - tool[1], above - tool[2]]
    chosen = np.append(np.clip(10 * np.array(aim), -1, 1), -1) + random.normal(0, 0.1, 4)
    chosen = np.clip(chosen, -1, 1).astype(np.float32)
    return chosen, chosen


def action_of(space, random):
    if hasattr(space, "n"):
        chosen = int(random.integers(space.n))
        return chosen, np.array([chosen], np.float32)
    chosen = random.uniform(space.low, space.high).astype(np.float32)
    return chosen.astype(space.dtype), chosen.reshape(-1)


def main():
    rows = [Alone(row) for row in range(options.rows)]
    horizon = options.limit or rows[0].horizon()
    random = np.random.default_rng(5)
    first = [row.reset() for row in rows]
    width = action_of(rows[0].action_space, np.random.default_rng(0))[1].size
    vector = None
    if options.kind == "gymnasium":  # its own vector environment says the same, from the same seeds
        import gymnasium

        vector = gymnasium.vector.SyncVectorEnv([make] * options.rows, autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED)
        seen, _ = vector.reset(seed=[row.row for row in rows])
    with open(options.out, "wb") as file:
        space = rows[0].space
        numbers = flat(first[0], space).size
        file.write(f"{options.rows} {options.steps} {width} {numbers} {len(shown(first[0], space)) - 4 * numbers} {horizon}\n".encode())
        for seen in first:
            file.write(shown(seen, space))
        for _ in range(options.steps):
            drawn = [push_of(row, random) if options.push else action_of(row.action_space, random) for row in rows]
            if vector is not None:
                together, rewards, ended, cut, infos = vector.step(np.stack([action for action, _ in drawn]))
            for row, (action, floats) in zip(rows, drawn):
                seen, reward, terminated, truncated, success = row.step(action)
                if vector is not None:
                    of_vector = {key: value[row.row] for key, value in together.items()} if isinstance(together, dict) else together[row.row]
                    if not (np.array_equal(flat(of_vector, space), flat(seen, space)) and rewards[row.row] == reward and ended[row.row] == terminated and cut[row.row] == truncated):
                        sys.exit(f"{options.name}: SyncVectorEnv and a single environment differ in row {row.row}")
                facts = np.array([reward, terminated, truncated, success], np.float32)
                file.write(floats.tobytes() + shown(seen, space) + facts.tobytes())
                # dvla ends an episode where its task is solved.
                if terminated or truncated or success:
                    file.write(shown(row.reset(), space))
                    if vector is not None:
                        mask = np.arange(options.rows) == row.row
                        vector.reset(seed=[1000 * (row.episode - 1) + row.row if chosen else None for chosen in mask],
                                     options={"reset_mask": mask})
    sys.stdout.flush()
    os._exit(0)


main()
