"""The live page in a real browser: what it shows is what the server has counted."""

import base64
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import psserver
import psworker
from psserver import admin
from pswire.errors import NonFiniteError

StartServer = Callable[..., psserver.Server]
Serve = Callable[..., psserver.Server]
Push = Callable[..., None]
Join = Callable[[psserver.Server, str], Push]
Look = Callable[[int, str], None]

_TIMEOUT_S = 30.0
_UNKNOWN = "\N{EN DASH}"


class Browser:
    """A headless Chromium with one tab, spoken to by its own protocol over pipes."""

    def __init__(self, program: str, home: Path) -> None:
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash"),
                *(program, "--headless=new", "--remote-debugging-pipe"),
                # Nothing but this project's own page is ever opened.
                *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--disable-background-networking", "--no-first-run"),
                f"--user-data-dir={home}",
            ],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._waiting: dict[int, Future[Any]] = {}
        self._listener = threading.Thread(target=self._listen, name="test browser")
        self._listener.start()
        self.complaints: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the DevTools protocol, and return its result."""
        number = len(self._waiting)
        answer = self._waiting[number] = Future[Any]()
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return answer.result(_TIMEOUT_S)

    def evaluate(self, expression: str) -> Any:
        """Return what an expression comes to in the page, once it is settled."""
        found = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a condition holds in the page, which is asked at each change."""
        held = self.evaluate(
            f"""new Promise((resolve) => {{
                const holds = () => Boolean({condition});
                if (holds()) return resolve(true);
                const observer = new MutationObserver(() => holds() && end(true));
                const late = setTimeout(() => end(false), {_TIMEOUT_S / 2 * 1000});
                const end = (held) => {{
                    observer.disconnect();
                    clearTimeout(late);
                    resolve(held);
                }};
                observer.observe(document, {{
                    attributes: true, characterData: true, childList: true,
                    subtree: true,
                }});
            }})"""
        )
        assert held, f"{condition}; {self.evaluate('document.body.innerText')}"

    def screenshot(self) -> bytes:
        """Return a PNG of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(_TIMEOUT_S)
        self._listener.join()
        os.close(self._out)

    def _listen(self) -> None:
        with open(self._in, "rb") as pipe:
            rest = b""
            while chunk := pipe.read1():
                *messages, rest = (rest + chunk).split(b"\0")
                for message in messages:
                    self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            answer = self._waiting[message["id"]]
            if "error" in message:
                answer.set_exception(RuntimeError(message["error"]["message"]))
            else:
                answer.set_result(message["result"])
        elif message["method"] in (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
        ):
            self.complaints.append(json.dumps(message["params"]))


# The server's side


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start the browser, once for all tests."""
    program = shutil.which("chromium")
    if program is None:
        assert not os.environ.get("REQUIRE_TOOLS"), "chromium is not installed"
        pytest.skip("chromium is not installed")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Lend the browser for a test, in which the console has to stay silent."""
    chromium.complaints.clear()
    yield chromium
    chromium.call("Page.navigate", url="about:blank")
    assert chromium.complaints == []


@pytest.fixture
def serve(start_server: StartServer) -> Callable[..., psserver.Server]:
    """Start servers with a page, whose limit is 2 steps."""
    return lambda **settings: start_server(
        **{"max_staleness": 2, "http_port": 0, **settings}
    )


@pytest.fixture
def join() -> Iterator[Join]:
    """Join workers that leave with the test; each pushes by (step read, loss)."""
    with ExitStack() as stack:

        def join(server: psserver.Server, name: str) -> Push:
            made = psworker.connect(server.address, name=name, same_host=False)
            client = stack.enter_context(made)
            client.initialize({"w": np.zeros(2, np.float32)})

            def push(step_read: int, loss: float, gradient: float = 1e-3) -> None:
                gradients = {"w": np.full(2, gradient, np.float32)}
                client.push(gradients, step_read=step_read, value=loss)

            return push

        yield join


def train(server: psserver.Server, join: Join) -> None:
    """Make 40 pushes of one worker be applied, and the 10 of another be dropped."""
    fast, slow = join(server, "fast"), join(server, "slow")
    for step in range(40):
        fast(step, loss=1.0 / (1 + step))
    for age in range(10):
        slow(40 - 3 - age, loss=2.0)


def visit(browser: Browser, server: psserver.Server) -> None:
    """Open a server's page, and wait until it shows all that was counted."""
    browser.call("Page.navigate", url=server.http_address)
    counts = server.status().counts
    browser.wait(
        f"""document.readyState === "complete"
        && document.getElementById("step").textContent === "{counts.applied}"
        && document.getElementById("others").innerText.includes("Rejected")"""
    )


