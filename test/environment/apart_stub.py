#!/usr/bin/env python3
"""A worker of dvla's ApartBatch (environment/apart.hpp) without a simulator: what test_apart.cpp starts.

A row shows [target, steps / horizon], a camera of one colour and an instruction, all from its seed (or case). An action within
0.3 of the target solves it. With --fault KIND the worker of row --row misbehaves in that row's --step'th step (0: in its reset),
once if --once names a file that is not there yet. With --slow a worker that starts after that takes so long. Standard library only.
"""
import argparse
import json
import mmap
import os
import random
import signal
import socket
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--fault", default="none")
parser.add_argument("--row", type=int, default=0)
parser.add_argument("--step", type=int, default=1)
parser.add_argument("--once", default="")
parser.add_argument("--slow", type=float, default=0)
parser.add_argument("--horizon", type=int, default=6)
parser.add_argument("--camera", action="store_true")
parser.add_argument("--refuse", default="")
options = parser.parse_args()

if options.slow and os.path.exists(options.once):
    time.sleep(options.slow)
conn = socket.socket(fileno=3)


def receive():
    text = conn.recv(1 << 20)
    if not text:
        sys.exit(0)  # the batch is gone
    return json.loads(text)


def answer(call, made=0, solved=(), failed=(), action=()):
    conn.send(json.dumps({"call": call, "made": made, "solved": list(solved), "action": list(action),
                          "failed": [{"row": row, "why": why} for row, why in failed], "interrupted": False}).encode())


def misbehave(kind, call):
    """True: the row is to fail alone."""
    if options.once:
        try:
            os.close(os.open(options.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
    if kind == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:  # a child of its own, which would keep the socket open
            time.sleep(1000)
        time.sleep(1000)
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(3)
    if kind == "garbage":
        conn.send(b"Traceback (most recent call last):")
        time.sleep(1000)
    if kind == "other call":
        answer(call - 1)
        time.sleep(1000)
    if kind == "flood":
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        conn.send(b"x" * 300000)
        time.sleep(1000)
    return kind == "row"


start = receive()
pool = memoryview(mmap.mmap(4, start["pool_bytes"]))
cameras = [{"name": "top", "height": 2, "width": 3, "device": "cpu"}] if options.camera else []
spec, rows = {"observation": {"cameras": cameras, "proprioception": 2, "instructions": ["go left", "go right"],
                              "proprioception_device": "cpu"},
              "action": {"dimensions": 1, "categories": [], "bounds": []}, "horizon": options.horizon, "cases": 0}, {}
if options.refuse == "differ":  # worker by worker
    spec["horizon"] += start["first"]
conn.send(json.dumps({"call": start["call"], "spec": None if options.refuse == "start" else spec, "same": "",
                      "error": "there is no robot" if options.refuse == "start" else "", "interrupted": False}).encode())


def floats(offset, first, count):
    return pool[offset + 4 * first:offset + 4 * (first + count)].cast("f")


def show(command, index):
    row = rows[index]
    for offset, camera in zip(command["frames"], cameras):
        size = camera["height"] * camera["width"] * 3
        pool[offset + index * size:offset + (index + 1) * size] = bytes([row["colour"]]) * size
    if command["proprioception"] >= 0:
        shown = floats(command["proprioception"], index * 2, 2)
        shown[0], shown[1] = row["target"], row["steps"] / spec["horizon"]
    pool[command["instruction"] + 4 * index:command["instruction"] + 4 * index + 4].cast("i")[0] = row["colour"] % 2


while True:
    command = receive()
    call, kind, chunk, made, failed = command["call"], command["kind"], command["chunk"], 0, []
    if kind in ("expert", "render"):
        row, size = rows[command["rows"][0]], 3 * command["height"] * command["width"]
        if kind == "render":
            pool[command["frames"][0]:command["frames"][0] + size] = bytes([row["colour"]]) * size
        failing = [(command["rows"][0], "it has no hands")] if options.refuse == kind else []
        answer(call, action=[row["target"]] if kind == "expert" else [], failed=failing)
        continue
    for i, index in enumerate(command["rows"]):
        if kind == "reset":
            case = command["cases"][i]
            draw = random.Random(command["seeds"][i] if case < 0 else -1 - case)
            rows[index] = {"target": draw.uniform(-1, 1), "colour": draw.randrange(256), "steps": 0, "over": 0, "solved": False}
        row = rows[index]
        last = row["steps"] + chunk
        if options.fault != "none" and index == options.row and row["steps"] <= options.step <= last and (
                kind == "reset") == (options.step == 0) and not row["over"] and misbehave(options.fault, call):
            failed.append((index, "the gripper fell off"))
            continue
        for c in range(chunk):
            reward = 0.0
            if not row["over"]:
                made += 1
                row["steps"] += 1
                action = floats(command["action"], (index * chunk + c) * spec["action"]["dimensions"], 1)
                row["solved"] = abs(action[0] - row["target"]) < 0.3
                row["over"] = 1 if row["solved"] else 2 if row["steps"] >= spec["horizon"] else 0
                reward = float(row["solved"])
            floats(command["reward"], index * chunk + c, 1)[0] = reward
            pool[command["terminated"] + index * chunk + c] = row["over"] == 1
            pool[command["truncated"] + index * chunk + c] = row["over"] == 2
        show(command, index)
    answer(call, made, [index for index in command["rows"] if rows[index]["solved"]], failed)
