"""How each case is run: who takes turns with whom. Every run returns its series."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from benchmarks.figures import Burst, Series, interleave, p99
from benchmarks.processes import Child, ChildError
from benchmarks.rig import Rig, lodge
from benchmarks.sites import MB, PATHS, Model, Site

_KB = 1000
_GB = 1000 * MB

_MODEL_4KB = Model(4 * _KB, 1, seconds=0.4, cycles=20)
_MODEL_1MB = Model(MB, 10, seconds=0.4, cycles=5)
_MODEL_100MB = Model(100 * MB, 20, seconds=0.8, cycles=3)
_MODEL_1GB = Model(_GB, 20, seconds=0, cycles=1)
_MODEL_2500MB = Model(2500 * MB, 20, seconds=0, cycles=1)
_MODEL_TAIL = replace(_MODEL_4KB, seconds=0, cycles=1000)

UNIX = "raw Unix socket, 4 KB each way"
TCP_4KB = "raw TCP, 4 KB each way"
TCP_1MB = "raw TCP, 1 MB each way"
TCP = "raw TCP, one way"
TCP_2500MB = "raw TCP, as many bytes"
UNARY_4KB = "bare unary gRPC, 4 KB each way"
UNARY_1MB = "bare unary gRPC, 1 MB each way"
COPY_100MB = "memcpy of 100 MB"
COPY_1GB = "memcpy of 1 GB"

WITH_METRICS = ", with metrics"
ONCE_MORE = ", once more"
_METRICS_TURNS = 8

_IDLE_WORKERS = 64
_IDLE_S = 3.0

# How many arrays each rule has to read or write at least; the triad has 3.
TRAFFIC = {"sgd": 3, "momentum": 5, "adam": 7}
_TRIAD_TRAFFIC = 3


def run_4kb(rig: Rig) -> Series:
    """Measure what a call costs."""
    worker, second = rig.worker(), rig.worker("second")
    sites = [rig.site(path, _MODEL_4KB, worker) for path in PATHS]
    limits = [
        rig.echo(UNIX, "unix", 4 * _KB),
        rig.echo(TCP_4KB, "tcp", 4 * _KB),
        rig.unary(UNARY_4KB, 4 * _KB),
    ]
    series = _cycles(rig.effort.rounds, limits, sites)
    return series | _peaks(sites) | rig.pairs(sites, second)


def run_1mb(rig: Rig) -> Series:
    """Measure what bytes in one message cost, and arrays."""
    worker, second = rig.worker(), rig.worker("second")
    sites = [rig.site(path, _MODEL_1MB, worker) for path in PATHS]
    more = []
    for name, count in (("1 array", 1), ("1000 arrays", 1000)):
        model = replace(_MODEL_1MB, count=count)
        server = rig.server(model)
        more += [rig.site(f"{p}, {name}", model, worker, server) for p in PATHS]
    limits = [rig.echo(TCP_1MB, "tcp", MB), rig.unary(UNARY_1MB, MB)]
    series = _cycles(rig.effort.rounds, limits, [*sites, *more])
    return series | _peaks(sites) | rig.pairs(sites, second)


def run_100mb(rig: Rig) -> Series:
    """Measure what a stream costs, and the rules."""
    worker, second = rig.worker(), rig.worker("second")
    sites = [rig.site(path, _MODEL_100MB, worker) for path in PATHS]
    more = []
    for rule in ("momentum", "adam"):
        model = replace(_MODEL_100MB, rule=rule)
        server = rig.server(model)
        more += [rig.site(f"{p}, {rule}", model, worker, server) for p in PATHS]
    limits = [rig.stream(TCP, 100 * MB), rig.copy(COPY_100MB, 100 * MB)]
    bursts = [*limits, sites[0].halves]
    series = _cycles(rig.effort.rounds, bursts, [*sites, *more])
    return series | _peaks(sites) | rig.pairs(sites, second)


def run_1gb(rig: Rig) -> Series:
    """Measure a large model: time and memory."""
    rig.require_memory(14 * _GB)
    rounds = rig.effort.few_rounds
    series: Series = {}
    # One after the other: both at once might not fit into the machine.
    for path in PATHS:
        site = rig.site(path, _MODEL_1GB, rig.worker())
        bursts = (
            [rig.stream(TCP, _GB), site.halves]
            if path == "gRPC"
            else [rig.copy(COPY_1GB, _GB)]
        )
        series |= _cycles(rounds, bursts, [site], warm_ups=1)
        series |= _peaks([site])
        rig.close(site)
    return series


def run_2500mb(rig: Rig) -> Series:
    """See whether a model passes whose bytes an int of 32 bits cannot count."""
    rig.require_memory(18 * _GB)
    rate = interleave(1, [rig.stream(TCP, 100 * MB)])[TCP][0]
    nbytes = rig.effort.nbytes(_MODEL_2500MB.nbytes)
    series: Series = {TCP_2500MB: [2 * nbytes / MB / rate], "a pass": [1.0]}
    for path in PATHS:
        site = rig.site(path, _MODEL_2500MB, rig.worker())
        start = time.perf_counter()
        try:
            site.join(warm_ups=0)
            start = time.perf_counter()
            site.run(site.worker, rig.effort.burst(0, 1))
            passes = 1.0
        except ChildError as error:
            print(f"{path}: {error}", file=sys.stderr)
            passes = 0.0
        series[f"{path}: a cycle passes"] = [passes]
        series[f"{path} cycle"] = [time.perf_counter() - start]
        rig.close(site)
    return series


def run_idle(rig: Rig) -> Series:
    """Measure what workers cost that do nothing."""
    worker, crowd = rig.worker(), rig.worker("second")
    server = rig.server(_MODEL_4KB)
    sites = [rig.site(path, _MODEL_4KB, worker, server) for path in PATHS]
    for site in sites:
        site.join()
    watched_s = rig.effort.seconds(_IDLE_S)
    bursts = [_idle(site, crowd, watched_s) for site in sites]
    rounds = rig.effort.few_rounds
    return interleave(rounds, bursts) | {"one core": [watched_s]}


def run_tail(rig: Rig) -> Series:
    """Measure what a small model suffers from a large one in its process."""
    worker, other = rig.worker(), rig.worker("second")
    host = rig.host()
    small, large = lodge(host, "sgd"), lodge(host, "sgd")
    bursts: list[Burst] = []
    for path in PATHS:
        measured = rig.site(path, _MODEL_TAIL, worker, small)
        loading = rig.site(path, _MODEL_100MB, other, large)
        measured.join()
        loading.join()
        bursts.append(_tail(rig, measured, loading))
    return interleave(rig.effort.few_rounds, bursts)


def run_metrics(rig: Rig) -> Series:
    """Measure what metrics cost: an open HTTP port, and a history on disk.

    A second server without them tells how far apart two that are equal seem to be.
    """
    worker = rig.worker()
    servers = {
        "": lodge(rig.host(), "sgd"),
        WITH_METRICS: lodge(rig.host(), "sgd", metrics=True),
        ONCE_MORE: lodge(rig.host(), "sgd"),
    }
    sites = [
        rig.site(path + what, _MODEL_4KB, worker, server)
        for path in PATHS
        for what, server in servers.items()
    ]
    for site in sites:
        site.join()
    # It is a difference of little: many short turns find it sooner than few long ones.
    rounds = rig.effort.rounds * (1 if rig.effort.quick else _METRICS_TURNS)
    return interleave(rounds, [site.cycle for site in sites])


def run_rules(rig: Rig) -> Series:
    """Measure the rules alone, each in a process of its own."""
    model = {"nbytes": rig.effort.nbytes(100 * MB), **rig.effort.burst(0.4, 3)}
    bare = rig.memory()

    def triad() -> dict[str, float]:
        seconds = mean(bare.call("triads", **model))
        return {
            at_triad_rate(rule): seconds * arrays / _TRIAD_TRAFFIC
            for rule, arrays in TRAFFIC.items()
        }

    def step(rule: str) -> Burst:
        child = rig.memory()
        arguments = {"rule": rule, "count": _MODEL_100MB.count, **model}
        return lambda: {f"{rule} of 100 MB": mean(child.call("steps", **arguments))}

    return interleave(rig.effort.rounds, [triad, *(step(rule) for rule in TRAFFIC)])


def at_triad_rate(rule: str) -> str:
    """Name the time that a rule's traffic takes at the rate of the triad."""
    return f"{TRAFFIC[rule]} x 100 MB, as fast as the triad"


