"""The image's Dockerfile and the settings of the compose file, as far as text tells."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from kit.variables import DEFAULTS

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "docker-compose.yml"
EXAMPLE = ROOT / "deploy" / ".env.example"


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    """Neither of its own rules nor of the shell's."""
    # Beside the interpreter: an environment's programs need not be on the path.
    hadolint = Path(sys.executable).with_name("hadolint")

    checked = subprocess.run(
        [hadolint, DOCKERFILE], capture_output=True, text=True, timeout=60
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_labels_say_what_the_project_says() -> None:
    """The version above all: it has to be changed in both places."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    label = re.compile(r'org\.opencontainers\.image\.(\w+)="([^"]*)"')

    assert dict(label.findall(DOCKERFILE.read_text())) == {
        "title": project["name"],
        "description": project["description"],
        "version": project["version"],
        "licenses": project["license"],
    }


def test_every_setting_of_the_stack_is_in_the_example_with_its_default() -> None:
    """What can be set, and what it is if it is not."""
    settings = re.findall(r"\$\{(\w+):?-([^}]*)\}", COMPOSE.read_text())

    assert len(settings) > 15
    assert {*settings} == {*re.findall(r"^(\w+)=(.*)$", EXAMPLE.read_text(), re.M)}


def test_the_example_has_what_the_document_says_to_look_at_first() -> None:
    """What is a command's default is commented out, with that."""
    document = (ROOT / "deploy" / "README.md").read_text()
    [section] = re.findall(r"^## Settings\n(.*?)^## ", document, re.M | re.S)
    rows = "".join(re.findall(r"^\|(.*?)\|", section, re.M))
    example = EXAMPLE.read_text()

    told = {*re.findall(r"`([A-Z_]+)`", rows)}

    ours = {*re.findall(r"^(\w+)=", example, re.M)}
    others = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", example, re.M))
    assert {"TASK", "TASK_DIR", "WORKERS"} < told
    assert told <= ours | others.keys()
    assert others == {name: DEFAULTS[name] for name in told - ours}
