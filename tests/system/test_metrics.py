"""What Prometheus reads of a server is true, while it is hard at work too."""

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import psserver
import psworker
from pswire.errors import NonFiniteError

Metrics = dict[tuple[str, ...], float]
Scrape = Callable[[psserver.Server], Metrics]
StartServer = Callable[..., psserver.Server]
Connect = Callable[..., psworker.Client]

_WORKERS = 4
_PUSHES = 60
_SCRAPES = 10
_GOOD = {"w": np.ones(8, np.float32)}
_BAD = {"w": np.full(8, np.nan, np.float32)}


def _totals(metrics: Metrics, name: str, which: int) -> Counter[str]:
    """Add a metric's samples up by one of their labels, that of a number."""
    totals: Counter[str] = Counter()
    for (of, *labels), value in metrics.items():
        if of == name:
            totals[labels[which]] += int(value)
    return totals


def _work(client: psworker.Client, scraped: threading.Event) -> Counter[str]:
    """Push, each fifth time what is rejected; pull too seldom for a limit of 4.

    It goes on until there have been scrapes enough.
    """
    told: Counter[str] = Counter()
    for number in itertools.count():
        if number >= _PUSHES and scraped.is_set():
            break
        if number % 3 == 0:
            snapshot = client.pull()
        try:
            verdict = client.push(_BAD if number % 5 == 4 else _GOOD, snapshot)
            told["applied" if verdict.applied else "dropped"] += 1
        except NonFiniteError:
            told["rejected"] += 1
    return told


def test_the_sums_agree_at_every_scrape_while_pushes_run(
    start_server: StartServer, connect: Connect, scrape: Scrape
) -> None:
    """Workers and totals, staleness and outcomes, step and applied pushes.

    In the end every count is that of the clients' own books.
    """
    server = start_server(max_staleness=4, http_port=0)
    clients = [connect(server.address, name=f"w{n}") for n in range(_WORKERS)]
    clients[0].initialize({"w": np.zeros(8, np.float32)})
    seen: list[Metrics] = []
    scraped = threading.Event()
    with ThreadPoolExecutor(_WORKERS) as pool:
        runs = [pool.submit(_work, client, scraped) for client in clients]
        try:
            seen += [scrape(server) for _ in range(_SCRAPES)]
        finally:
            scraped.set()
        books = [run.result() for run in runs]
    seen.append(scrape(server))

    for metrics in seen:
        by_outcome = _totals(metrics, "asyncps_pushes_total", 0)
        assert _totals(metrics, "asyncps_worker_pushes_total", 0) == by_outcome
        judged = by_outcome["applied"] + by_outcome["dropped"]
        assert metrics["asyncps_staleness_steps_count",] == judged
        workers = _totals(metrics, "asyncps_worker_staleness_steps_count", 0)
        assert workers.total() == judged
        for bound, number in _totals(
            metrics, "asyncps_staleness_steps_bucket", 0
        ).items():
            name = "asyncps_worker_staleness_steps_bucket"
            assert _totals(metrics, name, 0)[bound] == number
        assert metrics["asyncps_step",] == by_outcome["applied"]
        ratio = by_outcome["dropped"] / judged if judged else 0
        assert metrics["asyncps_drop_ratio",] == ratio
    last = seen[-1]
    for number, book in enumerate(books):
        for outcome, pushes in book.items():
            key = ("asyncps_worker_pushes_total", outcome, f"w{number}")
            assert last[key] == pushes
    assert sum(books, Counter()) == +_totals(last, "asyncps_pushes_total", 0)
    assert last["asyncps_push_lock_seconds_count",] == sum(
        book["applied"] + book["dropped"] for book in books
    )


def test_calls_are_timed_and_their_bytes_counted(
    start_server: StartServer, connect: Connect, scrape: Scrape, same_host: bool
) -> None:
    """Under the path that they came by, with the status that they ended with."""
    server = start_server(max_staleness=0, http_port=0)
    client = connect(server.address)
    large = {"w": np.ones(100_000, np.float32)}
    client.initialize(large)
    snapshot = client.pull()
    for _ in range(2):
        client.push(large, snapshot)
    with pytest.raises(NonFiniteError, match=r"^w: "):
        client.push({"w": np.full(100_000, np.inf, np.float32)}, client.pull())

    metrics = scrape(server)

    path = "samehost" if same_host else "grpc"
    counts = {
        key[1:]: n for key, n in metrics.items() if key[0].endswith("rpc_seconds_count")
    }
    assert counts["OK", "Push", path] == 2
    assert counts["INVALID_ARGUMENT", "Push", path] == 1
    assert counts["OK", "Pull", path] == 2
    assert counts["OK", "Join", "grpc"] >= 1
    nbytes = large["w"].nbytes
    received = metrics["asyncps_received_bytes_total", "Push", path]
    assert 3 * nbytes < received < 3 * nbytes + 1000
    assert 2 * nbytes < metrics["asyncps_sent_bytes_total", "Pull", path] < 2.1 * nbytes
    assert metrics["asyncps_push_compute_seconds_count",] == 2
    assert metrics["asyncps_push_wire_seconds_count",] == 2
    assert metrics["asyncps_push_apply_seconds_count",] == 1


def test_streams_are_calls_too(
    start_server: StartServer, connect: Connect, scrape: Scrape, same_host: bool
) -> None:
    """Timed as a whole, and every piece of them counted."""
    server = start_server(http_port=0)
    client = connect(server.address)
    large = {"w": np.ones(1_500_000, np.float32)}  # More than one message carries.
    client.initialize(large)
    client.exchange(large, client.pull())

    metrics = scrape(server)

    path, method = ("samehost", "Exchange") if same_host else ("grpc", "ExchangeStream")
    assert metrics["asyncps_rpc_seconds_count", "OK", method, path] == 1
    for way in ("received", "sent"):
        assert 6e6 < metrics[f"asyncps_{way}_bytes_total", method, path] < 6.01e6