def texts(browser: Browser, selector: str) -> list[str]:
    """Return the text of all elements that match, without that of hidden ones."""
    return browser.evaluate(
        f"""[...document.querySelectorAll({json.dumps(selector)})]
            .map((found) => found.innerText.trim())"""
    )


# What it shows


def test_the_page_shows_what_the_server_has_counted(
    browser: Browser, serve: Serve, join: Join
) -> None:
    """Every figure that does not pass with time, for all and for each worker."""
    server = serve(rule_name="sgd(learning_rate=1)")
    train(server, join)
    with pytest.raises(NonFiniteError):
        join(server, "odd")(40, loss=1.0, gradient=np.nan)

    visit(browser, server)

    status = server.status()
    assert (status.counts.applied, status.counts.dropped) == (40, 10)
    for name, shown in {
        "step": "40",
        "drop_rate": "20.0%",
        "active": "2 of 3",
        "rule": "sgd(learning_rate=1)",
        "limit": "2 steps",
        "initialized": "initialized",
        "kept": "nothing",
        "generation": status.generation,
    }.items():
        assert texts(browser, f"#{name}") == [shown], name
    rows = [texts(browser, f"#workers tr:nth-child({n}) > *") for n in (1, 2, 3)]
    assert [[*row[:5], *row[6:9]] for row in rows] == [
        ["slow", "starved", "100.0%", "10", "10", "0", "10", "2"],
        ["fast", "active", "0.0%", "0", "0", "40", "0", "0.025"],
        ["odd", "active", _UNKNOWN, "0", "0", "0", "0", _UNKNOWN],
    ]
    others = texts(browser, "#others > div")
    assert [" ".join(other.split()) for other in others] == [
        "Duplicates 0",
        "Rejected 1",
        "NON_FINITE 1",
        "Of callers that never joined or are forgotten 0",
    ]
    bars = browser.evaluate(
        """[...document.querySelectorAll(".bar")].map((bar) =>
            [bar.title, bar.classList.contains("over")])"""
    )
    assert bars == [
        ["0 steps: 40 pushes", False],
        *[[f"{age} steps: 0 pushes", False] for age in (1, 2)],
        *[[f"{age} steps: 1 pushes", True] for age in range(3, 13)],
    ]


def test_the_page_follows_the_run(browser: Browser, serve: Serve, join: Join) -> None:
    """Without being asked to; the curves are drawn in their colours."""
    server = serve()
    visit(browser, server)
    assert texts(browser, "#drop_rate") == [_UNKNOWN]

    train(server, join)

    browser.wait("document.getElementById('drop_rate').textContent === '20.0%'")
    assert texts(browser, "#step") == ["40"]
    assert texts(browser, "#recent_drop_rate") == ["20.0%"]
    assert texts(browser, "#starved") == [
        "Starved, nearly all recent pushes dropped: slow"
    ]
    assert drawn(browser) == [True, True, True]


def drawn(browser: Browser) -> list[bool]:
    """Say of each chart whether its first line's colour is among its pixels."""
    return browser.evaluate(
        """[["--drop", 0], ["--accent", 1], ["--accent", 2]].map(([name, index]) => {
            const style = getComputedStyle(document.documentElement);
            const hex = style.getPropertyValue(name).trim();
            const wanted = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
            const canvas = document.querySelectorAll("canvas")[index];
            const { data } = canvas.getContext("2d")
                .getImageData(0, 0, canvas.width, canvas.height);
            for (let i = 0; i < data.length; i += 4) {
                if (wanted.every((value, j) => data[i + j] === value)) return true;
            }
            return false;
        })"""
    )


def test_a_name_is_only_text(browser: Browser, serve: Serve, join: Join) -> None:
    """A worker may call itself whatever it likes."""
    server = serve()
    name = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    join(server, name)(0, loss=1.0)

    visit(browser, server)

    assert texts(browser, "#workers th") == [name]
    assert texts(browser, "main img, main script") == []


