"""A compose project, spoken to as a user does: by `docker`, and at published ports."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from psserver import admin
from pswire.credentials import ANONYMOUS, Credentials
from pswire.errors import ParameterServerError
from pswire.status import Status

_COMMAND_S = 600.0  # It may have to download all that an image is made of.
_TIMEOUT_S = 180.0  # A busy machine takes long to import JAX five times.
_LOOK_EVERY_S = 0.1


class Stack:
    """The stack of `deploy/docker-compose.yml`, from a checkout."""

    def __init__(
        self,
        checkout: Path,
        project: str,
        *more: str,
        credentials: Credentials = ANONYMOUS,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            checkout: Where the repository is.
            project: What Compose is to call it.
            more: Files of that folder besides the first.
            credentials: What the server asks for.
        """
        self.project = project
        files = ("docker-compose.yml", *more)
        self._files = [str(checkout / "deploy" / name) for name in files]
        self._credentials = credentials
        # Whatever runs on this machine already keeps its ports.
        ports = ("GRPC_PORT", "HTTP_PORT", "PROMETHEUS_PORT")
        self._environment = {
            "ASYNCPS_IMAGE": "asyncps:test",
            **os.environ,
            **dict.fromkeys(ports, "0"),
        }

    def docker(self, *arguments: str) -> str:
        """Run a command of Docker's; return what it prints."""
        done = subprocess.run(
            ["docker", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
        )
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def compose(self, *arguments: str) -> str:
        """Run a command of Compose's likewise."""
        files = [part for name in self._files for part in ("--file", name)]
        where = ("--project-name", self.project, *files)
        return self.docker("compose", *where, *arguments)

    def up(self, *, workers: int) -> None:
        """Bring up all that does not run, until it is healthy."""
        options = ("--detach", "--no-build", "--no-recreate", "--wait")
        self.compose("up", *options, "--scale", f"worker={workers}")

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers."""
        return self.compose("ps", "--all", "--quiet", service).split()

    def names(self) -> set[str]:
        """Return what the workers call themselves."""
        return {container[:12] for container in self.containers("worker")}

    def inspect(self, container: str) -> Any:
        """Return all that Docker knows of a container."""
        [found] = json.loads(self.docker("inspect", container))
        return found

    def crash(self, container: str) -> None:
        """Kill all that runs in a container but its first process, which then ends.

        `docker kill` would tell Docker not to start it again.
        """
        # It may see its shell killed by that end, or not.
        command = ["docker", "exec", container, "sh", "-c", "kill -9 -1"]
        subprocess.run(command, env=self._environment, timeout=_TIMEOUT_S)

    def address(self, service: str = "server", port: int = 7070) -> str:
        """Return where this machine finds a port of a service."""
        return self.compose("port", service, str(port))

    def status(self) -> Status:
        """Ask the server, from outside the stack."""
        return admin.status(self.address(), self._credentials)

    def until(self, is_so: Callable[[Status], bool]) -> Status:
        """Ask the server until its status is so; it may be away meanwhile."""
        deadline = time.monotonic() + _TIMEOUT_S
        found: object = "no answer"
        while time.monotonic() < deadline:
            # Docker knows no port of a container that is starting again.
            with suppress(ParameterServerError, AssertionError):
                found = status = self.status()
                if is_so(status):
                    return status
            time.sleep(_LOOK_EVERY_S)
        logs = self.compose("logs", "--tail", "9", "--no-color", "server", "worker")
        raise AssertionError(f"it never came to this; {found}\n{logs}")

    def train(self, *, steps: int) -> Status:
        """Ask the server until so many steps have been made from now on."""
        goal = self.status().step + steps
        return self.until(lambda status: status.step > goal)

    def query(self, expression: str) -> list[Any]:
        """Ask Prometheus for what an expression comes to now."""
        where = f"http://{self.address('prometheus', 9090)}/api/v1/query"
        url = f"{where}?{urlencode({'query': expression})}"
        with urlopen(url, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]["result"]

    def until_query(
        self, expression: str, is_so: Callable[[list[Any]], bool] = bool
    ) -> list[Any]:
        """Ask Prometheus until what comes is so: by itself, until there is any."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not is_so(found := self.query(expression)):
            assert time.monotonic() < deadline, f"{expression}: {found}"
            time.sleep(_LOOK_EVERY_S)
        return found


def missing() -> str | None:
    """Say why no stack can be brought up, if so."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            asked = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except FileNotFoundError:
            return "docker is not installed"
        if asked.returncode != 0:
            said = asked.stderr.strip().splitlines() or ["no reason"]
            return f"{' '.join(command)} fails: {said[-1]}"
    return None
