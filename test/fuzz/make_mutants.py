#!/usr/bin/env python3
"""Mutants of small safetensors files, and what Python's `safetensors` (Rust, by Hugging Face) says of each. Needs that package and
nothing else; .venv-parity has it.

  make_mutants.py FILE [--count 500] [--seed 1]     writes them: test/golden/io/mutants.bin is of these defaults
  make_mutants.py --run PROGRAM [--count 10000]     writes others to a temporary file and has test_fuzz_safetensors judge them

A record, little-endian: a number (32 bits), 0 where the reference refuses the file, else a hash of what it reads (FNV-1a of each tensor
by name: name, 0, type, 0, extents with commas, 0, data; lowest bit set); the file's length (32 bits); the file."""
import argparse
import json
import os
import random
import struct
import sys
import tempfile

NUMBERS = ["0", "1", "2", "3", "4", "8", "12", "255", "-0", "-1", "-4", "0.0", "1.0", "4.5", "1e1", "4E0", "01", "+1", "0x4", "1e400", "NaN",
           "2147483648", "4294967296", "4611686018427387904", "9223372036854775807", "9223372036854775808", "18446744073709551612",
           "18446744073709551615", "18446744073709551616", "1" + "0" * 40, '"4"', "null", "true", "[]", "[4]", "{}"]
TYPES = ["F64", "I64", "U64", "F32", "I32", "U32", "F16", "BF16", "I16", "U16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4",
         "F6_E2M3", "F6_E3M2", "C64", "f32", "F128", "", "F32 "]
NAMES = ["a", "b", "c", "", "__metadata__", "__METADATA__", "dtype", "\u00e4\u6f22", "x" * 40, "a\\u0000", "\\u0061", "\\ud83d\\ude00", "\\ud800",
         "\\udc00x", "\\x", "a\tb", "\u007f", "weight.0/1"]
SPACES = ["", " ", "  ", "\n", "\t", "\r\n", "\f", "\u00a0", "\ufeff", "\0", "/**/", "//\n"]


def quoted(text):
    return '"' + text + '"'


def entry(dtype, shape, begin, end):
    return [["dtype", quoted(dtype)], ["shape", [str(s) for s in shape]], ["data_offsets", [str(begin), str(end)]]]


def bases():
    """(header, data): the header as pairs of a key and a value, which is JSON text, a list of texts, or pairs again."""
    yield [], b""
    yield [["w", entry("F32", [2], 0, 8)]], bytes(range(8))
    yield [["a", entry("U8", [1, 3], 0, 3)], ["b", entry("BOOL", [], 3, 4)]], b"abc\1"
    yield [["__metadata__", [["format", quoted("pt")]]], ["w", entry("I16", [2, 1], 0, 4)], ["v", entry("BF16", [0, 7], 4, 4)]], b"1234"
    yield [["c", entry("I64", [1], 4, 12)], ["a", entry("F16", [2], 0, 4)], ["b", entry("I8", [4], 12, 16)]], bytes(range(16))


def text_of(value, r, loose):
    """JSON; where `loose`, with a blank or something like it here and there."""
    gap = lambda: r.choice(SPACES) if loose and r.random() < 0.06 else ""
    if isinstance(value, str):
        return value
    pairs = all(isinstance(each, list) for each in value)
    inner = [quoted(each[0]) + gap() + ":" + gap() + text_of(each[1], r, loose) if pairs else each for each in value]
    return ("{" if pairs else "[") + ("," + gap()).join(inner) + gap() + ("}" if pairs else "]")