def test_a_thousand_workers_are_shown_in_part(
    browser: Browser, serve: Serve, join: Join
) -> None:
    """The starved ones and those that lose most, and how many are not shown."""
    server = serve()
    join(server, "one")(0, loss=1.0)
    visit(browser, server)

    shown = browser.evaluate(
        """fetch("status.json").then((answer) => answer.json()).then((status) => {
            const [one] = status.workers;
            status.workers = Array.from({ length: 1000 }, (_, i) => ({ ...one,
                name: `w${i}`, dropped: i, drop_rate: i / 1000,
                state: i === 7 ? "starved" : "active" }));
            view.show(status, { time: [], recentDropRate: [], dropRate: [],
                stepRate: [], loss: [] });
            return [...document.querySelectorAll("#workers th")]
                .map((name) => name.textContent)
                .concat(document.getElementById("workers-note").textContent);
        })"""
    )

    *names, note = shown
    assert names == ["w7", *(f"w{i}" for i in range(801, 1000))]
    assert note.startswith("800 more workers left out: ")


def test_a_policy_and_a_name_are_shown(
    browser: Browser, serve: Serve, join: Join
) -> None:
    """The limit of now, what it can become at most, and how much pushes counted."""
    server = serve(name="lab", max_staleness=9, staleness_policy="adaptive:1,0,4")
    train(server, join)
    visit(browser, server)
    adaptive = texts(browser, "#limit")
    admin.change(server.address, {"staleness_policy": "inverse"})
    join(server, "late")(36, loss=1.0)
    visit(browser, server)

    assert adaptive == ["4 steps now, 9 at most, policy adaptive:1,0,4"]
    assert texts(browser, "#limit") == ["9 steps, policy inverse"]
    assert texts(browser, "#name") == ["lab"]
    assert browser.evaluate("document.title").endswith(" dropped · lab")
    told = (
        "41 pushes applied, at a mean factor of 0.98, 10 dropped at limits that have "
    )
    assert told in " ".join(texts(browser, "#charts"))
    assert browser.evaluate("document.querySelectorAll('.bar.over').length") == 0


def test_who_waits_for_its_turn_is_shown(
    browser: Browser, serve: Serve, join: Join
) -> None:
    """Where nothing worse is the matter."""
    server = serve()
    join(server, "one")(0, loss=1.0)
    visit(browser, server)

    told = browser.evaluate(
        """fetch("status.json").then((answer) => answer.json()).then((status) => {
            const [one] = status.workers;
            status.workers = ["active", "starved"].map(
                (state) => ({ ...one, name: state, waiting: true, state }));
            view.show(status, { time: [], recentDropRate: [], dropRate: [],
                stepRate: [], loss: [] });
            return [...document.querySelectorAll("#workers td:nth-child(2)")]
                .map((state) => state.textContent);
        })"""
    )

    assert told == ["starved", "waiting"]


def test_what_is_dropped_for_its_groups_is_told_so(
    browser: Browser, serve: Serve, join: Join
) -> None:
    """No limit has changed."""
    server = serve(max_staleness=30, staleness_policy="groups:*=4")
    train(server, join)
    visit(browser, server)

    told = " ".join(texts(browser, "#charts"))

    assert re.search(r"pushes applied, \d+ dropped at the limits of groups; ", told)


def test_any_number_of_ages_can_be_drawn(browser: Browser, serve: Serve) -> None:
    """More than a function takes arguments."""
    visit(browser, serve())

    oldest = browser.evaluate(
        """(() => {
            const ages = Array.from({ length: 200000 }, (_, age) => [age, 1]);
            const staleness = Object.fromEntries(ages);
            view.show({ staleness, limit: 8, limit_now: 8, applied: 200000, dropped: 0,
                workers: [], rejected: {}, unjoined: {}, durability: {} },
                { time: [], stepRate: [], recentDropRate: [], dropRate: [], loss: [] });
            return charts.gather(staleness, 8).at(-1).last;
        })()"""
    )

    assert oldest >= 199_999


