"""Environments with Gymnasium's interface and without Gymnasium, for test_python.cpp: NumPy only.

Point: the agent is to come within 0.2 of a target on a line; three ways of showing it. Faulty: misbehaves as told.
"""
import os
import signal
import threading
import time

import numpy as np


class Space:
    def __init__(self, **members):
        self.__dict__.update(members)


class Box(Space):
    def __init__(self, low, high, shape, dtype=np.float32):
        super().__init__(low=np.full(shape, low, dtype), high=np.full(shape, high, dtype), shape=shape, dtype=np.dtype(dtype))


class Discrete(Space):
    def __init__(self, n, start=0):
        super().__init__(n=n, start=start, shape=(), dtype=np.dtype(np.int64))


class MultiDiscrete(Space):
    def __init__(self, nvec):
        super().__init__(nvec=np.array(nvec), shape=(len(nvec),), dtype=np.dtype(np.int64))


class Dict(Space):
    def __init__(self, **spaces):
        super().__init__(spaces=spaces)


class Text(Space):
    pass


class Point:
    """observation: [place, target] as float64; action: a move in [-0.5, 0.5]."""

    observation_space = Box(-2, 2, (2,))
    action_space = Box(-0.5, 0.5, (1,))
    unwrapped = property(lambda self: self)

    def __init__(self, limit=8):
        self.spec = Space(max_episode_steps=limit)

    def reset(self, seed=None, options=None):
        random = np.random.default_rng(seed)
        self.place, self.target = 0.0, random.uniform(-1.5, 1.5)
        return self.seen(), {}

    def step(self, action):
        self.move(action)
        near = abs(self.place - self.target) < 0.2
        return self.seen(), float(near), False, False, {"is_success": near}

    def move(self, action):
        assert isinstance(action, np.ndarray) and action.shape == (1,) and action.dtype == np.float32
        self.place += float(action[0])

    def seen(self):
        return np.array([self.place, self.target])

    def expert_action(self):
        return [np.clip(self.target - self.place, -0.5, 0.5)]

    def render(self):
        picture = np.zeros((8, 16, 3), np.uint8)
        picture[:, 8:] = 200
        return picture

    def close(self):
        pass


class Many(Point):
    """Nested observations with a picture; an action of several parts."""

    observation_space = Dict(
        where=Dict(place=Box(-9, 9, (1, 1)), side=Discrete(2)), eye=Box(0, 255, (3, 4, 3), np.uint8), pair=MultiDiscrete([2, 3]))
    action_space = Dict(go=Box(-0.5, 0.5, (1,)), jump=Discrete(3, start=-1), flags=MultiDiscrete([2, 2]))

    def move(self, action):
        assert list(action) == ["go", "jump", "flags"] and action["jump"] in (-1, 0, 1) and action["flags"].shape == (2,)
        self.place += float(action["go"][0]) + 0.1 * action["jump"] + 0.01 * int(action["flags"].sum())

    def expert_action(self):
        return [*super().expert_action(), 1, 0, 0]

    def seen(self):
        side = int(self.target > 0)
        return {"where": {"place": np.array([[self.place]]), "side": side}, "eye": np.full((3, 4, 3), 10 + side, np.uint8), "pair": np.array([side, 2])}


class Faulty(Point):
    def __init__(self, fault="raise", limit=8):
        super().__init__(limit)
        self.fault, self.steps = fault, 0

    def step(self, action):
        self.steps += 1
        if self.target > 0 and self.steps in (3, 4):
            if self.fault == "raise":
                self.fail_inside()
            if self.fault == "shape":
                return np.zeros(5), 0.0, False, False, {}
            if self.fault == "hang":
                time.sleep(1000)
            if self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)

    def fail_inside(self):
        raise RuntimeError("the gripper\nfell off")


def unbounded():
    made = Point()
    made.action_space = Box(-np.inf, np.inf, (1,))
    return made


def texts():
    made = Point()
    made.observation_space = Dict(mission=Text())
    return made


def endless():
    made = Point()
    made.spec = None
    return made


class vector:
    """Points side by side, which are never begun again by themselves."""

    single_observation_space, single_action_space = Point.observation_space, Point.action_space
    metadata = {"autoreset_mode": "Disabled"}

    def __init__(self, num_envs):
        self.num_envs, self.points = num_envs, [Point() for _ in range(num_envs)]
        self.spec = self.points[0].spec

    def reset(self, seed=None, options=None):
        mask = (options or {}).get("reset_mask", [True] * self.num_envs)
        return np.stack([point.reset(one)[0] if chosen else point.seen() for point, one, chosen in zip(self.points, seed, mask)]), {}

    def step(self, actions):
        made = [point.step(action) for point, action in zip(self.points, actions)]
        seen, reward, terminated, truncated = (np.array([each[i] for each in made]) for i in range(4))
        return seen, reward, terminated, truncated, {"is_success": np.array([each[4]["is_success"] for each in made])}

    def close(self):
        pass


class Wide(Point):
    """So many numbers, and a step that does nothing: what a message costs (bench_environment_python)."""

    def __init__(self, width):
        super().__init__(limit=100000)
        self.observation_space, self.numbers = Box(-1, 1, (width,)), np.zeros(width, np.float32)

    def seen(self):
        return self.numbers

    def step(self, action):
        return self.numbers, 0.0, False, False, {}


class Three(Point):
    """The same with a third number."""

    observation_space = Box(-9, 9, (3,))

    def seen(self):
        return np.array([self.place, self.target, 7])


class Interrupted(Point):
    """Somebody presses Ctrl-C, or it ends the program, in its third step."""

    def __init__(self, way="interrupt"):
        super().__init__()
        self.way, self.steps = way, 0

    def step(self, action):
        self.steps += 1
        if self.steps == 3:
            raise KeyboardInterrupt if self.way == "interrupt" else SystemExit(3)
        return super().step(action)


class Frail(Point):
    """A step takes `work` seconds, of a core or of waiting, and the action says what goes wrong: bench_environment_failures."""

    def __init__(self, work=0.0005, waits=False):
        super().__init__(limit=100000)
        self.work, self.waits = work, waits

    def step(self, action):
        if action[0] > 0.45:
            raise RuntimeError("the gripper fell off")
        if action[0] < -0.45:
            time.sleep(1000)
        if self.waits:
            time.sleep(self.work)
        until = time.perf_counter() + self.work
        while not self.waits and time.perf_counter() < until:
            pass
        return self.seen(), 0.0, False, False, {}


class Threaded(Point):
    """As a renderer: it works in the thread that made it alone."""

    def __init__(self):
        super().__init__()
        self.own = threading.local()
        self.own.made = True

    def reset(self, seed=None, options=None):
        assert self.own.made and threading.current_thread() is threading.main_thread()
        return super().reset(seed, options)

    def step(self, action):
        assert self.own.made
        return super().step(action)
