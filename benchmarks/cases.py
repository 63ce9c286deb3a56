"""The table of cases: what each is measured against, and what is promised."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import durability, rows, runs, training
from benchmarks.figures import Claim, Series, Target, at_least, at_most
from benchmarks.rig import Rig
from benchmarks.sites import FOUR_MODELS, PATHS


@dataclass(frozen=True, slots=True)
class Case:
    """Something to run, and what to make of its series."""

    run: Callable[[Rig], Series]
    claims: tuple[Claim, ...]


def _pair(path: str, target: Target | None = None) -> Claim:
    names = f"{path}, two workers", f"{path}, one worker"
    return Claim(*names, target, unit="cycles/s")


def _costs(peak: Target | None = None) -> tuple[Claim, ...]:
    return tuple(
        claim
        for path in PATHS
        for claim in (
            Claim(f"{path}: server CPU a cycle", f"{path} cycle"),
            Claim(f"{path}: worker CPU a cycle", f"{path} cycle"),
            Claim(f"{path}: server peak RSS", FOUR_MODELS, peak, "B"),
        )
    )


CASES = {
    "4KB": Case(
        runs.run_4kb,
        (
            Claim("gRPC cycle", runs.UNARY_4KB, at_most(1.3)),
            Claim("gRPC cycle", runs.TCP_4KB),
            Claim("same host cycle", runs.UNIX, at_most(6)),
            Claim("same host cycle", "gRPC cycle", at_most(0.4)),
            _pair("gRPC", at_least(1.25)),
            _pair("same host", at_least(1.5)),
            *_costs(),
        ),
    ),
    "1MB": Case(
        runs.run_1mb,
        (
            Claim("gRPC cycle", runs.UNARY_1MB, at_most(1.6)),
            Claim("gRPC cycle", runs.TCP_1MB),
            Claim("same host cycle", "gRPC cycle", at_most(0.5)),
            Claim("gRPC, 1 array cycle", runs.UNARY_1MB),
            Claim("same host, 1 array cycle", "gRPC, 1 array cycle"),
            *(
                Claim(f"{p}, 1000 arrays cycle", f"{p}, 1 array cycle", at_most(1.5))
                for p in PATHS
            ),
            _pair("gRPC", at_least(1.25)),
            _pair("same host"),
            *_costs(),
        ),
    ),
    "100MB": Case(
        runs.run_100mb,
        (
            Claim("gRPC pull", runs.TCP, at_least(0.6), "MB/s"),
            Claim("gRPC push", runs.TCP, at_least(0.6), "MB/s"),
            Claim("gRPC cycle, both ways", runs.TCP, at_least(0.5), "MB/s"),
            Claim("gRPC, momentum cycle, both ways", runs.TCP, unit="MB/s"),
            Claim("gRPC, adam cycle, both ways", runs.TCP, unit="MB/s"),
            Claim("same host cycle", runs.COPY_100MB, at_most(3)),
            Claim("same host, momentum cycle", runs.COPY_100MB),
            Claim("same host, adam cycle", runs.COPY_100MB),
            Claim("same host cycle", "gRPC cycle"),
            _pair("gRPC"),
            _pair("same host"),
            *_costs(),
        ),
    ),
    "1GB": Case(
        runs.run_1gb,
        (
            Claim("gRPC pull", runs.TCP, at_least(0.6), "MB/s"),
            Claim("gRPC push", runs.TCP, at_least(0.6), "MB/s"),
            Claim("gRPC cycle, both ways", runs.TCP, unit="MB/s"),
            Claim("same host cycle", runs.COPY_1GB),
            *_costs(at_most(1)),
        ),
    ),
    "2.5GB": Case(
        runs.run_2500mb,
        tuple(
            claim
            for path in PATHS
            for claim in (
                Claim(f"{path}: a cycle passes", "a pass", at_least(1), "yes"),
                Claim(f"{path} cycle", runs.TCP_2500MB),
            )
        ),
    ),
    "rules": Case(
        runs.run_rules,
        tuple(
            Claim(f"{rule} of 100 MB", runs.at_triad_rate(rule), at_most(1.5))
            for rule in runs.TRAFFIC
        ),
    ),
    "rows": Case(rows.run, tuple(rows.claims())),
    "idle": Case(
        runs.run_idle,
        tuple(
            claim
            for path in PATHS
            for claim in (
                Claim(f"{path}: idle server's CPU", "one core"),
                Claim(f"{path}: server's CPU with 64 idle workers", "one core"),
                Claim(f"{path} cycle beside 64 idle workers", f"{path} cycle"),
            )
        ),
    ),
    "metrics": Case(
        runs.run_metrics,
        tuple(
            Claim(f"{path}{what}{figure}", f"{path}{figure}", target)
            for path in PATHS
            for what, target in (
                (runs.WITH_METRICS, at_most(1.03)),
                (runs.ONCE_MORE, None),
            )
            for figure, target in ((" cycle", target), (": server CPU a cycle", None))
        ),
    ),
    "tail": Case(
        runs.run_tail,
        tuple(
            Claim(
                f"{path}: {what} beside 100 MB cycles",
                f"{path}: {what} of a 4 KB cycle",
                target,
            )
            for path in PATHS
            for what, target in (("p99", at_most(10)), ("mean", None))
        ),
    ),
    "durability": Case(durability.run, tuple(durability.claims())),
    "link": Case(training.run, tuple(training.claims())),
}