def test_a_fault_of_the_page_is_told_as_such(browser: Browser, serve: Serve) -> None:
    """On the console; the server is not taken to be away, and the page goes on."""
    visit(browser, serve())

    message = browser.evaluate(
        """new Promise((resolve) => {
            const show = view.show;
            addEventListener("error", (event) => resolve(event.message));
            view.show = () => {
                view.show = show;
                throw new Error("drawn wrong");
            };
        })"""
    )

    assert message.endswith("drawn wrong")
    assert texts(browser, "#connection") == ["live"]
    browser.evaluate("document.getElementById('step').replaceChildren()")
    browser.wait("document.getElementById('step').textContent === '0'")
    assert "drawn wrong" in browser.complaints.pop()


# When the server goes


def test_the_page_sees_a_server_go_and_another_come(
    browser: Browser, serve: Serve, join: Join
) -> None:
    """It says since when, and goes on with figures and curves of the new one alone."""
    first = serve()
    train(first, join)
    visit(browser, first)
    http_port = urlsplit(first.http_address or "").port

    first.stop()
    browser.wait("document.body.classList.contains('away')")
    away = texts(browser, "#connection")
    assert texts(browser, "#step") == ["40"]
    second = serve(http_port=http_port)
    browser.wait("!document.getElementById('restarted').hidden")
    join(second, "anew")(0, loss=1.0)
    browser.wait("document.getElementById('workers').innerText.includes('anew')")

    assert re.fullmatch(r"no answer since \d\d:\d\d:\d\d", away[0])
    assert texts(browser, "#connection") == ["live"]
    (news,) = texts(browser, "#restarted")
    assert re.fullmatch(
        r"The server has restarted at [\d:]+: what no checkpoint had is lost\.", news
    )
    assert texts(browser, "#step") == ["1"]
    assert texts(browser, "#workers th") == ["anew"]
    assert "since the start" in texts(browser, "figure:nth-of-type(2) .summary")[0]
    fetched = browser.evaluate(
        """performance.getEntriesByType("resource")
            .filter((entry) => entry.name.endsWith("/history.json")).length"""
    )
    assert fetched == 2
    # A browser itself complains of a server that is away, and of nothing else.
    assert all("ERR_CONNECTION" in complaint for complaint in browser.complaints)
    browser.complaints.clear()


def test_a_server_that_goes_on_makes_no_jump(
    browser: Browser, serve: Serve, join: Join, tmp_path: Path
) -> None:
    """What it had counted before is where its curves begin, not their first step."""
    kept = {"durability": "checkpoint", "data_dir": tmp_path / "data"}
    first = serve(**kept)
    train(first, join)
    visit(browser, first)
    assert texts(browser, "#kept")[0].startswith("checkpoint of step 0, ")
    first.stop()
    browser.evaluate(
        """void (({ show }) => {
            view.show = (status, curves) => show(status, window.shown = curves);
        })(view)"""
    )

    second = serve(http_port=urlsplit(first.http_address or "").port, **kept)
    browser.wait("!document.getElementById('restarted').hidden")
    join(second, "anew")(40, loss=1.0)
    browser.wait("document.getElementById('step').textContent === '41'")

    (news,) = texts(browser, "#restarted")
    assert re.fullmatch(r"The server has restarted at [\d:]+: no step is lost\.", news)
    assert texts(browser, "#kept")[0].startswith("checkpoint of step 40, ")
    fastest, steps = browser.evaluate(
        """(({ time, stepRate, meanStepRate }) => [Math.max(...stepRate),
            meanStepRate * (time.at(-1) - time[0])])(window.shown)"""
    )
    assert fastest <= 1
    assert round(steps) == 1
    browser.complaints.clear()  # Of a server that is away.


