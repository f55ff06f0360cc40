R"python("
# A worker of environments in Python: Gymnasium's, ManiSkill's, or a user's own. It is a child of the trainer
# (environment/apart.hpp says what it is told and answers), has some rows of the batch, and writes what they show
# straight into the environment pool: one copy, from the simulator's array into its row. Or it is in the trainer's own
# process (embedded.hpp), and has all rows. This file is Python, and a raw string of C++ that program.hpp includes; its
# first and last line are both. NumPy is all that it needs beside the simulator. argv[1] is the knobs as JSON.
import contextlib
import fcntl
import gc
import hashlib
import importlib.util
import inspect
import json
import mmap
import os
import random
import re
import socket
import sys
import tempfile
import traceback


def described(error):
    """One line: what was raised, and where, the innermost place last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != "<string>"]
    where = ", ".join(f"{os.path.basename(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames[-6:])
    text = " ".join(f"{type(error).__name__}: {error}".split())[:1000] + (f" ({where})" if where else "")
    return text.encode("utf-8", "replace").decode()


class Unsupported(Exception):
    """One sentence for who chose this environment."""


# ---- Spaces -----------------------------------------------------------------------------------------------------
def kind_of(space):
    """By name: a space may be gymnasium's, or one of its children's."""
    for base in type(space).__mro__:
        if base.__name__ in ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple"):
            return base.__name__
    raise Unsupported(f"{type(space).__name__} is a space that dvla does not take; it takes Box, Discrete, MultiDiscrete, "
                      "MultiBinary, and Dict and Tuple of those")


def leaves(space, path=()):
    kind = kind_of(space)
    if kind == "Dict":
        for key, inner in space.spaces.items():
            yield from leaves(inner, path + (key,))
    elif kind == "Tuple":
        for index, inner in enumerate(space.spaces):
            yield from leaves(inner, path + (index,))
    else:
        yield path, kind, space


def at(value, path):
    for key in path:
        value = value[key]
    return value


def array(value):
    """A NumPy array, without a copy where it lies in host memory."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def is_picture(kind, space):
    return kind == "Box" and space.dtype == np.uint8 and len(space.shape) in (2, 3) and (
        len(space.shape) == 2 or space.shape[2] in (1, 3))


class Shown:
    """An observation space, as cameras and numbers."""

    def __init__(self, space, skipped=(), camera_names=None):
        self.cameras, self.numbers, self.width = [], [], 0
        for path, kind, leaf in leaves(space):
            if path and path[0] in skipped:
                continue
            if is_picture(kind, leaf):
                name = (camera_names or "/".join)([str(key) for key in path]) or "image"
                self.cameras.append((path, name, leaf.shape[0], leaf.shape[1]))
                continue
            if kind in ("Box", "MultiBinary"):
                if len(leaf.shape) > 2:
                    raise Unsupported(f"{'/'.join(map(str, path)) or 'its observation'} has extents {list(leaf.shape)} of {leaf.dtype}: neither a picture "
                                      "([H, W], [H, W, 1] or [H, W, 3] of uint8) nor a list of numbers")
                count = int(np.prod(leaf.shape))
            elif kind == "Discrete":
                count = int(leaf.n)
            else:
                count = int(np.sum(leaf.nvec))
            self.numbers.append((path, kind, leaf, self.width, self.width + count))
            self.width += count

    def write(self, seen, numbers, frames):
        """`numbers`: [P] or None; `frames`: [H, W, 3] of each camera."""
        for path, kind, leaf, first, last in self.numbers:
            value = array(at(seen, path)).reshape(-1)
            if kind in ("Box", "MultiBinary"):
                if value.size != last - first:
                    raise ValueError(f"it shows {value.size} numbers at {'/'.join(map(str, path)) or 'the top'}, and its space says {last - first}")
                numbers[first:last] = value
                continue
            numbers[first:last] = 0
            starts = np.asarray(getattr(leaf, "start", 0)).reshape(-1)
            counts = np.asarray(leaf.n if kind == "Discrete" else leaf.nvec).reshape(-1)
            for n, start, chosen in zip(counts, np.broadcast_to(starts, counts.shape), value):
                if not 0 <= int(chosen) - int(start) < int(n):
                    raise ValueError(f"it shows {int(chosen)} at {'/'.join(map(str, path)) or 'the top'}, one of {int(n)} from {int(start)}")
                numbers[first + int(chosen) - int(start)] = 1
                first += int(n)
        for (path, _, height, width), frame in zip(self.cameras, frames):
            picture = array(at(seen, path))
            frame[:] = picture.reshape(height, width, -1)