def _cycles(
    rounds: int, bursts: Sequence[Burst], sites: Sequence[Site], warm_ups: int = 5
) -> Series:
    for site in sites:
        site.join(warm_ups=warm_ups)
    return interleave(rounds, [*bursts, *(site.cycle for site in sites)])


def _peaks(sites: Sequence[Site]) -> Series:
    return {name: values for site in sites for name, values in site.peak().items()}


def _idle(site: Site, crowd: Child, watched_s: float) -> Burst:
    name, server = site.name, site.server

    def run() -> dict[str, float]:
        alone_s = server.watch_cpu(watched_s)
        alone = site.cycle()
        crowd.call(
            "gather",
            address=server.address,
            same_host=site.same_host,
            count=_IDLE_WORKERS,
        )
        beside_s = server.watch_cpu(watched_s)
        beside = site.cycle()
        crowd.call("disperse")
        return {
            f"{name}: idle server's CPU": alone_s,
            f"{name}: server's CPU with 64 idle workers": beside_s,
            f"{name} cycle": alone[f"{name} cycle"],
            f"{name} cycle beside 64 idle workers": beside[f"{name} cycle"],
        }

    return run


def _tail(rig: Rig, measured: Site, loading: Site) -> Burst:
    burst = rig.effort.burst(_MODEL_TAIL.seconds, _MODEL_TAIL.cycles)
    name = measured.name

    def run() -> dict[str, float]:
        idle = measured.run(measured.worker, burst)
        loading.worker.call("start_load", seat=loading.name)
        loaded = measured.run(measured.worker, burst)
        if not loading.worker.call("halt_load"):
            raise ChildError(f"{name}: expected cycles of 100 MB beside it, got none")
        return {
            f"{name}: p99 of a 4 KB cycle": p99(idle),
            f"{name}: p99 beside 100 MB cycles": p99(loaded),
            f"{name}: mean of a 4 KB cycle": mean(idle),
            f"{name}: mean beside 100 MB cycles": mean(loaded),
        }

    return run