def test_what_outlasts_the_server_is_told_and_what_is_wrong_with_it_aloud(
    browser: Browser, serve: Serve, join: Join
) -> None:
    """Checkpoints that could not be saved, or were corrupt."""
    server = serve()
    join(server, "one")(0, loss=1.0)
    visit(browser, server)

    told = browser.evaluate(
        """fetch("status.json").then((answer) => answer.json()).then((status) => {
            const kept = { saved_step: 1200, saved_s: 34.5, failures: 0, corrupt: 0 };
            const first = { saved_step: null, saved_s: null };
            return [{ mode: "none" }, { mode: "log" }, { mode: "checkpoint" },
                { mode: "checkpoint", ...first }, { mode: "log", failures: 1 },
                { mode: "log", corrupt: 1 }].map((told) => {
                status.step = 1201;
                status.durability = { ...kept, ...told };
                view.show(status, { time: [], recentDropRate: [], dropRate: [],
                    stepRate: [], loss: [] });
                return ["kept", "unsaved", "corrupt"].map((id) =>
                    document.getElementById(id)).map((place) =>
                    place.hidden ? "" : place.textContent);
            });
        })"""
    )

    whole = "log, all 1,201 steps; checkpoint of step 1,200, 34 s old"
    unsaved = "1 checkpoint could not be saved: see the server's log."
    corrupt = "The server went on from an older checkpoint: 1 set aside as corrupt."
    assert told == [
        ["nothing", "", ""],
        [whole, "", ""],
        ["checkpoint of step 1,200, 34 s old; 1 step at risk", "", ""],
        ["no checkpoint yet; 1,201 steps at risk", "", ""],
        [whole, unsaved, ""],
        [whole, "", corrupt],
    ]


# Who looks at it


def test_everything_has_a_name(browser: Browser, serve: Serve, join: Join) -> None:
    """As a screen reader finds it: landmarks, figures with a summary, a table."""
    server = serve()
    train(server, join)
    visit(browser, server)

    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]

    found: dict[str, list[tuple[str, str]]] = {}
    for node in nodes:
        if not node["ignored"]:
            name, role, description = (
                node.get(key, {}).get("value", "")
                for key in ("name", "role", "description")
            )
            found.setdefault(role.lower(), []).append((name, description))
    assert {"main", "banner", "heading", "status"} <= found.keys()
    figures = dict(found["figure"])
    assert list(figures) == [
        "Drop rate",
        "Steps per second",
        "Loss",
        "Staleness, in steps",
    ]
    assert figures["Drop rate"].endswith("20.0% of all.")
    assert "at a limit of 2 steps" in figures["Staleness, in steps"]
    assert "Workers" in dict(found["region"])
    assert len(found["columnheader"]) == 10
    assert [name for name, _ in found["rowheader"]] == ["slow", "fast"]
    for role in ("region", "figure", "heading", "columnheader", "rowheader", "link"):
        assert all(name for name, _ in found.get(role, [])), role
    assert not {"img", "image", "canvas", "button", "textbox"} & found.keys()


def test_the_news_is_not_chatty(browser: Browser, serve: Serve, join: Join) -> None:
    """What is read aloud changes with an event, not with each second."""
    server = serve()
    train(server, join)
    visit(browser, server)

    changed = browser.evaluate(
        """new Promise((resolve) => {
            const changed = [];
            const watch = new MutationObserver(() => changed.push("aloud"));
            for (const place of document.querySelectorAll("[role=status]")) {
                watch.observe(place, { attributes: true, characterData: true,
                    childList: true, subtree: true });
            }
            const uptime = document.getElementById("uptime");
            let seconds = 0;
            new MutationObserver(() => (seconds += 1) === 2 && resolve(changed))
                .observe(uptime, { childList: true });
        })"""
    )

    assert changed == []


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., None]]:
    """Make the window another, in width and in colours, for a test."""

    def look(width: int, scheme: str) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1}
        is_phone = width < 600
        browser.call("Emulation.setDeviceMetricsOverride", **size, mobile=is_phone)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.call("Emulation.setEmulatedMedia", features=[feature])

    yield look
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(
    width: int, browser: Browser, serve: Serve, join: Join, look: Look
) -> None:
    """Not on a phone, not for long names: the table scrolls in its own box."""
    look(width, "light")
    server = serve(rule_name="a" * 100)
    train(server, join)
    join(server, "x" * 100)

    visit(browser, server)

    sizes = browser.evaluate(
        """[document.documentElement.scrollWidth,
            ...[...document.querySelectorAll("canvas, .picture, figure, .card, dd")]
                .map((found) => Math.ceil(found.getBoundingClientRect().right))]"""
    )
    assert max(sizes) <= width
    box = browser.evaluate(
        """(({ scrollWidth, clientWidth }) => scrollWidth > clientWidth)(
            document.querySelector(".scroll"))"""
    )
    assert box == (width == 360)