class Taken:
    """An action space, from a row of floats."""

    def __init__(self, space):
        self.space, self.parts, self.categories, self.bounds = space, [], [], []
        for path, kind, leaf in leaves(space):
            first = len(self.categories)
            if kind == "Box":
                low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (leaf.low, leaf.high))
                for i in range(low.size):
                    if not (max(abs(low[i]), abs(high[i])) < 3e38 and np.float32(low[i]) < np.float32(high[i])):
                        raise Unsupported(f"dimension {first + i} of its actions lies in [{low[i]}, {high[i]}]; dvla takes finite bounds, the "
                                          "lower one first: wrap it (gymnasium.wrappers.RescaleAction)")
                    self.categories.append(0)
                    self.bounds.append({"low": float(low[i]), "high": float(high[i])})
            else:
                counts = {"Discrete": lambda: [int(leaf.n)], "MultiBinary": lambda: [2] * int(np.prod(leaf.shape)),
                          "MultiDiscrete": lambda: [int(n) for n in np.asarray(leaf.nvec).reshape(-1)]}[kind]()
                for n in counts:
                    if n < 2:
                        raise Unsupported(f"dimension {len(self.categories)} of its actions is one of {n}; there must be 2 to choose from")
                    self.categories.append(n)
                    self.bounds.append({"low": -1.0, "high": 1.0})
            self.parts.append((self.part(kind, leaf), first, len(self.categories)))
        self.alone = kind_of(space) not in ("Dict", "Tuple")

    def value(self, floats):
        if self.alone:
            return self.parts[0][0](floats)
        return self.build(self.space, iter([part(floats[first:last]) for part, first, last in self.parts]))

    def build(self, space, it):
        kind = kind_of(space)
        if kind == "Dict":
            return {key: self.build(inner, it) for key, inner in space.spaces.items()}
        if kind == "Tuple":
            return tuple(self.build(inner, it) for inner in space.spaces)
        return next(it)

    @staticmethod
    def part(kind, leaf):
        """What makes its value of its floats: a new one each time, which the environment may keep."""
        shape, dtype = leaf.shape, leaf.dtype
        if kind == "Box":  # within its bounds, which are no float32 where the space is float64
            low, high = (np.asarray(bound, dtype).reshape(-1) for bound in (leaf.low, leaf.high))
            if np.issubdtype(dtype, np.integer):
                return lambda floats: np.clip(np.rint(floats.astype(np.float64)), low, high).astype(dtype).reshape(shape)
            return lambda floats: np.minimum(np.maximum(floats.astype(dtype), low), high).reshape(shape)
        if kind == "Discrete":
            return lambda floats: int(floats[0]) + int(leaf.start)
        start = np.asarray(getattr(leaf, "start", 0)).reshape(-1)
        return lambda floats: (floats.astype(dtype) + start).astype(dtype).reshape(shape)


# ---- Tasks: what a row may play ---------------------------------------------------------------------------------
def scalar(value):
    return value.item() if hasattr(value, "item") else value


def solved_by(info):
    for key in ("success", "is_success"):
        if key in info:
            return bool(scalar(info[key]))
    return False


def is_vector(env):
    return hasattr(env, "num_envs") and hasattr(env, "single_action_space")


class GymnasiumTask:
    """One id of Gymnasium's registry, or a factory `module:function` that makes an environment."""

    skipped = ()
    camera_name = None

    def __init__(self, name, options, rows):
        self.name, self.options, self.rows = name, options, rows
        self.arguments = options["arguments"]
        self.limit = options["max_episode_steps"]

    def make(self):
        if self.options["factory"]:
            module, _, function = self.name.partition(":")
            if not function:
                raise Unsupported(f"environment.factory is '{self.name}'; it must be module:function")
            make, arguments = getattr(importlib.import_module(module), function), dict(self.arguments)
            if "num_envs" in inspect.signature(make).parameters:  # a vector environment of all rows here
                arguments["num_envs"] = self.rows
            return make(**arguments)
        import gymnasium

        if self.options["render"]:
            self.arguments.setdefault("render_mode", "rgb_array")
        if self.limit:
            self.arguments.setdefault("max_episode_steps", self.limit)
        for module in ("ale_py", "gymnasium_robotics", "minigrid"):  # they register what they bring when asked
            if self.name in gymnasium.registry or ":" in self.name:  # module:id is imported by make itself
                break
            if importlib.util.find_spec(module) is not None:
                gymnasium.register_envs(importlib.import_module(module))
        return gymnasium.make(self.name, disable_env_checker=True, **self.arguments)

    def horizon(self, env):
        limit = self.limit or self.own_limit(env)
        if not limit:
            raise Unsupported(f"{self.name} says of no episode how long it may be; give environment.max_episode_steps")
        return int(limit)

    def own_limit(self, env):
        return getattr(getattr(env, "spec", None), "max_episode_steps", None)

    def spaces(self, env):
        return (env.single_observation_space, env.single_action_space) if is_vector(env) else (env.observation_space, env.action_space)

    def instruction(self):
        name = self.name.rpartition("/")[2]
        return name.rpartition("-v")[0] or name

    def reset(self, env, seed, training):
        return env.reset(seed=seed)

    def step(self, env, action):
        seen, reward, terminated, truncated, info = env.step(action)
        return seen, float(reward), bool(terminated), bool(truncated), solved_by(info)

    def expert(self, env, index=0):
        own = getattr(env.unwrapped, "expert_action", None)
        if own is not None:
            return np.asarray(own(), dtype=np.float32).reshape(-1)
        if self.name.startswith("FetchReach"):  # towards the goal, the gripper left alone
            base = env.unwrapped
            observation = base._get_obs()
            return np.append(np.clip(8 * (observation["desired_goal"] - observation["achieved_goal"]), -1, 1), 0).astype(np.float32)
        raise Unsupported(f"{self.name} has no scripted expert: give the environment a method expert_action(), or run.demonstrations 0")

    def render(self, env):
        picture = env.render()
        if picture is None:
            raise Unsupported("its render() gives no picture; environment.render must be true, and its render_mode rgb_array")
        return array(picture)


