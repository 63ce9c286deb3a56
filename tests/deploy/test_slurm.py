"""Slurm's job script, with stand-ins for Slurm that start its tasks on this machine."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

Job = subprocess.Popen[str]
StartJob = Callable[..., Job]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "train.sbatch"
STAND_INS = Path(__file__).parent / "slurm"
TIMEOUT_S = 120.0
TASK = """\
import dataclasses
import pathlib

import digits


def batches(shard):
    pathlib.Path(f"part-{shard.index}-of-{shard.count}").touch()
    return digits.batches(shard)


task = dataclasses.replace(digits.task, batches=batches)
"""


@contextmanager
def job(*arguments: str, folder: Path, **settings: str) -> Iterator[Job]:
    """Run the script as `sbatch` would, on one node with room for two tasks.

    When a job's script has ended, Slurm ends whatever the job has left.
    """
    here = [STAND_INS, Path(sys.executable).parent, os.environ["PATH"]]
    modules = [ROOT / "examples", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    slurms = {"JOB_ID": "7", "JOB_NODELIST": "here", "NTASKS": "2"}
    process = subprocess.Popen(
        [SCRIPT, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PATH": os.pathsep.join(map(str, here)),
            "PYTHONPATH": os.pathsep.join(map(str, modules)),
            **{f"SLURM_{name}": value for name, value in slurms.items()},
            **settings,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def end() -> None:
        with suppress(ProcessLookupError):  # There is nobody left.
            os.killpg(process.pid, signal.SIGKILL)

    alarm = threading.Timer(TIMEOUT_S, end)
    alarm.start()
    with process:
        try:
            yield process
        finally:
            alarm.cancel()
            alarm.join()
            end()


@pytest.fixture
def start_job(tmp_path: Path) -> Iterator[StartJob]:
    """Start jobs that end with the test, in a folder with a task."""
    (tmp_path / "train.py").write_text(TASK)
    sgd = {"PSSERVER_RULE": "sgd", "PSSERVER_ARGUMENT": "learning_rate=0.1"}
    with ExitStack() as stack:
        yield lambda *arguments, **settings: stack.enter_context(
            job("train:task", *arguments, folder=tmp_path, **{**sgd, **settings})
        )


def until(job: Job, *told: str) -> None:
    """Read what a job says until all of this has been said."""
    assert job.stdout is not None
    missing, said = set(told), []
    for line in job.stdout:
        said.append(line)
        missing -= {each for each in missing if each in line}
        if not missing:
            return
    raise AssertionError(f"it ended without {missing}: {said}")


def steps_kept(folder: Path) -> list[int]:
    """Return the steps of the checkpoints that a job has left."""
    kept = (folder / "asyncps-7" / "checkpoints").iterdir()
    return sorted(int(each.name.rpartition("-")[2]) for each in kept)


def test_the_first_task_serves_and_the_rest_work(
    start_job: StartJob, tmp_path: Path
) -> None:
    """Each on a part of its own; when they are done the server keeps what it has."""
    job = start_job("--steps", "30", SLURM_NTASKS="3")

    said, _ = job.communicate()

    assert job.returncode == 0, said
    assert "joined localhost:" in said
    parts = sorted(each.name for each in tmp_path.glob("part-*"))
    assert parts == ["part-0-of-2", "part-1-of-2"]
    assert steps_kept(tmp_path)[-1] >= 30


@pytest.mark.long
def test_a_job_whose_server_dies_fails(start_job: StartJob, tmp_path: Path) -> None:
    """Its workers give up when they have waited for it."""
    job = start_job(PSWORKER_OUTAGE="1")
    until(job, "step 1,")

    os.kill(int((tmp_path / "asyncps-7" / "lock").read_text()), signal.SIGKILL)

    said, _ = job.communicate()
    assert job.returncode == 1
    assert "ServerUnavailableError" in said


def test_a_job_without_a_server_fails_at_once(
    start_job: StartJob, tmp_path: Path
) -> None:
    """No worker is started; the server says what it lacks."""
    job = start_job(PSSERVER_RULE="")

    said, _ = job.communicate()

    assert job.returncode == 1
    assert "Missing option '--rule'" in said
    assert not list(tmp_path.glob("part-*"))


@pytest.mark.long
def test_a_job_whose_time_is_over_keeps_what_it_has(
    start_job: StartJob, tmp_path: Path
) -> None:
    """It was not done, so it does not end well."""
    job = start_job()
    until(job, "step 1,")

    job.send_signal(signal.SIGTERM)  # To the script alone, as it asks Slurm for.

    until(job, "no time left")
    until(job, "saved step")
    assert job.wait(TIMEOUT_S) == 1
    assert steps_kept(tmp_path)[-1] >= 1


def test_the_script_is_clean() -> None:
    """As shellcheck says, of the stand-ins too."""
    checked = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", SCRIPT, *STAND_INS.iterdir()],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert (checked.returncode, checked.stdout) == (0, "")