@pytest.mark.parametrize(
    ("scheme", "least", "most"), [("light", 0.8, 1.0), ("dark", 0.0, 0.05)]
)
def test_every_text_can_be_read(
    scheme: str,
    least: float,
    most: float,
    browser: Browser,
    serve: Serve,
    join: Join,
    look: Look,
) -> None:
    """Light or dark as the reader has it, and 4.5 to 1 against what is behind it."""
    look(1280, scheme)
    server = serve()
    train(server, join)
    visit(browser, server)

    background, contrasts = browser.evaluate(_CONTRAST)

    assert least <= background <= most
    assert len(contrasts) > 50
    assert [found for found in contrasts if found[1] < 4.5] == []


_CONTRAST = """(() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const linear = (value) => (value <= 0.04045 ? value / 12.92
        : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = (colour) => {
        const [r, g, b] = parts(colour).map((value) => linear(value / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return (parts(colour)[3] ?? 1) > 0 ? colour : behind(element.parentElement);
    };
    const texts = [...document.querySelectorAll("body *")].filter((element) =>
        [...element.childNodes].some((node) => node.nodeType === 3
            && node.data.trim()) && element.checkVisibility());
    return [luminance(behind(document.body)), texts.map((element) => {
        const both = [getComputedStyle(element).color, behind(element)].map(luminance);
        return [element.textContent,
            (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)];
    })];
})()"""


# Bars


def test_bars_add_up_and_none_crosses_the_limit(browser: Browser, serve: Serve) -> None:
    """Whatever the limit and however old the oldest push; they are few."""
    visit(browser, serve())

    faults = browser.evaluate(
        """(() => {
            const faults = [];
            const limits = [null, -1, 0, 1, 2, 8, 23, 24, 99, 100, 999]
                .map((limit) => [limit, limit]);
            limits.push([1000, 1009], [1204, 1209], [5009, 5009], [12345, 12399]);
            for (const worst of [0, 1, 5, 22, 23, 24, 47, 100, 1000, 1990, 56700]) {
                for (const [limit, end] of limits) {
                    const staleness = Object.fromEntries(
                        [0, worst >> 1, worst].map((steps) => [steps, 1 + steps]));
                    const pushes = Object.values(staleness).reduce((a, b) => a + b);
                    const bars = charts.gather(staleness, limit);
                    const sum = bars.reduce((all, bar) => all + bar.pushes, 0);
                    const right = bars.length <= 24 && sum === pushes
                        && bars[0].first === 0 && bars.at(-1).last >= worst
                        && bars.every(({ first, last }, i) => first <= last
                            && (i === 0 || first === bars[i - 1].last + 1))
                        && bars.every(({ first, last, over }) => limit === null
                            ? !over : over ? first > limit : last <= end);
                    if (!right) faults.push([worst, limit, bars]);
                }
            }
            return faults;
        })()"""
    )

    assert faults == []


@pytest.mark.parametrize(
    ("limit", "dropped", "parts"),
    [
        *((999, 7, True), (999, 6, False)),
        *((1204, n, 2 <= n <= 6) for n in range(1, 8)),
        *((1209, 2, True), (1209, 3, False)),
    ],
)
def test_a_limit_of_very_many_steps_parts_pushes_as_far_as_is_known(
    browser: Browser, serve: Serve, limit: int, dropped: int, parts: bool
) -> None:
    """Of 1,000 steps on the server keeps three digits, so 1200 may be over 1204."""
    visit(browser, serve())
    staleness = {"3": 5, "1000": 1, "1200": 4, "1210": 2}

    found = browser.evaluate(
        f"charts.parting({json.dumps(staleness)}, {limit}, {dropped})"
    )

    assert found == (limit if parts else None)


def test_bars_hold_what_their_labels_say(browser: Browser, serve: Serve) -> None:
    """Also where what is counted has lost its last digits."""
    visit(browser, serve())

    misplaced = browser.evaluate(
        """(() => {
            const ages = Array.from({ length: 250 },
                (_, n) => (n < 100 ? 9 * n : 10 * n));
            const staleness = Object.fromEntries(ages.map((age) => [age, 1]));
            return charts.gather(staleness, 8).filter((bar) => bar.pushes
                !== ages.filter((age) => age >= bar.first
                    && age + (age < 1000 ? 0 : 9) <= bar.last).length);
        })()"""
    )

    assert misplaced == []
