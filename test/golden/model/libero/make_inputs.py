#!/usr/bin/env python3
"""Makes inputs.safetensors, for test/model/test_libero_inputs.cpp: what the references' own code makes of LIBERO's observation before their
networks, and of their networks' actions behind them. Beside it: statistics as each reference's files have them, small, and not the published
ones. A run adds what its first word names, and leaves the rest of the file as it is:

  .venv-parity/bin/python make_inputs.py lerobot                      lerobot 0.6.1: its LIBERO processor, SmolVLA's and pi0.5's processors
  .venv-parity/bin/python make_inputs.py openpi CHECKOUT PACKAGES     github.com/Physical-Intelligence/openpi at 15a9616: config pi05_libero
  .venv-parity/bin/python make_inputs.py oft CHECKOUT PACKAGES        github.com/moojink/openvla-oft at 213c5ff: run_libero_eval.py
  .venv-parity/bin/python make_inputs.py rlinf CHECKOUT OFT           github.com/RLinf/RLinf at a3816b5: its OpenVLA-OFT's processor

PACKAGES is a folder of pip install --target, of what each asks for beside .venv-parity: openpi jax 0.5.3, flax 0.10.2, jaxtyping 0.2.36,
beartype 0.19.0, orbax-checkpoint 0.11.13, ml_dtypes 0.4.1, ml_collections, chex, toolz, equinox, augmax, optax, tyro, numpydantic;
openvla-oft tensorflow-cpu 2.21 and json_numpy.

The observations are two of the records in test/golden/environment/libero, the last frames of spatial_0_walk and object_0_basket as the
original's environment gives them, row 0 the lowest, each pixel twice in both directions: 256 a side, as evaluations have. Tokenisers are
the small ones of ../tokenizers, through the libraries that the references call.

Tensors, by <reference>.: `pixel.<view>` F32 [2, 250, channels], what the network is given at the pixels number (7919 i + 13) mod side^2, and
`mean.<view>` F64 [2, channels], over all of them; `token` I64 [2, L] and `valid` U8 [2, L]; `state` F64 [2, 8 or 32]; `model` F32 [n, 7 or
32], what a network might give, and `action` F64 [n, 7], what env.step is given for it. And `eef_pos`, `eef_quat`, `gripper_qpos` F64, of the records."""
import importlib.machinery
import json
import pathlib
import struct
import sys
import types

import numpy as np

here = pathlib.Path(__file__).resolve().parent
ROWS = ("spatial_0_walk", "object_0_basket")
CAMERAS = ("agentview", "robot0_eye_in_hand")
KINDS = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "<u1"}


def read(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    words = header.pop("__metadata__", {})
    return {name: np.frombuffer(raw[8 + length:][slice(*each["data_offsets"])], KINDS[each["dtype"]]).reshape(each["shape"])
            for name, each in header.items()}, words


def write(path, tensors):
    header, data = {}, b""
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):  # so that each is aligned
        value = np.ascontiguousarray(tensors[name])
        kind = next(kind for kind, form in KINDS.items() if np.dtype(form) == value.dtype)
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def observation(row):
    """As env.step of the original gives it, and the task's words."""
    tensors, words = read(here.parents[1] / f"environment/libero/{ROWS[row]}.safetensors")
    step = tensors["image_step"][-1]
    seen = {f"robot0_{name}": tensors[f"observed.{name}"][step].copy() for name in ("eef_pos", "eef_quat", "gripper_qpos")}
    for camera in CAMERAS:
        seen[f"{camera}_image"] = tensors[f"image.{camera}"][-1].repeat(2, 0).repeat(2, 1)
    return seen, json.loads(words["record"])["name"].replace("_", " ")


def sampled(out, view, pictures):
    """pictures: [rows, channels, side, side]."""
    pictures = np.asarray(pictures)
    side = pictures.shape[-1]
    flat = pictures.reshape(*pictures.shape[:2], side * side)
    out[f"pixel.{view}"] = flat[:, :, (7919 * np.arange(250) + 13) % side**2].transpose(0, 2, 1).astype("<f4")
    out[f"mean.{view}"] = flat.astype(np.float64).mean(2)


