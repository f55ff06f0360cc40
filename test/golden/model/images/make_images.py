#!/usr/bin/env python3
"""Makes pictures.safetensors, for test/model/test_images.cpp: frames of several sizes as the references show them to their models, 224 pixels
a side. It adds what the Python that runs it has the packages for, and leaves the rest of the file as it is:

  .venv-parity/bin/python make_images.py       lerobot, smolvla (lerobot's own functions), openpi (PIL), rlinf (torchvision)
  a Python with tensorflow-cpu, make_images.py     authors (TensorFlow's operators, as openvla-oft's experiments/robot/openvla_utils.py calls them)

A tensor `way.kind.HxW` is U16 [150, 3]: channels in [0, 1], times 65535, of the pixels number (7919 i + 13) mod 224^2, row by row."""
import json
import math
import os
import struct

import numpy as np

SIDE, COUNT = 224, 150
SIZES = [(48, 64), (64, 48), (128, 128), (224, 224), (480, 640)]
PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pictures.safetensors")


def frame(kind, h, w):
    y, x, c = np.indices((h, w, 3), dtype=np.uint64)
    if kind == "gradient":
        values = np.select([c == 0, c == 1], [x * 255 // (w - 1), y * 255 // (h - 1)], (x + y) * 255 // (w + h - 2))
    elif kind == "noise":
        values = ((x * 73856093 ^ y * 19349663 ^ c * 83492791) * 2654435761 % 2**32) >> 24
    else:  # edges
        values = (x // 5 + y // 7 + c) % 2 * 255
    return values.astype(np.uint8)


def ways():
    """Name and function from [H, W, 3] uint8 to [SIDE, SIDE, 3] in [0, 1]."""
    try:
        import torch
        import torchvision.transforms.functional as tvf
        from lerobot.policies.common.vla_utils import resize_with_pad_torch
        from lerobot.policies.smolvla.modeling_smolvla import resize_with_pad
        from PIL import Image

        def floats(f):
            return torch.from_numpy(f.copy()).permute(2, 0, 1)[None].float() / 255

        def back(x):
            return x[0].permute(1, 2, 0).double().numpy()

        def openpi(f):  # openpi_client/image_tools.py: PIL makes it smaller, and black is put around it
            h, w, _ = f.shape
            ratio = max(w / SIDE, h / SIDE)
            small = np.asarray(Image.fromarray(f).resize((int(w / ratio), int(h / ratio)), Image.BILINEAR))
            out = np.zeros((SIDE, SIDE, 3), np.uint8)
            top, left = (SIDE - small.shape[0]) // 2, (SIDE - small.shape[1]) // 2
            out[top:top + small.shape[0], left:left + small.shape[1]] = small
            return out / 255

        def rlinf(f):  # prismatic/processing_prismatic.py
            x = torch.from_numpy(f.copy()).permute(2, 0, 1)
            return back(tvf.resize(x, [SIDE, SIDE], interpolation=tvf.InterpolationMode.BICUBIC, antialias=True)[None]) / 255

        yield "lerobot", lambda f: back(resize_with_pad_torch(floats(f), SIDE, SIDE))
        yield "smolvla", lambda f: back(resize_with_pad(floats(f), SIDE, SIDE, pad_value=0))
        yield "openpi", openpi
        yield "rlinf", rlinf
    except ImportError as missing:
        print(f"without lerobot, smolvla, openpi, rlinf: {missing}")
    try:
        import tensorflow as tf

        def authors(f):
            x = tf.io.decode_image(tf.image.encode_jpeg(f), expand_animations=False, dtype=tf.uint8)
            x = tf.image.resize(x, (SIDE, SIDE), method="lanczos3", antialias=True)
            x = tf.image.convert_image_dtype(tf.cast(tf.clip_by_value(tf.round(x), 0, 255), tf.uint8), tf.float32)
            share = math.sqrt(0.9)
            low = (1 - share) / 2
            x = tf.image.crop_and_resize(x[None], [[low, low, low + share, low + share]], [0], (SIDE, SIDE))[0]
            x = tf.image.convert_image_dtype(tf.clip_by_value(x, 0, 1), tf.uint8, saturate=True)
            return x.numpy() / 255

        yield "authors", authors
    except ImportError as missing:
        print(f"without authors: {missing}")


def read(path):
    if not os.path.exists(path):
        return {}
    raw = open(path, "rb").read()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    return {name: raw[8 + length:][slice(*entry["data_offsets"])] for name, entry in header.items()}


def main():
    tensors = read(PATH)
    at = (7919 * np.arange(COUNT) + 13) % SIDE**2
    for way, compute in ways():
        for kind in ("gradient", "noise", "edges"):
            for h, w in SIZES:
                values = compute(frame(kind, h, w))
                assert values.shape == (SIDE, SIDE, 3) and values.min() >= 0 and values.max() <= 1
                tensors[f"{way}.{kind}.{h}x{w}"] = np.rint(values.reshape(-1, 3)[at] * 65535).astype("<u2").tobytes()
        print(way)
    header, data = {}, b""
    for name in sorted(tensors):
        header[name] = {"dtype": "U16", "shape": [COUNT, 3], "data_offsets": [len(data), len(data) + len(tensors[name])]}
        data += tensors[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(PATH, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text + data)


if __name__ == "__main__":
    main()