# What a language-conditioned policy is told, of the tasks of ManiSkill 3 that need no download.
MANISKILL_INSTRUCTIONS = {
    "PushCube-v1": "push the cube to the goal", "PullCube-v1": "pull the cube to the goal", "PickCube-v1": "pick up the cube and move it to the goal",
    "PickCubeSO100-v1": "pick up the cube and move it to the goal", "PickCubeWidowXAI-v1": "pick up the cube and move it to the goal",
    "StackCube-v1": "stack the red cube on the green cube", "StackPyramid-v1": "build a pyramid of the three cubes",
    "PegInsertionSide-v1": "insert the peg into the hole in the box", "PlugCharger-v1": "plug the charger into the socket",
    "LiftPegUpright-v1": "lift the peg and stand it upright", "PokeCube-v1": "poke the cube with the peg",
    "PullCubeTool-v1": "pull the cube closer with the tool", "PushT-v1": "push the T onto its outline",
    "RollBall-v1": "roll the ball to the goal", "PlaceSphere-v1": "place the sphere into the bin",
    "TwoRobotPickCube-v1": "pick up the cube and hand it to the other side", "TwoRobotStackCube-v1": "stack the cubes with both arms",
    "DrawTriangle-v1": "draw the outlined triangle", "DrawSVG-v1": "draw the outlined shape", "DrawTableTop-v1": "draw on the table",
    "TurnFaucet-v1": "turn on the faucet", "InsertFlower-v1": "insert the flower into the vase",
    "RotateCubeLevel0-v1": "turn the cube", "RotateValveLevel0-v1": "turn the valve",
    "TriFingerRotateCubeLevel0-v1": "turn the cube with the fingers", "RotateSingleObjectInHandLevel0-v1": "turn the object in the hand",
    "MS-CartpoleBalance-v1": "balance the pole", "MS-CartpoleSwingUp-v1": "swing the pole up and balance it",
    "MS-HopperStand-v1": "stand", "MS-HopperHop-v1": "hop forwards", "MS-AntWalk-v1": "walk", "MS-AntRun-v1": "run",
    "MS-HumanoidStand-v1": "stand", "MS-HumanoidWalk-v1": "walk", "MS-HumanoidRun-v1": "run",
    "AnymalC-Reach-v1": "walk to the goal", "AnymalC-Spin-v1": "turn on the spot", "UnitreeG1Stand-v1": "stand",
}


class ManiSkillTask(GymnasiumTask):
    """A task of ManiSkill: on the CPU one environment an instance, tensors of batch 1; on a GPU one instance of all rows."""

    skipped = ("sensor_param",)

    @staticmethod
    def camera_name(path):
        return path[-2] if len(path) > 1 else "image"

    @staticmethod
    @contextlib.contextmanager
    def refusing_questions():
        """It asks whether to download what a task lacks: there is nobody to answer."""
        import builtins

        said, usual = [], (builtins.print, builtins.input)

        def listen(*words, **more):
            said[:] = [*said[-1:], " ".join(map(str, words))]
            usual[0](*words, **more)

        def refuse(question=""):
            raise Unsupported(" ".join(word for word in " ".join([*said, str(question)]).replace("(y|n):", "").split() if word.strip("-")) +
                              " (nobody can answer here: download them with ManiSkill's own command first)")

        builtins.print, builtins.input = listen, refuse
        try:
            yield
        finally:
            builtins.print, builtins.input = usual

    def make(self):
        if not self.options["embedded"]:
            import torch

            torch.set_num_threads(1)
        import gymnasium
        import mani_skill.envs  # noqa: F401: registers them

        options, arguments = self.options, dict(self.arguments)
        arguments.setdefault("num_envs", self.rows if self.together else 1)
        arguments.setdefault("obs_mode", options["obs_mode"])
        arguments.setdefault("sim_backend", options["sim_backend"])
        for key in ("control_mode", "reward_mode", "robot_uids"):
            if options[key]:
                arguments.setdefault(key, options[key])
        if self.limit:
            arguments.setdefault("max_episode_steps", self.limit)
        if options["render"]:
            arguments.setdefault("render_mode", "rgb_array")
        elif arguments["obs_mode"] in ("state", "state_dict", "none"):
            arguments.setdefault("render_backend", "none")
        if options["camera_pixels"]:
            arguments.setdefault("sensor_configs", {"width": options["camera_pixels"], "height": options["camera_pixels"]})
        with self.refusing_questions():
            env = gymnasium.make(self.name, **arguments)
        if env.unwrapped.num_envs != (self.rows if self.together else 1):
            raise Unsupported(f"environment.arguments make it {env.unwrapped.num_envs} environments an instance; physx_cpu takes one, and "
                              "environment.sim_backend physx_cuda all rows: leave num_envs out")
        gc.collect()
        gc.freeze()  # a reset that reconfigures collects garbage: two thirds of its time, else
        return env

    @property
    def together(self):
        return self.options["sim_backend"] != "physx_cpu"

    def own_limit(self, env):
        from mani_skill.utils import gym_utils

        return gym_utils.find_max_episode_steps_value(env)

    def spaces(self, env):
        return env.unwrapped.single_observation_space, env.unwrapped.single_action_space

    def instruction(self):
        return MANISKILL_INSTRUCTIONS.get(self.name, super().instruction())

    def reset(self, env, seed, training):
        # Contacts survive a plain reset: only one that builds the scene anew depends on the seed alone.
        pure = not (training and self.options["fast_reset"])
        return env.reset(seed=seed, options={"reconfigure": True} if pure else {})

    def expert(self, env, index=0):
        base = env.unwrapped
        if self.name == "PushCube-v1" and base.control_mode == "pd_ee_delta_pos":
            tool, cube = (array(part.pose.p)[index] for part in (base.agent.tcp, base.obj))
            behind = cube + np.array([-0.08, 0, 0])
            aim = np.zeros(4, dtype=np.float32)
            if abs(tool[1] - cube[1]) > 0.01 or tool[0] > cube[0] - 0.03 or tool[2] > 0.06:
                if tool[0] > cube[0] - 0.05 and tool[2] < 0.08:
                    behind[2] = 0.12  # over it
                aim[:3] = np.clip((behind - tool) / 0.1, -1, 1)
            else:
                aim[:3] = np.clip([0.5, (cube[1] - tool[1]) / 0.1, (cube[2] - tool[2]) / 0.1], -1, 1)
            aim[3] = -1
            return aim
        action = super().expert(env, index)
        return action.reshape(self.rows, -1)[index] if self.together else action

    def render(self, env):
        picture = super().render(env)
        return picture[0] if len(picture.shape) == 4 else picture