def outputs(dimensions):
    """[6, dimensions], some beyond [-1, 1], and the last but one in the middle of the gripper's range."""
    model = np.random.default_rng(5).uniform(-2.6, 2.6, (6, dimensions)).astype("<f4")
    model[4, 6] = 0.5
    return model


STATE = {"mean": [-0.0453, 0.0357, 0.7663, 2.9718, -0.1371, -0.1196, 0.0273, -0.0273], "std": [0.1043, 0.1477, 0.3756, 0.3448, 0.9049, 0.3299, 0.0139, 0.0139],
         "q01": [-0.4002, -0.2985, 0.0088, 1.5018, -2.7132, -1.1463, 0.0013, -0.0401], "q99": [0.1343, 0.3379, 1.2609, 3.2846, 2.3742, 0.5569, 0.0401, -0.0013]}
ACTION = {"mean": [0.0628, 0.0869, -0.0903, 0.0005, 0.0056, -0.0052, -0.0497], "std": [0.3355, 0.3783, 0.4447, 0.0392, 0.0634, 0.0780, 0.9988],
          "q01": [-0.7466, -0.6583, -0.9375, -0.1071, -0.2067, -0.1842, -1.0], "q99": [0.9375, 0.8759, 0.9321, 0.1039, 0.1767, 0.1457, 1.0]}


def lerobot():
    import sentencepiece
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.envs.utils import preprocess_observation
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Policy
    from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
    from lerobot.processor import LiberoProcessorStep, tokenizer_processor
    from transformers import PreTrainedTokenizerFast

    class PaliGemmaWords:
        """SentencePiece's library as Transformers would call it."""

        def __init__(self):
            self.library = sentencepiece.SentencePieceProcessor(model_file=str(here.parent / "tokenizers/paligemma.model"))

        def __call__(self, texts, max_length, **_):
            rows = [self.library.encode(text, add_bos=True) for text in texts]
            return {"input_ids": torch.tensor([row + [0] * (max_length - len(row)) for row in rows]),
                    "attention_mask": torch.tensor([[1] * len(row) + [0] * (max_length - len(row)) for row in rows])}

    words = {"google/paligemma-3b-pt-224": PaliGemmaWords(),
             SmolVLAConfig().vlm_model_name: PreTrainedTokenizerFast(tokenizer_file=str(here.parent / "tokenizers/tokenizer.json"),
                                                                     pad_token="<|endoftext|>")}
    tokenizer_processor.AutoTokenizer = types.SimpleNamespace(from_pretrained=words.__getitem__)
    both = [observation(row) for row in range(2)]
    stacked = {key: np.stack([seen[key] for seen, _ in both]) for key in both[0][0]}
    # envs/libero.py: _format_raw_obs, of a vector of two; lerobot_eval.py puts the same steps around the policy.
    seen = preprocess_observation({
        "pixels": {"image": stacked["agentview_image"], "image2": stacked["robot0_eye_in_hand_image"]},
        "robot_state": {"eef": {"pos": stacked["robot0_eef_pos"], "quat": stacked["robot0_eef_quat"]}, "gripper": {"qpos": stacked["robot0_gripper_qpos"]}}})
    seen = LiberoProcessorStep().observation(seen)
    features = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for name in ("image", "image2")}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    statistics = {"observation.state": {key: torch.tensor(value) for key, value in STATE.items()},
                  "action": {key: torch.tensor(value) for key, value in ACTION.items()}}
    made = {}
    for name, Config, make in (("smolvla", SmolVLAConfig, make_smolvla_pre_post_processors), ("pi05", PI05Config, make_pi05_pre_post_processors)):
        config = Config(device="cpu", input_features=features, output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))})
        before, behind = make(config, statistics)
        before.save_pretrained(here / f"lerobot_{name}")
        batch = before({**seen, "task": [task for _, task in both]})
        policy = types.SimpleNamespace(config=config, parameters=lambda: iter([torch.zeros(1)]))
        out = {}
        if name == "smolvla":
            pictures, masks = SmolVLAPolicy.prepare_images(policy, batch)
            out["state"] = SmolVLAPolicy.prepare_state(policy, batch).double().numpy()
        else:
            pictures, masks = PI05Policy._preprocess_images(policy, batch)
            out["state"] = batch["observation.state"].double().numpy()
        assert all(mask.all() for mask in masks)
        for view, picture in enumerate(pictures):
            sampled(out, view, picture)
        out["token"] = batch["observation.language.tokens"].numpy().astype("<i8")
        out["valid"] = batch["observation.language.attention_mask"].numpy().astype("<u1")
        out["model"] = outputs(config.max_action_dim)
        out["action"] = behind(torch.from_numpy(out["model"][:, :7])).double().numpy()
        made |= {f"lerobot_{name}.{key}": value for key, value in out.items()}
    return made | {name: stacked[f"robot0_{name}"] for name in ("eef_pos", "eef_quat", "gripper_qpos")}


