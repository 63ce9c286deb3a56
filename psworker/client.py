"""The worker's front door: pull, push, exchange and minimize, over pytrees."""

import itertools
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar, overload

import numpy.typing as npt

from pswire import trees
from pswire.body import Arrays, Body
from pswire.layout import ArraySpec, Layout
from pswire.status import Status
from pswire.values import Snapshot, Verdict
from psworker.connection import Connection
from psworker.drops import OnDrop, retries
from psworker.gradient import differentiate
from psworker.pushes import Origin, Pushes, rounding
from psworker.slots import slot_names, slot_of
from psworker.task import Shard
from psworker.wire import Wire

Params = TypeVar("Params")

_numbers = itertools.count(1)


def connect(
    address: str,
    *,
    name: str | None = None,
    timeout_s: float = 30.0,
    outage_s: float = 60.0,
    same_host: bool = True,
    wire_dtype: str | None = None,
    compression: str | None = None,
) -> "Client":
    """Join a parameter server as a worker, waiting for it if need be.

    Args:
        address: HOST:PORT.
        name: The worker's name, under which the server counts; a newer client of the
            same name supersedes this one. None: this host's name, the process id and
            a number.
        timeout_s: How long one attempt of a call may take, in seconds, and a second
            more for every megabyte it moves.
        outage_s: How long to go on trying while no server answers, in seconds.
        same_host: Whether to use a unix socket and shared memory in place of gRPC,
            which is several times as fast, if the server is on this host.
        wire_dtype: "bf16" lets arrays of float32 travel as bfloat16, each number
            rounded to the nearest, ties to even, and to an infinity past the largest;
            "bf16:pull" only variables, "bf16:push" only gradients. The server's own
            copy stays as it is.
        compression: "topk:0.01" sends the hundredth of each gradient's elements that
            are largest, and adds the others to the gradients of the next push. What
            is sent may be the sum of many gradients: mind the rate and the norm.

    Raises:
        ServerUnavailableError: No server came in that time.
        ValueError: `wire_dtype` or `compression` is none of those.
    """
    wire = Wire.parse(wire_dtype, compression)
    worker = name or f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"
    connection = Connection(
        address,
        worker=worker,
        session=secrets.token_hex(8),
        timeout_s=timeout_s,
        outage_s=outage_s,
        same_host=same_host,
        pull_encoding=rounding(wire.narrow_pulls),
    )
    try:
        connection.join()
    except BaseException:
        connection.close()
        raise
    return Client(connection, wire)


def read(
    address: str, *, like: Params, timeout_s: float = 30.0, outage_s: float = 60.0
) -> Snapshot[Params]:
    """Return the newest snapshot without joining: nobody is counted as a worker.

    Args:
        address: See `connect`.
        like: See `Client.pull`.
        timeout_s: See `connect`.
        outage_s: See there.

    Raises:
        ParameterServerError: As `connect` and `Client.pull` do.
    """
    connection = Connection(address, timeout_s=timeout_s, outage_s=outage_s)
    try:
        snapshot = connection.pull(known=None)
    finally:
        connection.close()
    assert snapshot is not None  # Nothing is known, so nothing is left out.
    return _in_form(snapshot, like)