def mutate_header(header, r):
    tensors = [pair for pair in header if isinstance(pair[1], list) and pair[0] != "__metadata__"]
    tensor = r.choice(tensors)[1] if tensors else None
    field = {pair[0]: pair for pair in tensor if isinstance(pair, list)} if tensor else {}
    kind = r.randrange(16)
    if kind == 0 and header:  # a name
        r.choice(header)[0] = r.choice(NAMES)
    elif kind == 1 and header:  # twice
        header.append([header[0][0], json.loads(json.dumps(r.choice(header)[1]))])
    elif kind == 2:  # the same tensors in another order
        r.shuffle(header)
    elif kind == 3:
        header.insert(r.randrange(len(header) + 1), ["__metadata__", r.choice([
            [], [["k", quoted("v")]], [["k", quoted("v")], ["k", quoted("w")]], [["k", "1"]], [["k", "null"]], "null", "1", quoted("k"), ["1"]])])
    elif kind == 4 and header:
        header.pop(r.randrange(len(header)))
    elif kind == 5 and header:
        r.choice(header)[1] = r.choice(["null", "1", "[]", "{}", quoted("F32"), '["F32",[1],[0,4]]', '["U8",[1],[0,1]]'])
    elif kind == 6:
        header.append([r.choice(NAMES), entry(r.choice(TYPES), [r.choice([0, 0, 1, 2])], r.choice([0, 4, 8]), r.choice([0, 4, 8]))])
    elif tensor and kind in (7, 8) and isinstance(field.get("data_offsets", [0, 0])[1], list):
        offsets = field["data_offsets"][1] if "data_offsets" in field else []
        change = r.randrange(4)
        if change == 0 and offsets:
            offsets[r.randrange(len(offsets))] = r.choice(NUMBERS)
        elif change == 1:
            offsets.reverse()
        elif change == 2:
            offsets.append("0")
        elif offsets and offsets[0].isdigit():  # overlaps and holes
            by = r.choice([-4, -1, 1, 4])
            offsets[:] = [str(max(0, int(o) + by)) if o.isdigit() and len(o) < 10 else o for o in offsets]
    elif tensor and kind in (9, 10) and isinstance(field.get("shape", [0, 0])[1], list):
        shape = field["shape"][1] if "shape" in field else []
        change = r.randrange(4)
        if change == 0 and shape:
            shape[r.randrange(len(shape))] = r.choice(NUMBERS)
        elif change == 1 and shape:
            shape.pop()
        elif change == 2:
            shape.insert(r.randrange(len(shape) + 1), r.choice(["1", "1", "0"]))
        else:
            shape.insert(r.randrange(len(shape) + 1), r.choice(NUMBERS))
    elif tensor and kind == 11 and "dtype" in field:
        field["dtype"][1] = r.choice([quoted(r.choice(TYPES)), quoted(r.choice(TYPES)), "null", "1", '["F32"]', '{"F32":null}', quoted("F\\u00332")])
    elif tensor and kind == 12:  # a field more, twice, or gone
        change = r.randrange(4)
        if change == 0:
            tensor.append([r.choice(["more", "Shape", ""]), r.choice(["1", "null", "[[[[]]]]", '{"a":{"b":{}}}'])])
        elif change == 1:
            tensor.append(list(r.choice(tensor)))
        elif change == 2 and tensor:
            tensor.pop(r.randrange(len(tensor)))
        else:
            r.shuffle(tensor)
    elif tensor and kind == 13 and field:
        r.choice(list(field.values()))[1] = r.choice(NUMBERS + [quoted("x")])


def mutate_bytes(data, r):
    data = bytearray(data)
    at = r.randrange(len(data) + 1)
    kind = r.randrange(5)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << r.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = r.randrange(256)
    elif kind == 2:
        del data[at:at + r.randrange(1, 4)]
    elif kind == 3:
        data[at:at] = r.choice([b"}", b"{", b"]", b",", b'"', b"\\", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\0", b" ", b"0", b"-"])
    else:
        del data[at:]
    return bytes(data)


def mutant(r):
    header, data = r.choice(list(bases()))
    header = json.loads(json.dumps(header))
    for _ in range(r.choice([0, 1, 1, 1, 2, 2, 3])):
        mutate_header(header, r)
    text = text_of(header, r, r.random() < 0.3).encode("utf-8", "surrogatepass") if header else b"{}"
    text = r.choice(["", "", "", "", "", " ", "\n", "\ufeff"]).encode() * (r.random() < 0.2) + text + b" " * r.choice([0, 0, 0, 1, 7])
    if r.random() < 0.2:
        text = mutate_bytes(text, r)
    if r.random() < 0.1:
        data = r.choice([data + b"\0", data[:-1], b""])
    length = len(text)
    if r.random() < 0.05:
        length = r.choice([0, 1, length - 1, length + 1, length + len(data), length + len(data) + 1, 100_000_000, 100_000_001, 1 << 32, (1 << 64) - 1])
    file = struct.pack("<Q", max(0, length)) + text + data
    return mutate_bytes(file, r) if r.random() < 0.08 else file


def digest(tensors):
    h = 2166136261
    for name, tensor in sorted(tensors, key=lambda each: each[0].encode()):
        extents = ",".join(str(extent) for extent in tensor["shape"])
        for byte in f"{name}\0{tensor['dtype']}\0{extents}\0".encode() + bytes(tensor["data"]):
            h = (h ^ byte) * 16777619 % 2**32
    return h | 1


def verdict(file):
    import safetensors
    try:
        return digest(safetensors.deserialize(file))
    except safetensors.SafetensorError:
        return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?")
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", metavar="PROGRAM")
    a = parser.parse_args()
    if (a.file is None) == (a.run is None):
        parser.error("give a file to write, or --run PROGRAM")
    try:
        import safetensors
    except ImportError:
        print("skipped: this Python has no safetensors (scripts/setup parity)")
        return 77
    r = random.Random(a.seed)
    files = [mutant(r) for _ in range(a.count or (10000 if a.run else 500))]
    verdicts = [verdict(file) for file in files]
    print(f"safetensors {safetensors.__version__} reads {sum(v != 0 for v in verdicts)} of {len(files)} mutants")
    records = b"".join(struct.pack("<II", v, len(file)) + file for v, file in zip(verdicts, files))
    if a.file:
        with open(a.file, "wb") as out:
            out.write(records)
        return 0
    with tempfile.NamedTemporaryFile(suffix=".bin") as out:
        out.write(records)
        out.flush()
        return os.spawnve(os.P_WAIT, a.run, [a.run, "-tc=*Python*"], dict(os.environ, DVLA_MUTANTS=out.name))


if __name__ == "__main__":
    sys.exit(main())
