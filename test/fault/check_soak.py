"""check_soak.py PROGRAM [--seconds N] [--seed N]: a job of soak_job.cpp, one actor and three rollouts, under seeded faults, one after
the other, each with its end:
kill    SIGKILL of a rollout
stop    SIGSTOP of a rollout until the leader says that it is gone
pause   SIGSTOP of a rollout for less than two heartbeats
usr1    SIGUSR1 to a rollout
nan     a row of a rollout's environment gives NaN
slow    a step takes a second and a half
throw   a step throws
hang    a step does not come back
full    the disk of the leader's run folder is full until it has said so of a checkpoint and of TensorBoard's events
clock   one process's wall clock steps by hours or days, for good
and the leader's standard output, a pipe, is closed in the midst. The faults come as from shuffled decks of all kinds, until N seconds
have passed and the first deck is through. DVLA_SOAK_SECONDS: the default of N, 3600. The short form is --seconds 0: each kind once.

What must hold: each fault has happened and had its end, after which all rollouts begin new batches; all episodes are accounted for; a
full disk costs the run nothing but warnings and the checkpoints of that time; what the leader has in memory and open is in the second
half what it was in the first, but for the history of its batches. No time is asserted: limits are there for what hangs.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "distributed"))
from check_faults import counts_sent  # noqa: E402
from check_job import Fault, environment, free_port, require  # noqa: E402

WORLD, EPISODES = 4, 48
HEARTBEAT = 3.0  # as in soak_job.cpp; a pause leaves most of one to a busy machine
LIMIT = 240  # seconds that the end of a fault may take, which only one that hangs does
KINDS = ("kill", "stop", "pause", "usr1", "nan", "slow", "throw", "hang", "full", "clock")
NO_CHECKPOINT, NO_EVENTS = "warning: no checkpoint after batch", "warning: TensorBoard's events may lack something"
QUIET = 0.1  # of the time is left to quiet stretches, of
STRETCH, SHORT_STRETCH = 3.0, 1.0  # seconds
# Margins of the second half over the first: figures of malloc's arenas and of connections to the store, which are kept.
MEMORY, DESCRIPTORS = 16 << 20, 8
A_BATCH = 400  # bytes that the leader may keep of each


class Soak:
    def __init__(self, program, folder, seconds, seed):
        self.folder, self.seconds, self.chance = pathlib.Path(folder).resolve(), seconds, random.Random(seed)
        self.port, self.program, self.processes, self.paths = free_port(), program, {}, {}
        self.happened, self.samples, self.back = collections.Counter(), [], collections.Counter()
        self.lives = collections.Counter()
        # [seconds, batches] in which all ranks were up and no fault was acting: in stretches, and between two faults
        self.quiet, self.between = [0.0, 0], [0.0, 0]
        for rank in range(WORLD):
            self.shared(rank).write_bytes(bytes(24))
        self.out, write = os.pipe()
        self.start(0, stdout=write)
        os.close(write)
        threading.Thread(target=self.read, daemon=True).start()
        for rank in range(1, WORLD):
            self.start(rank)

    def read(self):
        """What the leader prints, until nobody reads any more."""
        with contextlib.suppress(OSError):
            while os.read(self.out, 65536):
                pass

    def start(self, rank, stdout=None):
        path = self.folder / f"log.{rank}.{self.lives[rank]}"
        self.lives[rank] += 1
        env = environment(RANK=rank, WORLD_SIZE=WORLD, MASTER_ADDR="127.0.0.1", MASTER_PORT=self.port, DVLA_SOAK_FOLDER=self.folder)
        command = [self.program, "--name", "soak", "--folder", str(self.folder / "runs")]
        with open(path, "w") as log:
            self.processes[rank] = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=stdout or log, stderr=log,
                                                    cwd=self.folder)  # fmt: skip
        self.paths[rank] = path

    def shared(self, rank):
        return self.folder / f"shared-{rank}"

    def number(self, rank, place):
        """Of Shared in soak_job.cpp: 0, how far the rank's clock is ahead; 1, how often it was asked then; 2, batches begun."""
        return struct.unpack("3q", self.shared(rank).read_bytes())[place]

    def begun(self):
        return [self.number(rank, 2) for rank in range(1, WORLD)]

    def said(self, words):
        """By the leader on standard error, how often."""
        return (self.folder / "log.0.0").read_text(errors="replace").count(words)

    def text(self, rank):
        return self.paths[rank].read_text(errors="replace")[-4000:]

    def until(self, done, what, limit=LIMIT, rank=0):
        began = time.monotonic()
        while not done():
            require(time.monotonic() - began < limit, f"{what}: not within {limit} s:\n{self.text(rank)}")
            require(self.processes[0].poll() is None, f"{what}: the leader has ended:\n{self.text(0)}")
            self.sample()
            time.sleep(0.02)

    def sample(self):
        """Twice a second: what the leader has."""
        now = time.monotonic()
        if self.samples and now - self.samples[-1][0] < 0.5:
            return
        proc = pathlib.Path(f"/proc/{self.processes[0].pid}")
        resident = next(int(line.split()[1]) << 10 for line in (proc / "status").read_text().splitlines() if line.startswith("VmRSS"))
        self.samples.append((now, resident, len(list((proc / "fd").iterdir()))))

    def all_begin(self, what):
        """Until every rollout has begun another batch."""
        before = self.begun()
        self.until(lambda: all(now > then for now, then in zip(self.begun(), before)), what)

    def rest(self, seconds, total):
        began, before = time.monotonic(), self.begun()
        self.until(lambda: time.monotonic() >= began + seconds, "resting")
        total[1] += min(now - then for now, then in zip(self.begun(), before))
        total[0] += time.monotonic() - began

    def batches(self):
        files = (self.folder / "runs/soak/checkpoint").glob("step-*.safetensors")
        return max((int(file.stem.split("-")[1]) for file in files if "actor" not in file.name), default=0)

    # ---- Faults

    def ends(self, rank, codes):
        process = self.processes[rank]
        self.until(lambda: process.poll() is not None, f"rank {rank} ends after '{self.kind}'", rank=rank)
        require(process.returncode in codes, f"rank {rank} ends with {process.returncode} instead of {codes}:\n{self.text(rank)}")

    def again(self, rank):
        """Started again, and let in."""
        self.back[rank] += 1
        self.start(rank)
        words = f"rank {rank} (rollout {rank - 1}) is here again"
        self.until(lambda: self.said(words) >= self.back[rank], f"rank {rank} is let in")

    def fault(self, kind):
        rank, self.kind = self.chance.randrange(1, WORLD), kind
        process = self.processes[rank]
        if kind == "kill":
            process.kill()
            self.ends(rank, (-signal.SIGKILL,))
            self.again(rank)
        elif kind == "usr1":
            process.send_signal(signal.SIGUSR1)
            self.ends(rank, (0,))
            self.again(rank)
        elif kind == "stop":
            words = f"rank {rank} (rollout {rank - 1}) is gone: "
            before = self.said(words)
            process.send_signal(signal.SIGSTOP)
            self.until(lambda: self.said(words) > before, f"rank {rank}, which was stopped, is missed")
            process.send_signal(signal.SIGCONT)
            self.ends(rank, (1,))
            self.again(rank)
        elif kind == "pause":
            process.send_signal(signal.SIGSTOP)
            until = time.monotonic() + self.chance.uniform(0.02, 0.2) * HEARTBEAT
            self.until(lambda: time.monotonic() >= until, "paused")
            process.send_signal(signal.SIGCONT)
            require(process.poll() is None, f"rank {rank} did not outlive a pause:\n{self.text(rank)}")
        elif kind == "full":
            self.full()
        elif kind == "clock":
            self.clock(self.chance.randrange(WORLD))
        else:
            order = self.folder / f"{kind}-{rank}"
            order.touch()
            self.until(lambda: not order.exists(), f"rank {rank} makes a step '{kind}'")
            if kind in ("throw", "hang"):
                self.ends(rank, (1,))
                words = "the simulator is gone" if kind == "throw" else "did not come back from a step or reset within 5 s"
                require(words in self.text(rank), f"rank {rank} does not say '{words}':\n{self.text(rank)}")
                self.again(rank)
            require(self.processes[rank].poll() is None, f"rank {rank} did not outlive a step '{kind}':\n{self.text(rank)}")
        self.all_begin(f"training goes on after '{kind}' of rank {rank}")
        require(all(self.processes[each].poll() is None for each in self.processes), f"a rank did not outlive '{kind}' of rank {rank}")
        self.happened[kind] += 1

    def full(self):
        before, file = self.said(NO_CHECKPOINT), self.folder / "full-0"
        file.touch()
        self.until(lambda: self.said(NO_CHECKPOINT) > before and self.said(NO_EVENTS), "the leader says what it cannot write")
        self.all_begin("training goes on while the disk is full")
        newest, logged = self.batches(), self.logged()
        file.unlink()
        self.until(lambda: self.batches() > newest and self.logged() > logged, "checkpoints and events are written again")

    def logged(self):
        """Bytes of TensorBoard's events."""
        return sum(file.stat().st_size for file in (self.folder / "runs/soak").glob("events.*"))

    def clock(self, rank):
        ahead = self.chance.choice((-1, 1)) * self.chance.randrange(3600, 10 * 86400)
        with open(self.shared(rank), "r+b") as file:
            file.write(struct.pack("q", ahead))
        before = self.number(rank, 1)
        self.until(lambda: self.number(rank, 1) > before + 20, f"rank {rank}, whose clock has stepped by {ahead} s, looks at it")

    def run(self):
        self.until(lambda: self.batches() > 0, "training begins")
        began, first = time.monotonic(), self.batches()
        self.samples.clear()
        piped, deck, decks = False, [], 0
        while (passed := time.monotonic() - began) < self.seconds or deck or not decks:
            if self.quiet[0] < QUIET * passed or not self.quiet[0]:
                self.rest(STRETCH if self.seconds else SHORT_STRETCH, self.quiet)
            if not piped and (passed > self.seconds / 4 and self.happened):
                os.close(self.out)
                piped = True
            if not deck:
                deck, decks = self.chance.sample(KINDS, len(KINDS)), decks + 1
            self.fault(deck.pop())
            self.rest(self.chance.uniform(0.1, 3 if self.seconds else 0.5), self.between)
        last, lasted = self.batches(), time.monotonic() - began
        require(piped, "the leader's standard output was not closed")
        self.until(lambda: self.batches() > last, "training goes on to the end")
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for rank, process in self.processes.items():
            code = process.wait(LIMIT)
            require(code == 0, f"rank {rank} ends with {code}:\n{self.text(rank)}")
        self.check(lasted, last - first)

    # ---- What must hold

    def check(self, lasted, batches):
        report = json.loads((self.folder / "runs/soak/report.json").read_text())
        counts_sent(report, EPISODES)
        require(report["signal_name"] == "SIGTERM" and not report.get("silent_ranks"), f"{report.get('silent_ranks')} gave no report")
        half = len(self.samples) // 2
        sizes = [statistics.median(sample[1] for sample in part) for part in (self.samples[:half], self.samples[half:])]
        most = [max(sample[2] for sample in part) for part in (self.samples[:half], self.samples[half:])]
        faults = sum(self.happened.values())
        print(f"{faults} faults in {lasted:.0f} s: " + ", ".join(f"{self.happened[kind]} {kind}" for kind in KINDS) + ", 1 closed pipe")
        print(f"{batches} batches, {batches / lasted:.1f} a second of all the time")
        print("of the time in which all ranks were up and no fault was acting, which begins when every rollout has begun a batch since")
        print("the last fault's end (a batch counts when every rollout has begun it):")
        for name, (seconds, count) in (("in quiet stretches", self.quiet), ("between two faults", self.between)):
            print(f"  {name}: {count} batches in {seconds:.1f} s, {count / seconds:.1f} a second; {100 * seconds / lasted:.0f} % of the time")
        print(f"the leader: {sizes[0] / 2**20:.1f} MiB, then {sizes[1] / 2**20:.1f} MiB; {most[0]} descriptors, then {most[1]}")
        require(all(self.happened[kind] for kind in KINDS), f"not all kinds of faults happened: {dict(self.happened)}")
        require(self.seconds < 600 or faults >= lasted / 15, f"{faults} faults in {lasted:.0f} s; 240 an hour are wanted")
        require(self.said(NO_EVENTS) == 1, f"that events are missing is not said once:\n{self.text(0)}")
        require(self.said("No space left on device") >= self.happened["full"], f"a full disk is not said to be full:\n{self.text(0)}")
        files = [file.name for file in (self.folder / "runs/soak/checkpoint").iterdir()]
        require(all(name.startswith("step-") for name in files), f"beside the checkpoints there are {files}")
        require(self.batches() == report["batches"], f"the newest checkpoint is of {self.batches()} batches of {report['batches']}")
        require(sizes[1] <= sizes[0] + MEMORY + A_BATCH * batches, f"the leader's memory grew from {sizes[0]} to {sizes[1]} bytes")
        require(most[1] <= most[0] + DESCRIPTORS, f"the leader had {most[0]} descriptors open, and then {most[1]}")

    def end(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program")
    arguments.add_argument("--seconds", type=float, default=float(os.environ.get("DVLA_SOAK_SECONDS", 3600)))
    arguments.add_argument("--seed", type=int, default=20261129)
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="dvla-soak-") as folder:
        soak = None
        try:
            soak = Soak(os.path.realpath(said.program), folder, said.seconds, said.seed)
            soak.run()
        except Fault as fault:
            print(f"FAULT: {fault}")
            return 1
        finally:
            if soak:
                soak.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
