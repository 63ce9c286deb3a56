"""What deploy/README.md says, against what there is."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import psserver
import psworker
from kit.variables import OF_CLIENT, OF_SERVER, OF_WORKER

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"


@pytest.fixture(scope="module")
def text() -> str:
    """Read it."""
    return (DEPLOY / "README.md").read_text()


def test_every_alert_has_its_part(text: str) -> None:
    """What it means and what to do, in the order of the rules."""
    alerts = re.findall(r"^ *- alert: (\w+)$", RULES.read_text(), re.M)

    parts = re.findall(r"^### (\w+)\n\n\w", text, re.M)

    assert parts == alerts


def test_every_setting_is_one_of_a_command(text: str) -> None:
    """Else it would be read by nobody."""
    named = set(re.findall(r"\b(?:PSSERVER|PSWORKER)_\w+", text))

    assert named <= OF_SERVER | OF_WORKER | OF_CLIENT
    assert len(named) > 10


def test_the_tables_have_every_setting_of_the_stack(text: str) -> None:
    """Those of ports too."""
    example = (DEPLOY / ".env.example").read_text()
    settings = {*re.findall(r"^(\w+)=", example, re.M)}

    tables = "".join(re.findall(r"^\|.*\n", text, re.M))

    assert len(settings) > 15
    assert settings <= {*re.findall(r"`([A-Z_]+)`", tables)}


def test_a_backup_is_gone_back_to_as_often_as_one_likes(
    text: str,
    start_server: Callable[..., psserver.Server],
    connect: Callable[..., psworker.Client],
    tmp_path: Path,
) -> None:
    """By the script that it shows, which leaves alone what there is if it cannot."""
    [script] = re.findall(r"server sh -ec '(.*?)' < backup.tar", text, re.S)
    data, backup = tmp_path / "data", tmp_path / "backup.tar"
    script = script.replace("\n>", "\n").replace("/data", str(data))

    def step(pushes: int) -> int:
        """Serve and push; return the step that it went on from."""
        server = start_server(durability="log", data_dir=data)
        with connect(server.address) as client:
            client.initialize({"w": np.zeros(1, np.float32)})
            before = client.pull().step
            for _ in range(pushes):
                client.push({"w": np.ones(1, np.float32)}, client.pull())
        server.stop()
        return before

    def restore() -> int:
        with backup.open("rb") as file:
            return subprocess.run(["sh", "-ec", script], stdin=file).returncode

    step(pushes=2)
    [saved] = [
        each for each in (data / "checkpoints").iterdir() if "step-2" in each.name
    ]
    subprocess.run(["tar", "-C", saved.parent, "-cf", backup, saved.name], check=True)
    assert step(pushes=3) == 2
    assert restore() == 0
    assert step(pushes=1) == 2
    assert restore() == 0
    assert step(pushes=1) == 2
    backup.write_bytes(b"no archive")
    assert restore() != 0
    assert step(pushes=0) == 3


@pytest.fixture
def overlay(text: str, tmp_path: Path) -> Path:
    """Write down the overlay that it shows, beside the manifests; return its folder."""
    [shown] = re.findall(r"```yaml\n(.*?)```", text, re.S)
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "deploy" / "kubernetes")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(shown)
    return folder


def test_the_overlay_that_it_shows_can_be_built(overlay: Path, kubectl: Any) -> None:
    """With the reader's own image, namespace and settings."""
    built = kubectl("kustomize", str(overlay))

    assert (built.returncode, built.stderr) == (0, "")
    objects = list(yaml.safe_load_all(built.stdout))
    assert {each["metadata"]["namespace"] for each in objects} == {"training"}
    images = re.findall(r"image: (.*)", built.stdout)
    assert images == ["REGISTRY/asyncps:1"] * 2
    assert 'PSSERVER_MAX_STALENESS: "16"' in built.stdout


def test_the_upgrade_that_it_shows_runs_what_it_has_pushed(
    text: str, overlay: Path, kubectl: Any
) -> None:
    """Another image than before: nodes would not pull one that they have."""
    [change] = re.findall(r"\$ (sed -i .*)", text)

    subprocess.run(change, shell=True, cwd=overlay.parent, check=True)

    built = kubectl("kustomize", str(overlay))
    first, upgraded = re.findall(r"\$ docker push (.*)", text)
    assert {*re.findall(r"image: (.*)", built.stdout)} == {upgraded} != {first}
