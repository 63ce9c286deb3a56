"""Tables: what a thousand rows cost, of ten thousand and of ten million."""

from collections.abc import Iterator

from benchmarks.figures import Claim, Series, at_most, interleave
from benchmarks.product import ROW_NBYTES
from benchmarks.rig import Rig
from benchmarks.sites import PATHS, SLOW_S, Model

_FEW, _MANY = "10 thousand rows", "10 million rows"
_TABLES = {_FEW: 10**4, _MANY: 10**7}
_MOST_NBYTES = 4 * 10**9  # The table with its slots, and once more where it is made.


def run(rig: Rig) -> Series:
    """Measure a pull and a push of as many rows of a small table and a large one."""
    rig.require_memory(_MOST_NBYTES)
    worker = rig.worker()
    sites = []
    for name, count in _TABLES.items():
        model = Model(count * ROW_NBYTES, 1, seconds=0.5, cycles=20, rule="adam")
        server = rig.server(model)
        for path in PATHS:
            site = rig.site(f"{path}, {name}", model, worker, server)
            worker.call(
                "join_table",
                seat=site.name,
                address=server.address,
                same_host=site.same_host,
                rows=site.nbytes // ROW_NBYTES,
                timeout_s=SLOW_S,
            )
            sites.append(site)
    for site in sites:
        site.cycle()  # Does not count: the rule is compiled, pages are taken.
    return interleave(rig.effort.rounds, [site.cycle for site in sites])


def claims() -> Iterator[Claim]:
    """Yield what a large table is measured against: a small one."""
    for path in PATHS:
        for figure, target in (
            (" cycle", at_most(1.5)),
            (": server CPU a cycle", None),
        ):
            yield Claim(f"{path}, {_MANY}{figure}", f"{path}, {_FEW}{figure}", target)
