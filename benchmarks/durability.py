"""What it costs that a model outlasts its server."""

from collections.abc import Iterator
from statistics import mean

from benchmarks import product
from benchmarks.figures import Burst, Claim, Series, at_most, interleave, p99
from benchmarks.processes import Child
from benchmarks.rig import Rig, lodge
from benchmarks.sites import MB, PATHS, SLOW_S, Model, Server

_MODELS = {
    "4 KB": Model(4000, 1, seconds=0.4, cycles=20),
    "1 MB": Model(MB, 10, seconds=0.4, cycles=5),
    "100 MB": Model(100 * MB, 20, seconds=0.8, cycles=3),
}
_MODES = ("", "checkpoint", "log")
_SAVED = Model(8 * MB, 10, seconds=3.0, cycles=100)
_PUSHERS = 16
_PUSHES_S = 1.0


def run(rig: Rig) -> Series:
    """Measure cycles in each mode, pushes beside a save, and many pushers' syncs."""
    worker = rig.worker()
    series: Series = {"one a push": [1.0]}
    for size, model in _MODELS.items():
        sites = [
            rig.site(_name(path, size, mode), model, worker, _serve(rig, mode))
            for mode in _MODES
            for path in PATHS
        ]
        for site in sites:
            site.join()
        bursts = [_synced(rig, size, model), *(site.cycle for site in sites)]
        series |= interleave(rig.effort.rounds, bursts)
    crowds = [_crowd(rig, worker, path) for path in PATHS]
    series |= interleave(rig.effort.few_rounds, crowds)
    saves = [_saving(rig, path, mode) for path in PATHS for mode in _MODES[1:]]
    return series | interleave(rig.effort.few_rounds, saves)


def claims() -> Iterator[Claim]:
    """Yield what is to be told."""
    for path in PATHS:
        for size in _MODELS:
            bare = f"{_name(path, size, '')} cycle"
            for mode in _MODES[1:]:
                yield Claim(f"{_name(path, size, mode)} cycle", bare)
            yield Claim(f"{_name(path, size, 'log')} cycle", _bare(size))
        yield Claim(f"{path}: syncs a push", "one a push", at_most(0.5), unit="")
        for mode in _MODES[1:]:
            name = f"{path}, 8 MB, {mode}"
            yield Claim(f"{name}: p99 beside a save", f"{name}: p99", at_most(3))


def _serve(rig: Rig, mode: str) -> Server:
    return lodge(rig.host(), "sgd", durability=mode or "none")


def _name(path: str, size: str, mode: str) -> str:
    return f"{path}, {size}" + (f", {mode}" if mode else "")


def _bare(size: str) -> str:
    return f"write and fdatasync of {size}"


def _synced(rig: Rig, size: str, model: Model) -> Burst:
    child = rig.disk()
    arguments = rig.effort.burst(model.seconds / 2, model.cycles)
    nbytes = rig.effort.nbytes(model.nbytes)
    return lambda: {_bare(size): mean(child.call("syncs", nbytes=nbytes, **arguments))}


def _crowd(rig: Rig, worker: Child, path: str) -> Burst:
    """Let many push at once, and count how often the log was synced."""
    site = rig.site(f"{path}, crowd", _MODELS["4 KB"], worker, _serve(rig, "log"))

    def run() -> dict[str, float]:
        site.join(warm_ups=1)
        before = product.durability(site.server.address)
        pushes = worker.call(
            "push_together",
            address=site.server.address,
            same_host=site.same_host,
            count=_PUSHERS,
            seconds=rig.effort.seconds(_PUSHES_S),
        )
        after = product.durability(site.server.address)
        return {f"{path}: syncs a push": (after.log_syncs - before.log_syncs) / pushes}

    return run


def _saving(rig: Rig, path: str, mode: str) -> Burst:
    """Time cycles, then cycles while one checkpoint after another is saved."""
    name = f"{path}, 8 MB, {mode}"
    site = rig.site(name, _SAVED, rig.worker(), _serve(rig, mode))
    burst = rig.effort.burst(_SAVED.seconds, _SAVED.cycles)

    def run() -> dict[str, float]:
        site.join()
        alone = site.run(site.worker, burst)
        site.worker.begin("cycles", seat=site.name, **burst)
        while not site.worker.has_answered():
            product.save(site.server.address)
        beside = site.worker.end(SLOW_S)
        return {f"{name}: p99": p99(alone), f"{name}: p99 beside a save": p99(beside)}

    return run