# ---- Rows -------------------------------------------------------------------------------------------------------
class Row:
    """One row: an environment of each task that it has played."""

    def __init__(self, batch):
        self.batch, self.made, self.task = batch, {}, 0
        self.over, self.solved, self.steps, self.gained, self.seen = 0, False, 0, 0.0, None

    def env(self, task):
        if task not in self.made:
            self.made[task] = self.batch.first.pop(task) if task in self.batch.first else self.batch.tasks[task].make()
        return self.made[task]

    def drop(self):
        """After an exception: what it left behind is not to be trusted."""
        env = self.made.pop(self.task, None)
        try:
            if env is not None:
                env.close()
        except Exception:
            pass

    def reset(self, seed, case, training):
        if case >= 0:
            raise ValueError(f"there is no case {case}: this environment enumerates none")
        self.task = self.batch.task_of(seed)
        # Gymnasium and ManiSkill take seeds below 2^31 everywhere.
        self.begin(*self.batch.tasks[self.task].reset(self.env(self.task), seed % (2**31 - 1), training))

    def begin(self, seen, info):
        self.over, self.solved, self.steps, self.gained, self.seen = 0, solved_by(info), 0, 0.0, seen

    def step(self, floats, sane):
        """One control step of a row that is not over. Its reward. `sane`: its numbers are known to be finite."""
        if not (sane or np.isfinite(floats).all()):
            raise ValueError(f"its action at control step {self.steps} is not a finite number; did training diverge?")
        made = self.batch.tasks[self.task].step(self.env(self.task), self.batch.taken.value(floats))
        self.note(*made)
        return made[1]

    def note(self, seen, reward, terminated, truncated, solved):
        batch = self.batch
        self.seen = seen
        self.steps += 1
        self.gained += reward
        self.solved = solved or 0 < batch.success_return <= self.gained
        if terminated or self.solved:
            self.over = 1
        elif truncated or self.steps >= batch.horizon:
            self.over = 2