def openpi(checkout, packages):
    sys.path[:0] = [packages, f"{checkout}/src", f"{checkout}/packages/openpi-client/src", str(pathlib.Path(sys.prefix) / "openpi")]
    for name in ("imageio", "libero"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["libero"].libero = sys.modules["libero.libero"] = types.SimpleNamespace(benchmark=None, get_libero_path=None)
    sys.modules["libero.libero.envs"] = types.SimpleNamespace(OffScreenRenderEnv=None)
    sys.path.append(f"{checkout}/examples/libero")
    import main as evaluation
    from openpi import transforms
    from openpi.models import model as models
    from openpi.models import tokenizer
    from openpi.shared import normalize
    from openpi.training import config as configs
    from openpi_client import image_tools

    tokenizer.download.maybe_download = lambda *_, **__: here.parent / "tokenizers/paligemma.model"
    config = configs.get_config("pi05_libero")
    folder = here / "openpi/assets" / config.data.repo_id
    normalize.save(folder, {"state": normalize.NormStats(**{key: np.array(value) for key, value in STATE.items()}),
                            "actions": normalize.NormStats(**{key: np.array(value) for key, value in ACTION.items()})})
    statistics = normalize.load(folder)
    data = config.data.create(pathlib.Path("/nowhere"), config.model)
    # policies/policy_config.py:create_trained_policy
    into = transforms.compose([*data.data_transforms.inputs, transforms.Normalize(statistics, use_quantiles=data.use_quantile_norm),
                               *data.model_transforms.inputs])
    back = transforms.compose([*data.model_transforms.outputs, transforms.Unnormalize(statistics, use_quantiles=data.use_quantile_norm),
                               *data.data_transforms.outputs])
    out, rows = {}, []
    for row in range(2):
        seen, task = observation(row)
        # examples/libero/main.py:118 to 148
        img = np.ascontiguousarray(seen["agentview_image"][::-1, ::-1])
        wrist_img = np.ascontiguousarray(seen["robot0_eye_in_hand_image"][::-1, ::-1])
        size = evaluation.Args().resize_size
        element = {
            "observation/image": image_tools.convert_to_uint8(image_tools.resize_with_pad(img, size, size)),
            "observation/wrist_image": image_tools.convert_to_uint8(image_tools.resize_with_pad(wrist_img, size, size)),
            "observation/state": np.concatenate((seen["robot0_eef_pos"], evaluation._quat2axisangle(seen["robot0_eef_quat"]), seen["robot0_gripper_qpos"])),
            "prompt": str(task)}
        rows.append(into(element))
    batch = {"image": {name: np.stack([row["image"][name] for row in rows]) for name in rows[0]["image"]},
             "image_mask": {name: np.stack([row["image_mask"][name] for row in rows]) for name in rows[0]["image_mask"]},
             **{name: np.stack([row[name] for row in rows]) for name in ("state", "tokenized_prompt", "tokenized_prompt_mask")}}
    assert {name: bool(mask.all()) for name, mask in batch["image_mask"].items()} == {
        "base_0_rgb": True, "left_wrist_0_rgb": True, "right_wrist_0_rgb": False}
    given = models.Observation.from_dict(batch)  # bytes become [-1, 1]
    for view, name in enumerate(("base_0_rgb", "left_wrist_0_rgb")):
        sampled(out, view, np.asarray(given.images[name]).transpose(0, 3, 1, 2))
    out["token"], out["valid"] = np.asarray(batch["tokenized_prompt"]).astype("<i8"), np.asarray(batch["tokenized_prompt_mask"]).astype("<u1")
    out["state"] = np.asarray(batch["state"]).astype("<f8")
    out["model"] = outputs(config.model.action_dim)
    out["action"] = back({"state": np.zeros(32), "actions": out["model"].astype(np.float64)})["actions"]
    return {f"openpi.{key}": value for key, value in out.items()}


def llama():
    from transformers import LlamaTokenizer
    words = LlamaTokenizer(vocab_file=str(here.parent / "tokenizers/llama.model"), legacy=True, padding_side="left", pad_token="<unk>")
    return words, words.convert_tokens_to_ids("▁")


TOWERS = dict(use_fused_vision_backbone=True, image_resize_strategy="resize-naive", input_sizes=[(3, 224, 224)] * 2,
              interpolations=["bicubic"] * 2, means=[(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)], stds=[(0.229, 0.224, 0.225), (0.5, 0.5, 0.5)])


def oft(checkout, packages):
    sys.path[:0] = [packages]
    import tensorflow  # before torch, whose NumPy is older
    sys.path[:0] = [checkout, str(pathlib.Path(sys.prefix) / "openpi")]
    sys.argv[1:] = ["libero"]  # prismatic/vla/constants.py chooses by it
    for name in ("prismatic", "prismatic.extern", "prismatic.extern.hf", "prismatic.vla", "prismatic.vla.datasets", "prismatic.vla.datasets.rlds",
                 "prismatic.vla.datasets.rlds.utils", "prismatic.models", "prismatic.training"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(pathlib.Path(checkout) / name.replace(".", "/"))]
    for name in ("imageio", "libero", "wandb", "dlimp", "diffusers", "diffusers.schedulers", "prismatic.overwatch"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules["libero"].libero = sys.modules["libero.libero"] = types.SimpleNamespace(benchmark=None, get_libero_path=None)
    sys.modules["libero.libero.envs"] = types.SimpleNamespace(OffScreenRenderEnv=None)
    sys.modules["diffusers.schedulers.scheduling_ddim"] = types.SimpleNamespace(DDIMScheduler=None)
    sys.modules["prismatic.overwatch"].initialize_overwatch = lambda _: None
    sys.modules["dlimp"].DLataset = None
    import torch
    from experiments.robot.libero import run_libero_eval as evaluation
    from experiments.robot import openvla_utils
    from prismatic.extern.hf.modeling_prismatic import OpenVLAForActionPrediction as Model
    from prismatic.extern.hf.processing_prismatic import PrismaticImageProcessor, PrismaticProcessor

    gripper = {"q01": [*ACTION["q01"][:6], 0.0], "q99": [*ACTION["q99"][:6], 1.0]}  # RLDS has it in [0, 1], 1 open
    statistics = {f"libero_{suite}_no_noops": {
        "action": {"mean": ACTION["mean"], "std": ACTION["std"], "min": gripper["q01"], "max": gripper["q99"], **gripper, "mask": [True] * 6 + [False]},
        "proprio": {**STATE, "min": STATE["q01"], "max": STATE["q99"]}, "num_transitions": 52970, "num_trajectories": 432} for suite in ("spatial", "10")}
    (here / "oft").mkdir(exist_ok=True)
    (here / "oft/dataset_statistics.json").write_text(json.dumps(statistics) + "\n")
    cfg = evaluation.GenerateConfig(task_suite_name="libero_spatial")
    vla = types.SimpleNamespace(norm_stats=statistics, _check_unnorm_key=Model._check_unnorm_key)
    vla.get_action_stats = lambda key: Model.get_action_stats(vla, key)
    evaluation.check_unnorm_key(cfg, vla)
    assert cfg.unnorm_key == "libero_spatial_no_noops"
    words, blank = llama()
    processor = PrismaticProcessor(PrismaticImageProcessor(**TOWERS), words)
    out, tokens, pictures, states = {}, [], [], []
    for row in range(2):
        seen, task = observation(row)
        given, _ = evaluation.prepare_observation(seen, 224)
        # openvla_utils.py:742 to 776
        images = openvla_utils.prepare_images_for_vla([given["full_image"], given["wrist_image"]], cfg)
        prompt = f"In: What action should the robot take to {task.lower()}?\nOut:"
        inputs = [processor(prompt, image) for image in images]
        pictures.append(torch.cat([each["pixel_values"] for each in inputs], dim=1).numpy())
        ids = inputs[0]["input_ids"][0].tolist()
        tokens.append(ids if ids[-1] == blank else ids + [blank])  # modeling_prismatic.py:972, where it is 29871
        states.append(openvla_utils.normalize_proprio(given["state"], statistics[cfg.unnorm_key]["proprio"]))
    for view in range(2):
        sampled(out, view, np.concatenate(pictures)[:, 6 * view:6 * view + 6])
    length = max(len(each) for each in tokens)
    out["token"] = np.array([each + [0] * (length - len(each)) for each in tokens], "<i8")
    out["valid"] = np.array([[1] * len(each) + [0] * (length - len(each)) for each in tokens], "<u1")
    out["state"] = np.stack(states)
    out["model"] = outputs(7)
    actions = Model._unnormalize_actions(vla, out["model"].astype(np.float64), cfg.unnorm_key)
    out["action"] = np.stack([evaluation.process_action(each, "openvla") for each in actions])
    return {f"oft.{key}": value for key, value in out.items()}


def rlinf(checkout, openvla_oft):
    sys.path[:0] = [str(pathlib.Path(sys.prefix) / "openpi")]
    for name in ("prismatic", "prismatic.extern", "prismatic.extern.hf"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(pathlib.Path(openvla_oft) / name.replace(".", "/"))]
    for name in ("rlinf", "rlinf.models", "rlinf.models.embodiment", "rlinf.models.embodiment.prismatic", "rlinf.envs", "rlinf.envs.libero", "rlinf.utils"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(pathlib.Path(checkout) / name.replace(".", "/"))]
    import torch
    for name in ("libero", "libero.libero"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["libero.libero.benchmark"] = types.SimpleNamespace(Benchmark=None)
    sys.modules["libero.libero"].benchmark = sys.modules["libero.libero.benchmark"]
    sys.modules["rlinf.utils.logging"] = types.SimpleNamespace(get_logger=lambda: None)
    from rlinf.envs.libero import utils
    from rlinf.models.embodiment.prismatic.processing_prismatic import MultiInputPrismaticProcessor, PrismaticImageProcessor

    words, blank = llama()
    processor = MultiInputPrismaticProcessor(PrismaticImageProcessor(**TOWERS), words)
    both = [observation(row) for row in range(2)]
    main = torch.stack([torch.from_numpy(utils.get_libero_image(seen).copy()) for seen, _ in both])[:, None].permute(0, 1, 4, 2, 3)
    texts = [f"In: What action should the robot take to {task.lower()}?\nOut: " for _, task in both]
    inputs = processor(text=texts, images={"images": main}, proprio_states=None, padding="longest", max_length=None)
    out = {}
    sampled(out, 0, inputs["pixel_values"][:, 0].numpy())
    out["token"], out["valid"] = inputs["input_ids"].numpy().astype("<i8"), inputs["attention_mask"].numpy().astype("<u1")
    assert (out["token"][:, -1] == blank).all()
    return {f"rlinf.{key}": value for key, value in out.items()}


def main():
    name, *rest = sys.argv[1:]
    made = {"lerobot": lerobot, "openpi": openpi, "oft": oft, "rlinf": rlinf}[name](*rest)
    path = here / "inputs.safetensors"
    kept = read(path)[0] if path.exists() else {}
    write(path, {**{key: value for key, value in kept.items() if not key.startswith(name)}, **made})
    print(f"{name}: {len(made)} tensors; {path.stat().st_size} bytes in all")


if __name__ == "__main__":
    main()
