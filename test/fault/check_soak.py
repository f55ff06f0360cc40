"""check_soak.py PROGRAM [--seconds N] [--seed N]: a job of soak_job.cpp, one actor and three rollouts, under seeded faults, one after
the other, each with its end: SIGKILL of a rollout, SIGSTOP for longer than two heartbeats and for less, SIGUSR1 to a rollout, a row of
NaN, a step that takes a second and a half, that throws, that does not come back; and the leader's standard output, a pipe, is closed in
the midst. DVLA_SOAK_SECONDS: the default of N, 60.

What must hold: each fault has happened and had its end; all episodes are accounted for; what the leader has in memory and open is in the
second half what it was in the first, but for the history of its batches.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "distributed"))
from check_faults import counts_sent  # noqa: E402
from check_job import Fault, environment, free_port, require  # noqa: E402

WORLD, EPISODES, HEARTBEAT = 4, 48, 1.0
LIMIT = 60  # seconds that the end of a fault may take
KINDS = ("kill", "stop", "pause", "usr1", "nan", "slow", "throw", "hang")
# Margins of the second half over the first: figures of malloc's arenas and of connections to the store, which are kept.
MEMORY, DESCRIPTORS = 16 << 20, 8
A_BATCH = 400  # bytes that the leader may keep of each


class Soak:
    def __init__(self, program, folder, seconds, seed):
        self.folder, self.seconds, self.chance = pathlib.Path(folder), seconds, random.Random(seed)
        self.port, self.program, self.processes, self.paths = free_port(), program, {}, {}
        self.happened, self.samples, self.back = collections.Counter(), [], collections.Counter()
        self.lives = collections.Counter()
        self.quiet = 0.0  # seconds in which all ranks were up
        self.out, write = os.pipe()
        self.start(0, stdout=write)
        os.close(write)
        threading.Thread(target=self.read, daemon=True).start()
        for rank in range(1, WORLD):
            self.start(rank)

    def read(self):
        """What the leader prints, until nobody reads any more."""
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

    def text(self, rank):
        return self.paths[rank].read_text(errors="replace")[-4000:]

    def until(self, done, what, limit=LIMIT):
        began = time.monotonic()
        while not done():
            require(time.monotonic() - began < limit, f"{what}: not within {limit} s:\n{self.text(0)}")
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

    def rest(self, seconds):
        until = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= until, "resting")
        self.quiet += seconds

    def batches(self):
        files = (self.folder / "runs/soak/checkpoint").glob("step-*.safetensors")
        return max((int(file.stem.split("-")[1]) for file in files if "actor" not in file.name), default=0)

    # ---- Faults

    def ends(self, rank, codes):
        process = self.processes[rank]
        self.until(lambda: process.poll() is not None, f"rank {rank} ends")
        require(process.returncode in codes, f"rank {rank} ends with {process.returncode} instead of {codes}:\n{self.text(rank)}")

    def again(self, rank):
        """Started again, and let in."""
        self.back[rank] += 1
        self.start(rank)
        words = f"rank {rank} (rollout {rank - 1}) is here again"
        log = self.folder / "log.0.0"
        self.until(lambda: log.read_text(errors="replace").count(words) >= self.back[rank], f"rank {rank} is let in")

    def fault(self, kind):
        rank = self.chance.randrange(1, WORLD)
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
            process.send_signal(signal.SIGSTOP)
            until = time.monotonic() + self.chance.uniform(2.5, 4) * HEARTBEAT
            self.until(lambda: time.monotonic() >= until, "stopped")
            process.send_signal(signal.SIGCONT)
            self.ends(rank, (1,))
            self.again(rank)
        elif kind == "pause":
            process.send_signal(signal.SIGSTOP)
            until = time.monotonic() + self.chance.uniform(0.1, 0.8) * HEARTBEAT
            self.until(lambda: time.monotonic() >= until, "paused")
            process.send_signal(signal.SIGCONT)
            require(process.poll() is None, f"rank {rank} did not outlive a pause:\n{self.text(rank)}")
        else:
            order = self.folder / f"{kind}-{rank}"
            order.touch()
            self.until(lambda: not order.exists(), f"rank {rank} makes a step '{kind}'")
            if kind in ("throw", "hang"):
                self.ends(rank, (1,))
                words = "the simulator is gone" if kind == "throw" else "did not come back from a step or reset within 3 s"
                require(words in self.text(rank), f"rank {rank} does not say '{words}':\n{self.text(rank)}")
                self.again(rank)
            require(self.processes[rank].poll() is None, f"rank {rank} did not outlive a step '{kind}':\n{self.text(rank)}")
        self.happened[kind] += 1

    def run(self):
        self.until(lambda: self.batches() > 0, "training begins")
        began, first = time.monotonic(), self.batches()
        self.samples.clear()
        piped = False
        while (passed := time.monotonic() - began) < self.seconds:
            if not piped and passed > self.seconds / 4:
                os.close(self.out)
                piped = True
            self.fault(self.chance.choice(KINDS))
            self.rest(self.chance.uniform(0.1, 0.6))
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
        print(f"{batches} batches, {batches / lasted:.1f} a second; {100 * self.quiet / lasted:.0f} % of the time without a fault")
        print(f"the leader: {sizes[0] / 2**20:.1f} MiB, then {sizes[1] / 2**20:.1f} MiB; {most[0]} descriptors, then {most[1]}")
        require(faults >= self.seconds / 6, f"{faults} faults in {lasted:.0f} s")
        if self.seconds >= 60:
            require(all(self.happened[kind] for kind in KINDS), f"not all kinds of faults happened: {dict(self.happened)}")
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
    arguments.add_argument("--seconds", type=float, default=float(os.environ.get("DVLA_SOAK_SECONDS", 60)))
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
