"""ManiSkill's interface with many rows in one instance, whose device is the host: what physx_cuda is, for machines without a GPU
(test_maniskill.cpp). A row is a place on a line that actions move, from where its seed says, to 1. At control step 3 of `overflows`
it says what PhysX says when a buffer is full."""
import sys

import numpy as np
import torch
from gymnasium import spaces
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.utils.registration import register_env


class Together(BaseEnv):
    def __init__(self, num_envs, obs_mode, sim_backend, overflows=False, **_):
        assert obs_mode == "state" and sim_backend.startswith("physx_cuda")
        self._rows, self.overflows = num_envs, overflows
        self.place, self._elapsed_steps = torch.zeros(num_envs), torch.zeros(num_envs, dtype=torch.int32)
        self.drawn = torch.zeros(num_envs)
        self._one = spaces.Box(-10, 10, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (num_envs, 1), np.float32)

    num_envs = property(lambda self: self._rows)
    device = property(lambda self: torch.device("cpu"))
    elapsed_steps = property(lambda self: self._elapsed_steps)
    single_observation_space = property(lambda self: self._one)
    single_action_space = property(lambda self: spaces.Box(-1, 1, (1,), np.float32))
    observation_space = property(lambda self: spaces.Box(-10, 10, (self._rows, 3), np.float32))
    reward_mode = control_mode = "stub"

    def reset(self, seed=None, options=None):
        rows = (options or {}).get("env_idx", torch.arange(self._rows))
        assert seed is None or len(seed) == self._rows
        torch.manual_seed(seed[0] if seed else 0)
        self.drawn[rows] = torch.rand(len(rows))  # of rows reset together, as the first one's seed has it
        self.place[rows] = torch.tensor([float(each % 7) / 8 for each in seed or [0] * self._rows])[rows]
        self._elapsed_steps[rows] = 0
        return self.seen(), {}

    def step(self, action):
        action = torch.as_tensor(action).reshape(self._rows)
        self.place = self.place + action
        self._elapsed_steps += 1
        if self.overflows and int(self._elapsed_steps.max()) == 3:
            print("PxgDynamicsMemory: Contact buffer overflow detected, please increase its size to 123456", file=sys.stderr)
        solved = self.place >= 1
        return self.seen(), action.clone(), solved, torch.zeros(self._rows, dtype=bool), {"success": solved}

    def seen(self):
        return torch.stack([self.place, self.drawn, self._elapsed_steps.float()], dim=1)

    def expert_action(self):
        return [[1.0 + row] for row in range(self._rows)]

    def close(self):
        pass


register_env("Together-v0", max_episode_steps=6)(Together)
