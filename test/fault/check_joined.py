"""check_joined.py PROGRAM PART: examples/distributed whose rollouts are jobs of their own, which join the actors' job (DVLA_STORE).

shells     a process each, without a launcher: SIGKILL and SIGTERM of a rollout, which comes again; SIGKILL of the actor, after which all are
           started again and resume; what cannot join is refused by one sentence
again      two actors, both of whose rollouts are killed and come again at the same time, ten times
torchrun   a torchrun for the actor, another for the rollouts: SIGKILL of a rollout starts only the rollouts again; SIGKILL of the
           actor starts both again, also in the warm start, and the job goes on from its own newest complete checkpoint; SIGKILL of
           the actor's launcher, which hosts the store, loses nothing of what is trained (77: skipped)
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "distributed"))
from check_faults import LIMIT, counts, leader_of  # noqa: E402
from check_job import EPISODES, Fault, environment, free_port, main, require, torchrun  # noqa: E402

WORLD = 3  # rank 0 trains, the others roll out


class Process:
    """A launcher, or a rank without one; in a session of its own, so that `kill` ends its ranks too."""

    def __init__(self, check, command, **variables):
        number = len(list(check.folder.glob("process.*")))
        self.path = check.folder / f"process.{number}"
        with open(self.path, "w") as out:
            self.process = subprocess.Popen(command, env=environment(**variables), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            cwd=check.folder, start_new_session=True)  # fmt: skip

    def text(self):
        return self.path.read_text(errors="replace")

    def alive(self):
        return self.process.poll() is None

    def kill(self):
        """SIGKILL, as a machine that is gone."""
        if self.alive():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def says(self, words, limit=LIMIT, times=1):
        """Waits until it does."""
        until = time.monotonic() + limit
        while self.text().count(words) < times:
            require(time.monotonic() < until and self.alive(), f"it does not say '{words}':\n{self.text()}")
            time.sleep(0.02)

    def ends(self, code, limit=LIMIT):
        """Waits for the end."""
        try:
            ended = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Fault(f"had not ended after {limit} s:\n{self.text()}") from None
        require(ended == code, f"exit code {ended} instead of {code}:\n{self.text()}")
        return self.text()


class Job:
    def __init__(self, check, name, **settings):
        self.check, self.name, self.port, self.processes, self.world = check, name, free_port(), [], WORLD
        self.settings = {"checkpoint_every": 1, "deadline_s": 60, "heartbeat_s": 1, **settings}

    def command(self, **more):
        return self.check.command(self.name, "separated:2:1", **{**self.settings, **more})

    def start(self, command, **variables):
        self.processes.append(Process(self.check, command, DVLA_WORLD_SIZE=self.world, **variables))
        return self.processes[-1]

    def actor(self, **more):
        return self.start(self.command(**more), MASTER_ADDR="127.0.0.1", MASTER_PORT=self.port)

    def join(self, first, command=None, store=None):
        return self.start(command or self.command(), DVLA_FIRST_RANK=first, DVLA_STORE=store or f"127.0.0.1:{self.port}")

    def trained(self):
        return self.check.trained(self.name)

    def wait_for(self, batches):
        until = time.monotonic() + LIMIT
        while self.trained() < batches:
            require(time.monotonic() < until, f"no {batches} batches within {LIMIT} s:\n{self.processes[0].text()}")
            time.sleep(0.02)

    def report(self):
        return self.check.report(self.name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()


def check_shells(check):
    with Job(check, "shells", iterations=1000000) as job:
        actor, one, two = job.actor(), job.join(1), job.join(2)
        job.wait_for(2)
        require("waiting for ranks 1 to 2 to join: DVLA_STORE=127.0.0.1:" in actor.text(), actor.text())
        require("rollouts 1, 2, of which joined 1, 2; actors 0" in actor.text(), actor.text())
        one.kill()
        actor.says("rank 1 (rollout 0) is gone: ")
        again = job.join(1)
        actor.says("rank 1 (rollout 0) is here again")
        two.process.send_signal(signal.SIGTERM)  # it leaves in peace, and comes again too
        two.ends(0)
        actor.says("rank 2 (rollout 1) is gone: it has left")
        two = job.join(2)
        actor.says("rank 2 (rollout 1) is here again")
        job.wait_for(job.trained() + 20)
        require(actor.alive() and again.alive() and two.alive(), f"somebody has ended:\n{actor.text()}{again.text()}{two.text()}")
        actor.process.send_signal(signal.SIGTERM)
        for each in (actor, again, two):
            each.ends(0)
        report = job.report()
        trained, lost = counts(report, report["batches"])
        require(not report.get("silent_ranks"), f"silent: {report.get('silent_ranks')}")
        came = next(rank for rank in report["ranks"] if rank["name"].startswith("rank 1"))
        require(came["sent"] > 0, f"the rollout that came again sent nothing: {report['ranks']}")
        print(f"{trained} episodes trained, {lost} lost; the rollout that came again sent {came['sent']}")

    # An actor that is lost ends its rollouts; all are started again, and resume.
    with Job(check, "shells", iterations=1000000, resume=check.runs / "shells") as job:
        begun = job.trained()
        actor, one, two = job.actor(), job.join(1), job.join(2)
        job.wait_for(begun + 5)
        actor.kill()
        for each in (one, two):
            text = each.ends(1)
            require("lost rank 0 (actor 0)" in text, f"it does not say whom it lost:\n{text}")
        begun = job.trained()
        one, two, actor = job.join(1), job.join(2), job.actor(iterations=begun + 20)
        one.ends(1), two.ends(1)  # their settings are others
        require("run.iterations is" in one.text() and "on rank 0" in one.text(), one.text())
        actor.ends(1)
        job.settings["iterations"] = begun + 20
        one, two, actor = job.join(1), job.join(2), job.actor()
        for each in (actor, one, two):
            each.ends(0)
        require(f"{begun} batches are done" in actor.text(), actor.text())
        counts(job.report(), 20)
        print(f"resumed after {begun} batches, and trained 20 more")

    refused(check)


def refused(check):
    """Each on every rank, long before the deadline."""
    cases = {
        "colocated": "under CoLocated every rank may train",
        "separated:1:2": "2 of the job's 3 ranks are to train, but only 1 can",
    }
    for placement, sentence in cases.items():
        with Job(check, "refused") as job:
            command = check.command("refused", placement, **job.settings)
            began = time.monotonic()
            ranks = [job.start(command, MASTER_ADDR="127.0.0.1", MASTER_PORT=job.port), job.join(1, command), job.join(2, command)]
            for each in ranks:
                text = each.ends(1)
                require(sentence in text and text.count("error:") == 1, f"{placement} is not refused by one sentence:\n{text}")
            require(time.monotonic() - began < 30, "a refusal took as long as half a deadline")
    with Job(check, "nobody", deadline_s=1) as job:
        text = job.join(1).ends(1)
        require(f"for the job's store at 127.0.0.1:{job.port}" in text, f"it does not say what it waited for:\n{text}")
    print("what cannot join is refused")


def check_again(check):
    """Two actors, and both rollouts killed and back at the same time, again and again."""
    with Job(check, "again", iterations=1000000) as job:
        job.world = 4

        def start(first):
            return job.join(first, check.command("again", "separated:1:1", **job.settings))

        command = check.command("again", "separated:1:1", **job.settings)
        actors = [job.start(command, RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=job.port) for rank in (0, 1)]
        rollouts = {rank: start(rank) for rank in (2, 3)}
        job.wait_for(2)
        for turn in range(1, 11):
            for each in rollouts.values():
                each.kill()
            rollouts = {rank: start(rank) for rank in rollouts}
            for rank in rollouts:
                actors[0].says(f"rank {rank} (rollout {rank - 2}) is here again", times=turn)
            job.wait_for(job.trained() + 2)
        actors[0].process.send_signal(signal.SIGTERM)
        for each in (*actors, *rollouts.values()):
            each.ends(0)
        report = job.report()
        trained, lost = counts(report, report["batches"])
        print(f"both came again 10 times: {trained} episodes trained, {lost} lost")


def launcher(ranks):
    numbers = ["--nproc-per-node", str(ranks), "--max-restarts", "9", "--monitor-interval", "0.1"]
    return [torchrun(), "--no-python", *numbers]


def check_torchrun(check):
    rollout_dies_then_actor(check)
    actor_dies_in_warm_start(check)
    store_is_gone(check)


def rollout_dies_then_actor(check):
    with Job(check, "torchruns", iterations=400) as job:
        actor = job.start([*launcher(1), "--master-port", str(job.port), *job.command()])
        rollouts = job.join(1, [*launcher(2), "--master-port", str(free_port()), *job.command()])
        job.wait_for(2)
        os.kill(leader_of(rollouts.process.pid), signal.SIGKILL)  # the first of its ranks, which is rank 1 of the job
        actor.says("rank 2 (rollout 1) is here again")  # of both: SIGKILL of one, SIGTERM to the other
        actor.says("rank 1 (rollout 0) is here again")
        job.wait_for(job.trained() + 20)
        require("resumed from" not in actor.text() and actor.alive(), f"the actor's job was disturbed:\n{actor.text()}")
        require(rollouts.alive(), f"the rollouts' job has ended:\n{rollouts.text()}")
        print(f"a rollout was killed, and training went on to batch {job.trained()}")
        os.kill(leader_of(actor.process.pid), signal.SIGKILL)
        actor.ends(0)
        rollouts.ends(0)
        said = [line for line in actor.text().splitlines() if "resumed from" in line]
        require(len(said) == 1 and "/torchruns/checkpoint/step-" in said[0], f"it did not go on from its checkpoint:\n{actor.text()}")
        require(job.trained() == 400, f"it ended after {job.trained()} batches")
        report = job.report()
        trained, lost = counts(report, report["batches"])
        sent = sum(rank["sent"] for rank in report["ranks"])
        require(sent >= report["batches"] * EPISODES // 2, f"only {sent} episodes were sent after the restart")
        print(f"{said[0]}\n{trained} episodes trained, {lost} lost")


def actor_dies_in_warm_start(check):
    """The rollouts wait for it in a job that has not begun."""
    with Job(check, "early", iterations=5, demonstrations=1024, imitation_target=1, imitation_steps=100) as job:
        actor = job.start([*launcher(1), "--master-port", str(job.port), *job.command()])
        rollouts = job.join(1, [*launcher(2), "--master-port", str(free_port()), *job.command()])
        actor.says("self-test")
        os.kill(leader_of(actor.process.pid), signal.SIGKILL)
        actor.ends(0)
        rollouts.ends(0)
        counts(job.report(), 5)
        print("killed in the warm start, and begun anew with the same rollouts")


def store_is_gone(check):
    """With the actor's launcher goes its store; the actor and its rollouts go on, and nothing is lost."""
    with Job(check, "orphan", iterations=300, checkpoint_every=10) as job:
        actor = job.start([*launcher(1), "--master-port", str(job.port), *job.command()])
        rollouts = [job.join(1), job.join(2)]
        job.wait_for(10)  # before training begins, nobody does without it
        os.kill(actor.process.pid, signal.SIGKILL)
        for each in rollouts:
            each.ends(0)
        until = time.monotonic() + LIMIT
        while "written to" not in actor.text():
            require(time.monotonic() < until, f"the actor has not ended:\n{actor.text()}")
            time.sleep(0.02)
        require("warning: no rank can come again: " in actor.text(), actor.text())
        require(job.trained() == 300, f"there is no last checkpoint:\n{actor.text()}")
        report = job.report()
        counts(report, 300)
        require(report["silent_ranks"] == [1, 2], f"silent: {report['silent_ranks']}")
        print("without the store: all trained, checkpoint and report are there")


if __name__ == "__main__":
    sys.exit(main({"shells": check_shells, "again": check_again, "torchrun": check_torchrun}))
