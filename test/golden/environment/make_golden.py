#!/usr/bin/env python3
"""Golden numbers for dvla's adapters: NumPy, written after the code that the checkpoints' authors run, not after the C++.

Run: python3 make_golden.py   (rewrites dataset_statistics.json, norm_stats.json, lerobot/ and golden.json beside this file; seeded)
OpenVLA-OFT: prismatic/extern/hf/modeling_prismatic.py:_unnormalize_actions, experiments/robot/openvla_utils.py:normalize_proprio,
experiments/robot/robot_utils.py:normalize_gripper_action and invert_gripper_action. openpi: transforms.py:Normalize, Unnormalize.
lerobot 0.6.1: processor/normalize_processor.py:_apply_transform, its files as processor/pipeline.py:save_pretrained lays them out.
"""
import json
import pathlib
import struct

import numpy as np

rng = np.random.default_rng(20261129)
here = pathlib.Path(__file__).parent


def statistics(n):
    low, high = np.sort(rng.normal(size=(2, n)), axis=0)
    q01, q99 = low + 0.1 * (high - low), high - 0.1 * (high - low)
    return {"mean": (q01 + q99) / 2, "std": (q99 - q01) / 3, "min": low, "max": high, "q01": q01, "q99": q99}


def lists(stats):
    return {k: v.tolist() for k, v in stats.items()}


def openvla_action(x, s, form):
    mask = np.array(s["mask"])
    low, high = (s["q01"], s["q99"]) if form == "quantiles" else (s["min"], s["max"])
    if form == "mean_std":
        return np.where(mask, x * (s["std"] + 1e-8) + s["mean"], x)
    return np.where(mask, 0.5 * (x + 1) * (high - low + 1e-8) + low, x)


def openvla_state(x, s, form):
    low, high = (s["q01"], s["q99"]) if form == "quantiles" else (s["min"], s["max"])
    if form == "mean_std":
        return np.clip((x - s["mean"]) / (s["std"] + 1e-8), -1, 1)
    return np.clip(2 * (x - low) / (high - low + 1e-8) - 1, -1, 1)


def libero_gripper(action, binary):
    action = action.copy()
    action[..., -1] = 2 * action[..., -1] - 1
    if binary:
        action[..., -1] = np.sign(action[..., -1])
    action[..., -1] *= -1.0
    return action


def openpi_action(x, s, form):
    if form == "quantiles":
        return (x + 1.0) / 2.0 * (s["q99"] - s["q01"] + 1e-6) + s["q01"]
    return x * (s["std"] + 1e-6) + s["mean"]


def openpi_state(x, s, form):
    if form == "quantiles":
        return (x - s["q01"]) / (s["q99"] - s["q01"] + 1e-6) * 2.0 - 1.0
    return (x - s["mean"]) / (s["std"] + 1e-6)


def lerobot_action(x, s, form):
    if form == "mean_std":
        return x * s["std"] + s["mean"]
    low, high = (s["q01"], s["q99"]) if form == "quantiles" else (s["min"], s["max"])
    return (x + 1) * (high - low) / 2 + low


def lerobot_state(x, s, form):
    if form == "mean_std":
        return (x - s["mean"]) / (s["std"] + 1e-8)
    low, high = (s["q01"], s["q99"]) if form == "quantiles" else (s["min"], s["max"])
    return 2 * (x - low) / (high - low) - 1


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += values.astype("<f4").tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


A, P = 7, 8
oft_action, oft_state = statistics(A), statistics(P)
mask = [True] * 6 + [False]
other = statistics(3)
pi_action, pi_state = statistics(A), statistics(P)
for stats in (pi_action, pi_state):
    del stats["min"], stats["max"]

(here / "dataset_statistics.json").write_text(json.dumps({
    "libero_spatial_no_noops": {"action": {**lists(oft_action), "mask": mask}, "proprio": lists(oft_state),
                                "num_transitions": 52970, "num_trajectories": 432},
    "another": {"action": lists(other), "proprio": lists(other)}}, indent=1) + "\n")
(here / "norm_stats.json").write_text(
    json.dumps({"norm_stats": {"state": lists(pi_state), "actions": lists(pi_action)}}, indent=1) + "\n")

model = rng.uniform(-1, 1, size=(6, A)).astype(np.float32).astype(np.float64)
model[:, -1] = np.abs(model[:, -1])  # OFT's gripper lies in [0, 1]
model[0, -1] = 0.5  # on the edge
state = rng.normal(size=(6, P)).astype(np.float32).astype(np.float64)
oft_action["mask"] = mask
order = [1, 0, 2, 5, 4, 3, 6]
signs = np.array([1, -1, 1, -1, 1, 1, -1])
cases = []
for form in ("quantiles", "min_max", "mean_std"):
    for gripper in ("unit", "binary"):
        action = libero_gripper(openvla_action(model, oft_action, form), gripper == "binary")
        cases.append({"file": "dataset_statistics.json", "key": "libero_spatial_no_noops", "form": form, "gripper": gripper,
                      "order": "0,1,2,3,4,5,-6", "action": action, "state": openvla_state(state, oft_state, form)})
    if form != "min_max":
        cases.append({"file": "norm_stats.json", "key": "", "form": form, "gripper": "as_is", "order": "",
                      "action": openpi_action(model, pi_action, form), "state": openpi_state(state, pi_state, form)})
        cases.append({"file": "norm_stats.json", "key": "", "form": form, "gripper": "as_is", "order": "1,-0,2,-5,4,3,-6",
                      "action": openpi_action(model, pi_action, form)[:, order] * signs,
                      "state": openpi_state(state, pi_state, form)})
single = lambda stats: {k: v.astype(np.float32).astype(np.float64) for k, v in stats.items()}  # as the file has them
le_action, le_state = single(statistics(A)), single(statistics(P))
folder = here / "lerobot"
folder.mkdir(exist_ok=True)
state_file = "policy_preprocessor_step_3_normalizer_processor.safetensors"
features = {"observation.state": {"type": "STATE", "shape": [P]}, "action": {"type": "ACTION", "shape": [A]}}
(folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": [
    {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
    {"registry_name": "normalizer_processor", "state_file": state_file, "config": {
        "eps": 1e-08, "features": features, "norm_map": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "QUANTILES"}}}]},
    indent=1) + "\n")
write_safetensors(folder / state_file, {f"{name}.{k}": v for name, stats in (("action", le_action), ("observation.state", le_state))
                                        for k, v in stats.items()})
for form in ("stored", "min_max", "mean_std"):
    of_action, of_state = ("quantiles", "mean_std") if form == "stored" else (form, form)
    cases.append({"file": "lerobot", "key": "", "form": form, "gripper": "as_is", "order": "",
                  "action": lerobot_action(model, le_action, of_action), "state": lerobot_state(state, le_state, of_state)})

for case in cases:
    case["bounded"] = np.clip(case["action"], -0.75, 0.5)  # what an environment of these bounds is given
    for name in ("action", "bounded", "state"):
        case[name] = [[float(f"{x:.12g}") for x in row] for row in case[name]]
(here / "golden.json").write_text(json.dumps({"model": model.tolist(), "state": state.tolist(), "cases": cases}) + "\n")
