"""Sinks by name, from packages that offer them, and the two that are shipped."""

import json
import struct
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

import psserver
from psserver.metrics.sinks import resolve
from psserver.metrics.tensorboard import Events
from pswire.counts import Counts, WorkerStatus

MakeSample = Callable[..., dict[str, Any]]
Install = Callable[[Mapping[str, str]], None]
StartServer = Callable[..., psserver.Server]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "webhook_sink.py"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package that offers sinks, as {name: "module:attribute"}."""

    def install(sinks: Mapping[str, str]) -> None:
        folder = tmp_path / "offers-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Name: offers\nVersion: 1.0\n")
        lines = [f"{name} = {target}" for name, target in sinks.items()]
        text = "\n".join(["[psserver.sinks]", *lines])
        (folder / "entry_points.txt").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.fixture
def posts() -> Iterator[tuple[str, list[Any]]]:
    """Run a tracker: its address, and what has been posted there."""
    bodies: list[Any] = []

    class Tracker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            bodies.append(json.loads(self.rfile.read(size)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Keep the tests' output clean."""

    with HTTPServer(("127.0.0.1", 0), Tracker) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", bodies
        server.shutdown()
        thread.join()


class Told:
    """A sink that keeps what it was made with."""

    def __init__(self, argument: str) -> None:
        self.argument = argument

    def write(self, sample: Mapping[str, Any]) -> None:
        """Take it."""

    def close(self) -> None:
        """Take no more."""


def fail(argument: str) -> None:
    """Make nothing."""
    raise RuntimeError(f"no {argument}")


@pytest.mark.parametrize(
    ("text", "argument"), [("told", ""), ("told=", ""), ("told=a=b, c", "a=b, c")]
)
def test_a_sink_is_made_with_the_text_after_its_name(
    install: Install, text: str, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the text is, it is the sink's to read."""
    monkeypatch.setitem(sys.modules, "offers", sys.modules[__name__])
    install({"told": "offers:Told"})

    sink = resolve(text)

    assert isinstance(sink, Told)
    assert sink.argument == argument


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tolt", "^sink: expected one of .*fails, .*told, got 'tolt'$"),
        ("fails=x", "^sink: expected fails to be made of 'x', got RuntimeError: no x$"),
        ("gone", "^sink: expected gone to be made of '', got AttributeError: .*Gone"),
        ("text", "^sink: expected text to make an object with write .*, got str$"),
    ],
)
def test_what_is_no_sink_is_refused(
    install: Install, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names it, and says what there is or what went wrong."""
    monkeypatch.setitem(sys.modules, "offers", sys.modules[__name__])
    install(
        {
            "told": "offers:Told",
            "fails": "offers:fail",
            "gone": "offers:Gone",
            "text": "builtins:str",
        }
    )

    with pytest.raises(ValueError, match=message):
        resolve(text)


def test_the_example_posts_the_figures_of_a_server(
    install: Install,
    posts: tuple[str, list[Any]],
    start_server: StartServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is offered by the very lines that it says to put into pyproject.toml."""
    url, bodies = posts
    spec = spec_from_file_location("webhook_sink", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setitem(sys.modules, "webhook_sink", example)
    lines = dedent(str(example.__doc__).partition("installed:\n")[2])
    assert lines.strip() in (ROOT / "docs" / "sinks.md").read_text()
    install(tomllib.loads(lines)["project"]["entry-points"]["psserver.sinks"])

    start_server(sinks=[resolve(f"webhook={url}")]).stop()

    last = bodies[-1]
    assert last == {"time": last["time"], "step": 0, "drop_rate": 0.0, "loss": None}


# TensorBoard


def _events(folder: Path) -> list[Event]:
    """Return what TensorBoard would read: length, check, event and check in turn."""
    (file,) = folder.iterdir()
    data, events = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert events.pop(0).file_version == "brain.Event:2"
    return events


def test_tensorboard_gets_the_figures_at_each_step(
    tmp_path: Path, make_sample: MakeSample
) -> None:
    """What is not known yet has no point; the time is that of the sample."""
    counts = Counts(applied=6, dropped=2)
    worker = WorkerStatus("a b", counts, consecutive_drops=0, last_seen_s=0.0)
    sink = Events(str(tmp_path))

    sink.write(make_sample(1.0))
    sink.write(
        make_sample(
            2.0,
            counts=counts,
            staleness={1: 6, 1000: 2},
            staleness_sum=2024,
            workers=(worker,),
            recent_drop_rate=0.5,
            steps_per_s=3.0,
            loss=0.25,
        )
    )
    sink.close()

    first, second = _events(tmp_path / "i")
    assert (first.step, first.wall_time) == (0, 1e9 + 1)
    assert {value.tag for value in first.summary.value} == {
        *("drop_rate", "steps_per_s", "applied", "dropped")
    }
    assert (second.step, second.wall_time) == (6, 1e9 + 2)
    assert {value.tag: value.simple_value for value in second.summary.value} == {
        "drop_rate": 0.25,
        "recent_drop_rate": 0.5,
        "steps_per_s": 3.0,
        "loss": 0.25,
        "applied": 6,
        "dropped": 2,
        "staleness_mean": 253.0,
        "drop_rate/a b": 0.25,
    }


def test_tensorboard_shows_each_start_as_a_run(
    tmp_path: Path, make_sample: MakeSample
) -> None:
    """Their steps would be mixed up in one."""
    for incarnation in ("first", "second"):
        sink = Events(str(tmp_path))
        sink.write(make_sample(1.0, incarnation=incarnation))
        sink.close()

    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["first", "second"]


def test_this_package_offers_tensorboard(tmp_path: Path, install: Install) -> None:
    """By the name that the documents say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    install(project["entry-points"]["psserver.sinks"])

    sink = resolve(f"tensorboard={tmp_path / 'runs'}")

    assert isinstance(sink, Events)
    assert (tmp_path / "runs").is_dir()


def test_without_its_extra_tensorboard_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to look for the package's name."""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)

    text = r'pip install "asyncps\[tensorboard\]"'
    with pytest.raises(ModuleNotFoundError, match=text):
        Events(str(tmp_path))
