"""Who may import whom, and what nobody may: read from the sources, not believed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"pswire": ROOT / "proto", "psserver": ROOT, "psworker": ROOT}

NEVER_TOGETHER = {
    "pswire": {"psserver", "psworker"},
    "psserver": {"psworker"},
    "psworker": {"psserver"},
}
ONLY_IN = {
    "grpc": {
        "pswire/channel.py",
        "pswire/errors.py",
        "pswire/_generated/parameter_server_pb2_grpc.py",
        "psserver/service.py",
        "psserver/commands.py",
        "psserver/grpcport.py",
        "psserver/health.py",
        "psserver/malformed.py",
        "psserver/patience.py",
        "psserver/security/guard.py",
        "psserver/security/tls.py",
        "psserver/admin.py",
        "psworker/remote.py",
    },
    "optax": {"psserver/rules.py", "psserver/rulespec.py", "psserver/server.py"},
    "click": {
        *(f"psserver/cli/{n}.py" for n in ("__init__", "ask", "checkpoint")),
        *(f"psserver/cli/{n}.py" for n in ("report", "serve")),
        "pswire/options.py",
        "psworker/cli.py",
    },
    "prometheus_client": {
        f"psserver/metrics/{name}.py"
        for name in ("families", "prometheus", "workerfamilies")
    },
    "orbax": {"psserver/durability/export.py"},
    "tensorboardX": {"psserver/metrics/tensorboard.py"},
}
CODE_FROM_OUTSIDE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
RUNS_TEXT = {"eval", "exec"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the module of every import, wherever in the source it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def running_text(tree: ast.AST) -> Iterator[str]:
    """Yield every mention of what makes code of text or of a file's bytes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name in RUNS_TEXT:
                yield name
            case ast.Attribute(attr=name, value=ast.Name(id="builtins")) if (
                name in RUNS_TEXT
            ):
                yield name
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=False)):
                pass
            case ast.keyword(arg="allow_pickle"):
                yield "allow_pickle"


def faults(path: str, source: str) -> list[str]:
    """Say which rules a module breaks.

    Args:
        path: As it is imported: `psserver/store.py`, say.
        source: Its text.
    """
    tree = ast.parse(source)
    package = path.partition("/")[0]
    found = [f"{path}: {name}" for name in running_text(tree)]
    for module in imports(tree):
        root = module.partition(".")[0]
        owner = "grpc" if root.startswith("grpc_") else root
        if (
            not root  # A relative import hides where it leads.
            or root in NEVER_TOGETHER[package] | CODE_FROM_OUTSIDE
            or path not in ONLY_IN.get(owner, {path})
        ):
            found.append(f"{path}: {module}")
    return found


def test_every_module_keeps_the_rules() -> None:
    """All three packages, the generated code included."""
    sources = {
        str(path.relative_to(home)): path.read_text()
        for package, home in PACKAGES.items()
        for path in (home / package).rglob("*.py")
    }

    found = [fault for path, text in sources.items() for fault in faults(path, text)]

    assert found == []
    assert set().union(*ONLY_IN.values()) <= sources.keys()
    assert {path.partition("/")[0] for path in sources} == PACKAGES.keys()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pswire/body.py", "import psserver"),
        ("pswire/body.py", "from psworker.task import Task"),
        ("psserver/store.py", "import numpy, psworker.client as c"),
        ("psserver/store.py", "def late():\n    from psworker import Client"),
        (
            "psworker/loop.py",
            "if TYPE_CHECKING:\n    import psserver.server",
        ),
        ("psworker/loop.py", "try:\n    import psserver.store\nexcept ImportError: 0"),
        ("psserver/store.py", "import grpc"),
        ("psserver/store.py", "from grpc_health.v1 import health"),
        ("psserver/cli/serve.py", "def main():\n    import grpc.aio"),
        ("pswire/values.py", "from grpc import StatusCode"),
        ("psworker/client.py", "class Client:\n    import grpc"),
        ("psserver/store.py", "import optax"),
        ("psworker/gradient.py", "from optax.losses import squared_error"),
        ("psserver/server.py", "import click"),
        ("psworker/launcher.py", "from click import echo"),
        ("psserver/store.py", "from . import rules"),
        ("psserver/store.py", "from ..psworker import client"),
        ("pswire/body.py", "import pickle"),
        ("psserver/store.py", "from pickle import loads"),
        ("psserver/store.py", "def late():\n    import cloudpickle"),
        ("psserver/rulespec.py", "x = eval('1')"),
        ("psserver/rulespec.py", "run = exec"),
        ("psserver/rulespec.py", "import builtins\nbuiltins.exec('')"),
        ("psserver/rulespec.py", "np.load(path, allow_pickle=True)"),
        ("psserver/rulespec.py", "np.load(path, allow_pickle=flag)"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    """At the top or within a function, under any name."""
    found = faults(path, source)

    assert len(found) == 1
    assert found[0].startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pswire/errors.py", "import grpc\nfrom grpc_status import rpc_status"),
        ("psserver/grpcport.py", "import grpc\nfrom grpc_health.v1 import health"),
        ("psserver/cli/ask.py", "import click\nfrom pswire import status"),
        ("psworker/client.py", "from psworker.connection import Connection"),
        ("psserver/rules.py", "import optax.losses"),
        ("psserver/rulespec.py", "ast.literal_eval(text)\nmodel.eval()"),
        ("psserver/store.py", "np.load(path, allow_pickle=False)"),
    ],
)
def test_an_allowed_import_is_let_through(path: str, source: str) -> None:
    """A check that cried at everything would soon be ignored."""
    assert faults(path, source) == []


def test_proto_is_no_package() -> None:
    """The import name `proto` belongs to another distribution."""
    assert (ROOT / "proto").is_dir()
    assert not (ROOT / "proto" / "__init__.py").exists()