class Client:
    """A worker's side of one session; made by `connect`, closed by `with`."""

    def __init__(self, connection: Connection, wire: Wire) -> None:
        self._connection = connection
        self._known: Snapshot[Body] | None = None
        self._knowing = threading.Lock()  # Guards `_known`, but for reading it.
        self._pushes = Pushes(connection, wire)

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._connection.worker

    def initialize(self, params: Any) -> bool:
        """Offer the first variables; the first worker's are taken.

        Args:
            params: Any pytree of arrays. Floating-point leaves are trained, integers
                and bools only kept.

        Returns:
            True: this session's were taken. False: another worker had been first.

        Raises:
            VariableMismatchError: A leaf is no array of a type that can travel.
            InvalidRequestError: The server's rule cannot run on these variables.
        """
        initialized = self._connection.initialize(trees.flatten(params))
        if self._connection.layout is None:
            self._connection.join()  # For the layout, which is the first worker's.
        return initialized

    @overload
    def pull(self, like: None = None) -> Snapshot[Arrays]: ...
    @overload
    def pull(self, like: Params) -> Snapshot[Params]: ...
    def pull(self, like: Any = None) -> Snapshot[Any]:
        """Return the newest snapshot.

        Args:
            like: A pytree of the form that `initialize` was given, or its
                `jax.eval_shape`; None: the params will be a dict of names to arrays.

        Raises:
            NotInitializedError: There are no variables yet.
            VariableMismatchError: They are not like the template.
        """
        return _in_form(self._newest(), like)

    def pull_body(self) -> Snapshot[Body]:
        """Return the newest snapshot as it came, without making an array of it.

        For models of very many arrays. The body is a mapping of names to arrays that
        are views, made when asked for; `exchange` answers in the same form.

        Raises:
            NotInitializedError: There are no variables yet.
        """
        return self._newest()

    def push(
        self,
        gradients: Any,
        snapshot: Snapshot[Any] | None = None,
        *,
        step_read: int | None = None,
        value: float | None = None,
    ) -> Verdict:
        """Offer gradients.

        Args:
            gradients: A pytree like the params, a dict of names to arrays, or a `Body`;
                float0 leaves, which integers have, are left out.
            snapshot: What they were computed from.
            step_read: Its step, in place of the snapshot, for callers who keep the
                number themselves; the generation is then that of the last pull, or
                else of the joining.
            value: The loss there, which some rules need.

        Returns:
            Whether they were applied, and how stale they were.

        Raises:
            GenerationError: The server has another history now: pull again.
            VariableMismatchError: They are not like the variables.
            NonFiniteError: They hold NaN or an infinity.
            ValueError: Neither or both of snapshot and step_read were given.
        """
        arrays = _flat(gradients)
        origin = self._origin(snapshot, step_read, value)
        return self._pushes.push(arrays, origin)

    def exchange(
        self,
        gradients: Any,
        snapshot: Snapshot[Params],
        *,
        value: float | None = None,
    ) -> tuple[Verdict, Snapshot[Params]]:
        """Push, then pull, in one call.

        Args:
            gradients: See `push`.
            snapshot: What they were computed from; the new one has its form.
            value: See `push`.

        Raises:
            ParameterServerError: As `push` and `pull` do.
        """
        arrays = _flat(gradients)
        origin = Origin(snapshot.generation, snapshot.step, value)
        verdict, new = self._pushes.exchange(arrays, origin)
        if new is None:
            return verdict, snapshot
        self._remember(new)
        return verdict, _in_form(new, snapshot.params)

    def minimize(
        self,
        loss: Callable[..., Any],
        batch: Any,
        *,
        like: Any,
        rng: Any = None,
        has_aux: bool = False,
        on_drop: OnDrop = "skip",
        max_retries: int = 3,
    ) -> tuple[Verdict, Any]:
        """Pull, differentiate `loss(params, batch)`, and push.

        Args:
            loss: See `Task.loss`; pass the same function every time, since it is
                compiled once for each.
            batch: What it takes.
            like: See `pull`.
            rng: A JAX key, for a loss with a parameter `rng`.
            has_aux: Whether `loss` returns a scalar and something else.
            on_drop: "skip" returns the verdict of a dropped push; "retry" pulls and
                computes the same batch again, at most `max_retries` times.
            max_retries: See there.

        Returns:
            The last verdict, and what `loss` returned for it.

        Raises:
            ParameterServerError: As `push` and `pull` do.
            ValueError: `on_drop` or `max_retries` is none of those.
        """
        for retries_left in reversed(range(1 + retries(on_drop, max_retries))):
            snapshot = self.pull_body()
            template = _names(snapshot.params.layout) if like is None else like
            compute = differentiate(loss, template, has_aux=has_aux)
            result, gradients = compute(snapshot.params, batch, rng)
            value = float(result[0] if has_aux else result)
            verdict = self.push(gradients, snapshot, value=value)
            if verdict.applied or not retries_left:
                break
        return verdict, result

    def lease_shards(self, count: int) -> Iterator[Shard]:
        """Yield parts of the data without end, each of which no other worker has.

        The part that has waited longest is next. This worker keeps it until it asks
        for the next one, but no longer than a minute without any call. If there are
        more workers than parts, some share one.

        Args:
            count: Into how many parts the data are cut; the same for all workers.

        Raises:
            InvalidRequestError: There cannot be so many.
        """
        while True:
            yield self._connection.lease_shard(count)

    def variables(self, *names: str) -> Snapshot[Arrays]:
        """Return all that the server keeps of the model, of one step.

        Not to train with: it is more than a pull brings, and never goes past gRPC.

        Args:
            names: Of the arrays that are wanted; none: all. They are those of
                checkpoints: "variables/w", "slots[0].mu['w']", "slots[0].count".

        Returns:
            The arrays by name, and their step.

        Raises:
            NotInitializedError: There are no variables yet.
            VariableMismatchError: There is no such array.
        """
        layout = self._connection.inspect().layout
        chosen = layout.chosen(names or layout.places)
        found = self._connection.inspect(tuple(chosen.places), chosen.nbytes)
        return Snapshot(dict(found.arrays), found.step, found.generation)

    def slot_names(self) -> tuple[str, ...]:
        """Return the names of what the rule remembers of each variable, for `slot`.

        What it remembers of none in particular, as a count, is among `variables`.

        Raises:
            NotInitializedError: There are no variables yet.
        """
        return slot_names(self._connection.inspect().layout)

    def slot(self, name: str, variable: str) -> npt.NDArray[Any]:
        """Return what the rule remembers of one variable.

        Args:
            name: One of `slot_names`, as "slots[0].mu".
            variable: The variable's name.

        Raises:
            NotInitializedError: There are no variables yet.
            VariableMismatchError: There is no such slot.
        """
        layout = self._connection.inspect().layout
        array = slot_of(layout, name, variable)
        nbytes = layout.chosen((array,)).nbytes
        return self._connection.inspect((array,), nbytes).arrays[array]

    def status(self) -> Status:
        """Return the server's counters."""
        return self._connection.status()

    def close(self) -> None:
        """End the session; calls in flight are cancelled."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _newest(self) -> Snapshot[Body]:
        known = self._known
        new = self._connection.pull(known)
        if new is not None:
            self._remember(new)
            return new
        assert known is not None  # The server leaves out only what we know.
        return known

    def _remember(self, new: Snapshot[Body]) -> None:
        """Know a snapshot, unless another thread knows a later one of its history."""
        with self._knowing:
            known = self._known
            if (
                known is None
                or known.generation != new.generation
                or known.step < new.step
            ):
                self._known = new

    def _origin(
        self,
        snapshot: Snapshot[Any] | None,
        step_read: int | None,
        value: float | None,
    ) -> Origin:
        if (snapshot is None) == (step_read is None):
            raise ValueError("push: expected either a snapshot or step_read")
        if snapshot is not None:
            return Origin(snapshot.generation, snapshot.step, value)
        assert step_read is not None
        history = self._known or self._connection
        return Origin(history.generation, step_read, value)


def _names(layout: Layout) -> dict[str, ArraySpec]:
    return {spec.name: spec for spec in layout}


def _flat(gradients: Any) -> Arrays:
    return gradients if isinstance(gradients, Body) else trees.flatten(gradients)


def _in_form(snapshot: Snapshot[Body], like: Any) -> Snapshot[Any]:
    if isinstance(like, Body):
        return snapshot
    body = snapshot.params
    params = dict(body) if like is None else trees.unflatten(like, body)
    return Snapshot(params, snapshot.step, snapshot.generation)
