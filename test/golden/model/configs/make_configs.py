#!/usr/bin/env python3
"""config.json of pi0.5 and SmolVLA as lerobot 0.6.1 writes them with a checkpoint: their classes' defaults, one camera, a state of 8
numbers and actions of 7.

Run: .venv-parity/bin/python make_configs.py   (rewrites pi05.json and smolvla.json beside this file)"""
import pathlib
import tempfile

from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

for name, Config in (("pi05", PI05Config), ("smolvla", SmolVLAConfig)):
    config = Config(
        device="cpu",
        input_features={"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
                        "observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))})
    with tempfile.TemporaryDirectory() as folder:
        config._save_pretrained(pathlib.Path(folder))
        text = (pathlib.Path(folder) / "config.json").read_text()
    (pathlib.Path(__file__).parent / f"{name}.json").write_text(text + ("" if text.endswith("\n") else "\n"))
