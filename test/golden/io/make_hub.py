#!/usr/bin/env python3
"""Makes the folder hub/ of test/io/test_safetensors_index.cpp: weights in three files and an index, as the Hugging Face
hub has them, the files by its own writer: pip install safetensors==0.5.3. Run it in this folder: ./make_hub.py"""
import json
import struct

from safetensors import serialize_file

shards = [  # name, dtype, shape, bytes
    [("embed.weight", "float32", [4, 3], struct.pack("<12f", *(i / 8 for i in range(12))))],
    [("blocks.0.weight", "bfloat16", [2, 2], b"\x80\x3f\x20\xc0\x20\x3e\x00\x00"),  # 1, -2.5, 0.15625, 0
     ("blocks.0.bias", "float16", [3], struct.pack("<3e", 0.5, 65504.0, -(2**-24)))],  # the last is denormal
    [("blocks.1.weight", "float32", [3, 3], struct.pack("<9f", *(-i for i in range(9)))),
     ("head.steps", "int64", [2], struct.pack("<2q", -7, 2**40))],
]
where, total = {}, 0
for number, shard in enumerate(shards, 1):
    file = f"model-{number:05}-of-{len(shards):05}.safetensors"
    serialize_file({name: {"dtype": dtype, "shape": shape, "data": data} for name, dtype, shape, data in shard},
                   "hub/" + file, metadata={"format": "pt"})
    where |= {name: file for name, *_ in shard}
    total += sum(len(data) for *_, data in shard)
with open("hub/model.safetensors.index.json", "w") as index:
    index.write(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, sort_keys=True) + "\n")