def on_host(value):
    """Tensors as arrays: of all rows at once, from wherever they lie."""
    if isinstance(value, dict):
        return {key: on_host(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(map(on_host, value))
    return array(value)


def row_of(seen, index):
    if isinstance(seen, dict):
        return {key: row_of(value, index) for key, value in seen.items()}
    if isinstance(seen, tuple):
        return tuple(row_of(value, index) for value in seen)
    return np.array(seen[index])


class Vector:
    """A vector environment of the user's: all rows of this worker, stepped together. Rows whose episode is over, or that were not asked
    for, idle along, whatever its autoreset mode makes of that; they count again after their next reset. Only DISABLED can begin some of
    them and go on with the others."""

    expert = False

    def __init__(self, batch, env):
        self.batch, self.env = batch, env
        if len(batch.tasks) != 1 or kind_of(batch.taken.space) in ("Dict", "Tuple"):
            raise Unsupported("a vector environment has one task, and actions in a Box, Discrete, MultiDiscrete or MultiBinary")
        self.ended, self.begun, self.mode = np.zeros(len(batch.rows), bool), False, self.mode_of(env)

    def mode_of(self, env):
        if env.num_envs != len(self.batch.rows):
            raise Unsupported(f"the factory made {env.num_envs} environments, and a worker has {len(self.batch.rows)} rows: it must take num_envs")
        mode = getattr(env, "metadata", {}).get("autoreset_mode")
        mode = getattr(mode, "name", str(mode)).upper()
        if mode not in ("NEXT_STEP", "SAME_STEP", "DISABLED"):
            raise Unsupported("a vector environment must say in its metadata what its autoreset_mode is: NEXT_STEP, SAME_STEP or DISABLED")
        return mode

    def reset(self, rows, seeds):
        everybody = self.batch.rows
        chosen = {row: int(seed) % (2**31 - 1) for row, seed in zip(rows, seeds)}
        anew = self.env is None
        if anew:
            self.env = self.batch.tasks[0].make()
        if not self.begun or anew or self.mode != "DISABLED" or len(chosen) == len(everybody):
            for row in everybody:  # all of them begin; of those that were not asked for nothing is known any more
                row.seen = None
            self.ended[:] = False
            seen, info = self.env.reset(seed=[chosen.get(index, 0) for index in range(len(everybody))])
        else:
            mask = np.array([index in chosen for index in range(len(everybody))])
            seen, info = self.env.reset(seed=[chosen.get(index) for index in range(len(everybody))], options={"reset_mask": mask})
        self.begun = True
        self.begin(chosen, seen, info)

    def begin(self, rows, seen, info):
        seen, info = on_host(seen), self.facts(info)
        for index in rows:
            self.ended[index] = False
            self.batch.rows[index].begin(row_of(seen, index), row_of(info, index))

    @staticmethod
    def facts(info):
        return {key: array(info[key]) for key in ("success", "is_success") if key in info}

    def advance(self, actions):
        return self.env.step(actions)

    def step(self, rows, floats):
        """One control step, [own rows, A]. Of those of `rows` that have an episode whether they made it, what they gained, and how they
        are over."""
        everybody = self.batch.rows
        known = [index for index in rows if everybody[index].seen is not None]
        running = {index for index in known if not everybody[index].over}
        if not running:
            return {index: (False, 0.0, everybody[index].over) for index in known}
        if self.env is None:
            raise Unsupported("it was closed after an exception; a reset makes it anew")
        for index, row in enumerate(everybody):  # left behind
            if index not in running and not row.over:
                row.seen = None
        if not np.isfinite(floats[sorted(running)]).all():
            raise ValueError("an action is not a finite number; did training diverge?")
        if self.mode == "DISABLED" and self.ended.any():  # it steps none that have ended: these begin again, for nobody
            self.env.reset(options={"reset_mask": self.ended})
        actions = np.stack([np.asarray(self.batch.taken.value(floats[index] if index in running else np.zeros_like(floats[index])))
                            for index in range(len(everybody))])
        seen, reward, terminated, truncated, info = self.advance(actions)
        seen, reward, terminated, truncated, facts = (*map(on_host, (seen, reward, terminated, truncated)), self.facts(info))
        self.ended = np.logical_or(terminated, truncated)
        for index in running:
            own, fact = row_of(seen, index), row_of(facts, index)
            if self.mode == "SAME_STEP" and self.ended[index]:
                own, fact = info["final_obs"][index], row_of(self.facts(info["final_info"]), index)
            everybody[index].note(own, float(reward[index]), bool(terminated[index]), bool(truncated[index]), solved_by(fact))
        return {index: (index in running, float(reward[index]) if index in running else 0.0, everybody[index].over) for index in known}

    def drop(self):
        gc.unfreeze()  # what it was made of is to go, before another one is made
        try:
            self.env.close()
        except Exception:
            pass
        self.env = None
        gc.collect()
        for row in self.batch.rows:
            row.seen = None


class Instance(Vector):
    """ManiSkill's on a GPU: its tensors stay there, and what they show crosses once a step for all rows. It resets none by itself."""

    expert = True
    overflow = re.compile(r"buffer overflow|overflowing initial|stack overflow|PxGpuDynamicsMemoryConfig|increase (its|the) (size|.*capacity)",
                          re.IGNORECASE)

    def mode_of(self, env):
        return "NONE"

    def reset(self, rows, seeds):
        """One row a call: it seeds what it draws for several by the first one's seed, and an episode is to be of its own seed alone. It
        would also make generators for all rows in each call, and show them all: this one's are enough, and the last call's."""
        import torch

        with self.watched():
            if self.env is None:
                self.env = self.batch.tasks[0].make()
            base = self.env.unwrapped

            def seeded(seed, rows):
                base._episode_seed = np.full(base.num_envs, seed[0], np.int64)
                base._batched_episode_rng[rows.cpu().numpy()] = type(base._batched_episode_rng).from_seeds(seed[:1], backend=base._batched_rng_backend)
                base._episode_rng = base._batched_episode_rng[int(rows[0])]

            instead = {"_set_main_rng": lambda seed: None, "_set_episode_rng": seeded, "get_obs": lambda *_, **__: None}
            for name, function in instead.items():
                setattr(base, name, function)
            try:
                for index, (row, seed) in enumerate(zip(rows, seeds)):
                    if index + 1 == len(rows):
                        del base.get_obs
                    seen, info = self.env.reset(seed=[int(seed) % (2**31 - 1)] * base.num_envs,
                                                options={"env_idx": torch.tensor([row], device=base.device)})
            finally:
                for name in instead:
                    vars(base).pop(name, None)
        self.begin(rows, seen, info)

    def advance(self, actions):
        with self.watched():
            return self.env.step(actions)

    @contextlib.contextmanager
    def watched(self):
        """PhysX on a GPU only logs that its buffers are full, and goes on without the contacts that do not fit."""
        with tempfile.TemporaryFile() as said:
            kept = os.dup(1), os.dup(2)
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                yield
            finally:
                for own, descriptor in zip(kept, (1, 2)):
                    os.dup2(own, descriptor)
                    os.close(own)
                said.seek(0)
                text = said.read().decode("utf-8", "replace")
                os.write(2, text.encode())
        full = next((line for line in text.splitlines() if self.overflow.search(line)), None)
        if full:
            raise Unsupported(f"PhysX's buffers are too small for {len(self.batch.rows)} environments, and contacts are missing: "
                              f"{' '.join(full.split())[:500]}; raise the one it names in environment.arguments, as "
                              '{"sim_config": {"gpu_memory_config": {"max_rigid_contact_count": 1048576}}}')


class Batch:
    """The rows of this worker, one environment each."""

    def __init__(self, options, first, count):
        self.options, self.success_return = options, options.get("success_return", 0)
        kind = {"gymnasium": GymnasiumTask, "maniskill": ManiSkillTask}[options["kind"]]
        self.tasks = [kind(name, options, count) for name in options["tasks"]]
        self.first = {index: task.make() for index, task in enumerate(self.tasks)}  # row 0's
        self.horizon = max(task.horizon(self.first[index]) for index, task in enumerate(self.tasks))
        spaces = [task.spaces(self.first[index]) for index, task in enumerate(self.tasks)]
        self.shown = [Shown(space, kind.skipped, kind.camera_name) for space, _ in spaces]
        takes = [Taken(space) for _, space in spaces]
        self.taken = takes[0]
        for name, other, shown in zip(options["tasks"], takes, self.shown):
            if (other.categories, other.bounds) != (takes[0].categories, takes[0].bounds):
                raise Unsupported(f"{name} takes other actions than {options['tasks'][0]}: tasks of one run take the same ones")
            if [camera[1:] for camera in shown.cameras] != [camera[1:] for camera in self.shown[0].cameras]:
                raise Unsupported(f"{name} has other cameras than {options['tasks'][0]}: tasks of one run have the same ones")
            if shown.cameras and shown.width != self.shown[0].width:
                raise Unsupported(f"{name} shows {shown.width} numbers beside its cameras, and {options['tasks'][0]} {self.shown[0].width}: "
                                  "tasks with cameras must show as many")
        self.widest = max(shown.width for shown in self.shown)
        self.masked = any(shown.width != self.widest for shown in self.shown)  # as many ones and zeros behind the numbers
        self.width = self.widest * (2 if self.masked else 1)
        self.rows = [Row(self) for _ in range(count)]
        self.vector = None
        if kind is ManiSkillTask and self.tasks[0].together:
            self.vector = Instance(self, self.first.pop(0))
        elif kind is GymnasiumTask and is_vector(self.first[0]):
            self.vector = Vector(self, self.first.pop(0))
        self.scales = [self.measured(index) for index in range(len(self.tasks))] if options["normalise_steps"] else None
        weights = options["weights"] or [1.0] * len(self.tasks)
        self.shares = [weight / sum(weights) for weight in weights]

    def spec(self):
        instructions = [task.instruction() for task in self.tasks]
        if self.options["instruction"]:
            if len(self.tasks) > 1:
                raise Unsupported("environment.instruction is one, and there are several tasks: leave it empty, each has its own")
            instructions = [self.options["instruction"]]
        if len(set(instructions)) < len(instructions):
            instructions = [task.name for task in self.tasks]
        cameras = [{"name": name, "height": height, "width": width, "device": "cpu"} for _, name, height, width in self.shown[0].cameras]
        return {
            "observation": {"cameras": cameras, "proprioception": self.width, "instructions": instructions, "proprioception_device": "cpu"},
            "action": {"dimensions": len(self.taken.categories), "categories": self.taken.categories, "bounds": self.taken.bounds},
            "horizon": self.horizon, "cases": 0,
        }

    def measured(self, index):
        """Mean and spread of a task's numbers under random actions: the same in every worker, since seeds are."""
        row, draws, shown = self.rows[0] if self.vector else Row(self), np.random.RandomState(index), []
        row.task, task, env = index, self.tasks[index], self.first.get(index)
        for number in range(self.options["normalise_steps"]):
            fresh, seed = row.over or row.seen is None, 2**31 - 2 - number
            floats = np.array([draws.randint(n) if n else draws.uniform(bound["low"], bound["high"])
                               for n, bound in zip(self.taken.categories, self.taken.bounds)], np.float32)
            if self.vector:
                if fresh:
                    self.vector.reset([0], [seed])
                self.vector.step([0], np.repeat(floats[None], len(self.rows), axis=0))
            else:
                if fresh:
                    row.begin(*task.reset(env, seed, False))
                row.note(*task.step(env, self.taken.value(floats)))
            numbers = np.zeros(self.shown[index].width, np.float32)
            self.shown[index].write(row.seen, numbers, [np.zeros((height, width, 3), np.uint8) for _, _, height, width in self.shown[index].cameras])
            shown.append(numbers)
        shown = np.array(shown, np.float64)
        row.seen = None
        if not np.isfinite(shown).all():
            raise Unsupported(f"{task.name} shows numbers that are not finite while environment.normalise_steps measures them")
        spread = shown.std(axis=0)
        return shown.mean(axis=0), np.where(spread > 1e-6, spread, 1.0)

    def task_of(self, seed):
        if len(self.tasks) == 1:
            return 0
        draw = random.Random(seed ^ 0x7A5C).random()  # of the seed alone: a group plays one task
        for index, share in enumerate(self.shares):
            draw -= share
            if draw < 0:
                return index
        return len(self.tasks) - 1

    def show(self, row, numbers, frames):
        shown = self.shown[row.task]
        if self.masked:
            numbers[:] = 0
            numbers[self.widest:self.widest + shown.width] = 1
        shown.write(row.seen, numbers, frames)
        if self.scales and shown.width:
            mean, spread = self.scales[row.task]
            numbers[:shown.width] = np.clip((numbers[:shown.width] - mean) / spread, -5, 5)


# ---- The conversation -------------------------------------------------------------------------------------------
class Worker:
    """Does what it is told."""

    encode = json.JSONEncoder(allow_nan=False).encode

    def __init__(self, pool, start, batch):
        self.pool, self.batch, self.first, self.interrupted = pool, batch, start["first"], False
        self.views = {}

    def view(self, offset, dtype, *extents):
        """[own rows, *extents] of the field whose row 0 lies at `offset`."""
        key = (offset, dtype, extents)
        found = self.views.get(key)
        if found is None:
            if len(self.views) > 4096:
                self.views.clear()
            row = int(np.prod(extents, dtype=np.int64))
            count = row * len(self.batch.rows)
            found = np.frombuffer(self.pool, dtype, count, offset + self.first * row * np.dtype(dtype).itemsize)
            self.views[key] = found = found.reshape((len(self.batch.rows),) + extents)
        return found

    def perform(self, command):
        kind, failed, made, solved, expert = command["kind"], [], 0, [], []
        batch, chunk = self.batch, command["chunk"]
        numbers = self.view(command["proprioception"], np.float32, batch.width) if command["proprioception"] >= 0 else None
        instruction = self.view(command["instruction"], np.int32) if command["instruction"] >= 0 else None
        frames = [self.view(offset, np.uint8, height, width, 3)
                  for offset, (_, _, height, width) in zip(command["frames"], batch.shown[0].cameras)] if kind != "render" else []
        if kind == "step":
            action = self.view(command["action"], np.float32, chunk, len(batch.taken.categories))
            reward, terminated, truncated = (self.view(command[name], dtype, chunk) for name, dtype in (
                ("reward", np.float32), ("terminated", np.uint8), ("truncated", np.uint8)))
            sane = np.isfinite(action).all()  # of all rows: asked once, not of each
        together = []  # what a vector environment has done with all of them at once
        if batch.vector and kind in ("reset", "step"):
            own = [number - self.first for number in command["rows"]]
            try:
                if kind == "reset":
                    batch.vector.reset(own, command["seeds"])
                else:
                    together = [batch.vector.step(own, action[:, c]) for c in range(chunk)]
            except (Exception, KeyboardInterrupt) as error:
                batch.vector.drop()
                return {"call": command["call"], "made": 0, "solved": [], "action": [],
                        "failed": [{"row": number, "why": self.why(error, index)} for index, number in enumerate(command["rows"])]}
        for index, number in enumerate(command["rows"]):
            at_row = number - self.first
            row = batch.rows[at_row]
            try:
                if kind == "reset":
                    if not batch.vector:
                        row.reset(command["seeds"][index], command["cases"][index], command["training"])
                elif kind == "step":
                    for c in range(chunk):
                        if batch.vector and at_row not in together[c]:
                            raise Unsupported("its vector environment has gone on without it: all rows of a worker are begun, and asked for, together")
                        if batch.vector:
                            steps, gain, over = together[c][at_row]
                        else:
                            steps = not row.over
                            gain = row.step(action[at_row, c], sane) if steps else 0.0
                            over = row.over
                        made += steps
                        reward[at_row, c] = gain
                        terminated[at_row, c] = over == 1
                        truncated[at_row, c] = over == 2
                elif batch.vector and not (kind == "expert" and batch.vector.expert):
                    raise Unsupported("a vector environment has neither an expert nor pictures")
                elif kind == "expert":
                    task = batch.tasks[row.task]
                    if batch.vector and batch.vector.env is None:
                        raise Unsupported("it was closed after an exception; a reset makes it anew")
                    action = task.expert(batch.vector.env, at_row) if batch.vector else task.expert(row.env(row.task))
                    expert = [float(each) for each in action]
                    if not np.isfinite(expert).all():
                        raise ValueError("its expert's action is not finite")
                    continue
                else:
                    self.draw(batch.tasks[row.task].render(row.env(row.task)), command)
                    continue
                instruction[at_row] = row.task
                batch.show(row, numbers[at_row] if numbers is not None else None, [frame[at_row] for frame in frames])
                if row.solved:
                    solved.append(number)
            except (Exception, KeyboardInterrupt) as error:
                failed.append({"row": number, "why": self.why(error, len(failed))})
                if kind in ("reset", "step"):
                    row.drop()
        return {"call": command["call"], "made": made, "solved": solved, "action": expert, "failed": failed}

    def why(self, error, before):
        """Shorter after the first few: an answer is a message of bounded size."""
        self.interrupted |= isinstance(error, KeyboardInterrupt)
        return (str(error) if isinstance(error, Unsupported) else described(error))[:4000 if before < 20 else 20]

    def draw(self, picture, command):
        """The nearest pixels, [height, width, 3]."""
        height, width = command["height"], command["width"]
        target = np.frombuffer(self.pool, np.uint8, height * width * 3, command["frames"][0]).reshape(height, width, 3)
        down = np.arange(height) * picture.shape[0] // height
        across = np.arange(width) * picture.shape[1] // width
        target[:] = picture[down][:, across, :3]

    def answer(self, text):
        self.interrupted = False  # by Ctrl-C, or what counts as one
        return self.encode({**self.perform(json.loads(text)), "interrupted": self.interrupted}).encode()


def understood(options):
    """Knobs as they are, but for texts that are lists or JSON."""
    text = options["arguments"]
    try:
        options["arguments"] = json.loads(text or "{}")
    except ValueError:
        options["arguments"] = None
    if not isinstance(options["arguments"], dict):
        raise Unsupported(f"environment.arguments is '{text[:80]}'; it must be a JSON object, as " '{"frame_skip": 4}')
    name = options.get("task") or options.get("id") or options["factory"]
    options["tasks"] = [each.strip() for each in name.split(",")]
    try:
        options["weights"] = [float(each) for each in options["task_weights"].split(",") if each.strip()]
    except ValueError:
        options["weights"] = [-1.0]
    weights = options["weights"]
    if weights and (len(weights) != len(options["tasks"]) or min(weights) < 0 or not 0 < sum(weights) < float("inf")):
        raise Unsupported(f"environment.task_weights is '{options['task_weights']}'; it must be a number for each of {', '.join(options['tasks'])}, "
                          "none below 0 and one above")
    return options


def settled():
    """What scripts/setup found that the simulator needs: before it is imported."""
    settings = os.path.join(sys.prefix, "dvla-environment.json")
    if os.path.exists(settings):
        with open(settings) as file:
            for name, value in json.load(file).items():
                os.environ.setdefault(name, value.replace("{prefix}", sys.prefix))


def begun(start, options, pool, first=lambda: None):
    """The answer to an ApartStart, and the worker, if there is one."""
    global np
    ready, worker = {"call": start["call"], "spec": None, "same": "", "error": "", "interrupted": False}, None
    try:
        first()
        import numpy

        np = numpy
        batch = Batch(understood(options), start["first"], start["rows"])
        ready["spec"] = batch.spec()
        ready["same"] = hashlib.sha256(repr([[each.tolist() for each in scale] for scale in batch.scales or []]).encode()).hexdigest()
        worker = Worker(pool, start, batch)
    except Unsupported as error:
        ready["error"] = str(error)
    except (Exception, KeyboardInterrupt) as error:
        ready["error"], ready["interrupted"] = described(error), isinstance(error, KeyboardInterrupt)
    if len(json.dumps(ready)) > 200_000:
        ready["spec"], ready["error"] = None, "what it says of itself is longer than 200,000 bytes: its actions have too many dimensions"
    return json.dumps(ready).encode(), None if ready["error"] else worker


class Embedded:
    """In the trainer's process, whose memory `pool` is."""

    def __init__(self, told, pool):
        self.options, self.pool, self.worker = json.loads(told), pool, None
        sys.stdout = sys.stderr  # as of a worker
        if "" not in sys.path:
            sys.path.insert(0, "")
        settled()

    @staticmethod
    def same_libraries():
        """Two of a kind in one process break each other: asked before anything imports them."""
        with open("/proc/self/maps") as maps:
            paths = ["/" + line.rstrip().partition("/")[2] for line in maps]
        for module, folder, library in (("torch", "lib", "libtorch_cpu.so"), ("mujoco", "", "libmujoco.so")):
            ours = next((path for path in paths if os.path.basename(path).startswith(library)), None)
            found = importlib.util.find_spec(module) if ours else None
            if not found or not found.origin:
                continue
            theirs = os.path.join(os.path.dirname(found.origin), folder)
            if os.path.realpath(theirs) != os.path.realpath(os.path.dirname(ours)):
                raise Unsupported(f"environment.embedded is true, and {sys.executable} has its own {module} (in {theirs}), while this program runs on "
                                  f"{ours}: one process can have one; configure the program with -DDVLA_{module.upper()}_ROOT="
                                  f"{os.path.dirname(found.origin)}, or let the environments run in workers (embedded false)")

    def answer(self, text):
        try:
            if self.worker:
                return self.worker.answer(text)
            ready, self.worker = begun(json.loads(text), self.options, self.pool, self.same_libraries)
            return ready
        except BaseException as error:  # SystemExit, say: it ends no program
            raise RuntimeError(described(error)) from None

    def close(self):
        """A process's end does that for a worker."""
        if self.worker:
            for row in self.worker.batch.rows:
                for row.task in list(row.made):
                    row.drop()
            if self.worker.batch.vector:
                self.worker.batch.vector.drop()
        self.worker = None
        gc.unfreeze()


def main():
    settled()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # a worker is one core
    connection = socket.socket(fileno=3)
    for descriptor in (3, 4, 5):
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    start = json.loads(connection.recv(1 << 20))
    with open("/proc/self/comm", "w") as name:  # what ps and top show
        name.write("dvla-worker")
    ready, worker = begun(start, json.loads(sys.argv[1]), mmap.mmap(4, start["pool_bytes"]))
    try:
        connection.send(ready)
        while worker and (text := connection.recv(1 << 20)):  # none: the batch is gone
            connection.send(worker.answer(text))
    except (BrokenPipeError, ConnectionResetError):
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing here is worth a simulator's exit handlers


if __name__ == "__main__":
    main()
# )python"
