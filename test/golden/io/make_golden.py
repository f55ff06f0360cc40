#!/usr/bin/env python3
"""Makes the golden file of test/io/test_safetensors.cpp with nothing but struct and json, so that it owes nothing to
the C++ writer. Run it in this folder: ./make_golden.py"""
import json
import struct

tensors = [  # name, dtype, shape, bytes
    ("weight", "F32", [2, 3], struct.pack("<6f", 0.0, 1.5, -2.25, 1e-30, 3.0e38, -0.0)),
    ("double", "F64", [2], struct.pack("<2d", 3.141592653589793, -1e300)),
    ("counter", "I64", [], struct.pack("<q", -(2**62))),
    ("rng", "U64", [2], struct.pack("<2Q", 2**64 - 1, 12345)),
    ("half", "F16", [2], struct.pack("<2e", 1.0, -0.5)),
    ("brain", "BF16", [2], b"\x80\x3f\x00\xc0"),  # 1.0, -2.0
    ("int32", "I32", [1], struct.pack("<i", -7)),
    ("uint32", "U32", [1], struct.pack("<I", 4000000000)),
    ("int16", "I16", [2], struct.pack("<2h", -300, 300)),
    ("uint16", "U16", [1], struct.pack("<H", 65535)),
    ("int8", "I8", [3], struct.pack("<3b", -128, 0, 127)),
    ("frame", "U8", [1, 2, 2], bytes([0, 1, 254, 255])),
    ("mask", "BOOL", [3], bytes([1, 0, 1])),
    ("nothing", "F32", [0, 4], b""),
    ("n\u00e4me/with \"quotes\"", "U8", [1], b"\x2a"),
]
size = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
tensors.sort(key=lambda t: -size.get(t[1], 1))
header, data = {"__metadata__": {"format": "pt", "note": "line\nbreak"}}, b""
for name, dtype, shape, raw in tensors:
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
with open("golden.safetensors", "wb") as out:
    out.write(struct.pack("<Q", len(text)) + text + data)
