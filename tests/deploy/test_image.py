"""The image's Dockerfile and the settings of the compose file, as far as text tells."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


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
    compose = (ROOT / "deploy" / "docker-compose.yml").read_text()
    example = (ROOT / "deploy" / ".env.example").read_text()

    settings = re.findall(r"\$\{(\w+):?-([^}]*)\}", compose)

    assert len(settings) > 15
    assert {*settings} == {*re.findall(r"^(\w+)=(.*)$", example, re.M)}
