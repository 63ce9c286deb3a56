"""The worker's front door: pull, push, exchange and minimize, over pytrees."""

import itertools
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Self, TypeVar, overload

import numpy.typing as npt

from pswire import trees
from pswire.body import Arrays, Body
from pswire.credentials import ANONYMOUS, Credentials
from pswire.errors import GenerationError
from pswire.inspection import VARIABLES
from pswire.layout import ArraySpec, Layout
from pswire.status import Status
from pswire.values import Snapshot, Verdict
from psworker.accumulate import Accumulator
from psworker.connection import Connection
from psworker.drops import Drops, OnDrop
from psworker.gradient import differentiate
from psworker.gradients import Gradients, by_name, origin_of
from psworker.pushes import Origin, Pushes, rounding
from psworker.slots import slot_names, slot_of
from psworker.tables import Wanted, with_tables
from psworker.task import Shard
from psworker.turns import Wait
from psworker.wire import Wire

Params = TypeVar("Params")

_numbers = itertools.count(1)


def connect(
    address: str,
    *,
    name: str | None = None,
    timeout_s: float = 30.0,
    outage_s: float = 60.0,
    credentials: Credentials = ANONYMOUS,
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
        credentials: A token to show the server, and certificates to know it by.
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
        TlsError: One came, but it and this client do not trust one another.
        UnauthenticatedError: It asks for another token.
        PermissionDeniedError: The token is good, but not for a worker.
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
        credentials=credentials,
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
    address: str,
    *,
    like: Params,
    timeout_s: float = 30.0,
    outage_s: float = 60.0,
    credentials: Credentials = ANONYMOUS,
) -> Snapshot[Params]:
    """Return the newest snapshot without joining: nobody is counted as a worker.

    Args:
        address: See `connect`.
        like: See `Client.pull`; tables come whole.
        timeout_s: See `connect`.
        outage_s: See there.
        credentials: See there.

    Raises:
        ParameterServerError: As `connect` and `Client.pull` do.
    """
    connection = Connection(
        address, timeout_s=timeout_s, outage_s=outage_s, credentials=credentials
    )
    try:
        snapshot = connection.pull(known=None)
        assert snapshot is not None  # Nothing is known, so nothing is left out.
        assert connection.layout is not None  # It came with the snapshot.
        if connection.layout.tables:
            return _whole(connection, connection.layout, like)
    finally:
        connection.close()
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

    def initialize(self, params: Any, *, tables: Sequence[str] = ()) -> bool:
        """Offer the first variables; the first worker's are taken.

        Args:
            params: Any pytree of arrays. Floating-point leaves are trained, integers
                and bools only kept.
            tables: Names, or patterns as of `fnmatch`, of variables to be pulled and
                pushed by rows, along their first axis. The rule changes a row, and what
                it remembers of that row, only when it is pushed, and has to be one that
                treats every element alike.

        Returns:
            True: this session's were taken. False: another worker had been first.

        Raises:
            VariableMismatchError: A leaf is no array of a type that can travel, or can
                be no table.
            InvalidRequestError: The server's rule cannot run on these variables.
        """
        arrays = trees.flatten(params)
        layout = with_tables(Layout.of(arrays), tables)
        initialized = self._connection.initialize(arrays, layout)
        if self._connection.layout is None:
            self._connection.join()  # For the layout, which is the first worker's.
        return initialized

    @overload
    def pull(
        self, like: None = None, *, rows: Mapping[str, npt.ArrayLike] | None = None
    ) -> Snapshot[Arrays]: ...
    @overload
    def pull(
        self, like: Params, *, rows: Mapping[str, npt.ArrayLike] | None = None
    ) -> Snapshot[Params]: ...
    def pull(
        self, like: Any = None, *, rows: Mapping[str, npt.ArrayLike] | None = None
    ) -> Snapshot[Any]:
        """Return the newest snapshot, once it is this worker's turn if a policy paces.

        Args:
            like: A pytree of the form that `initialize` was given, or its
                `jax.eval_shape`; None: the params will be a dict of names to arrays.
                Where it has a table, the params will have None.
            rows: Which rows of tables to bring too, by table: their ids, in an array of
                any shape. `rows` of the snapshot has them, of the same step.

        Raises:
            NotInitializedError: There are no variables yet.
            VariableMismatchError: They are not like the template, or there are no such
                rows.
        """
        return _in_form(self.pull_body(rows=rows), like, self._tables())

    def pull_body(
        self, *, rows: Mapping[str, npt.ArrayLike] | None = None
    ) -> Snapshot[Body]:
        """Return the newest snapshot as it came, without making an array of it.

        For models of very many arrays. The body is a mapping of names to arrays that
        are views, made when asked for; `exchange` answers in the same form.

        Args:
            rows: See `pull`.

        Raises:
            NotInitializedError: There are no variables yet.
            VariableMismatchError: There are no such rows.
        """
        if not rows:
            return self._newest()
        wanted = Wanted.of(rows)
        pulled = self._connection.pull(self._known, wanted.ids)
        assert pulled is not None  # With rows, there always is one.
        self._remember(replace(pulled, rows={}))
        return replace(pulled, rows=wanted.spread(pulled.rows))

    def compute_gradients(
        self,
        loss: Callable[..., Any],
        batch: Any,
        *,
        like: Any = None,
        variables: Any = None,
        cotangent: Any = None,
        rng: Any = None,
        has_aux: bool = False,
        rows: Mapping[str, npt.ArrayLike] | None = None,
    ) -> Gradients:
        """Pull, and differentiate `loss(params, batch)`.

        Args:
            loss: See `Task.loss`; pass the same function every time, since it is
                compiled once for each. It may return an array, given a cotangent.
            batch: What it takes.
            like: See `pull`.
            variables: Which to differentiate and push; the others are constants. Names
                or patterns (`head/*`; a star may stand for slashes too), or a pytree of
                bools like the params. None: all that can be trained.
            cotangent: What the gradient is pulled back from, of the shape of the loss:
                the weight of each of its elements, or a scalar's scale. None: 1.
            rng: A JAX key, for a loss with a parameter `rng`.
            has_aux: Whether `loss` returns its value and something else.
            rows: See `pull`; of all tables of `like`. In place of a table the loss gets
                its rows: an array of the shape of the ids, then of a row.

        Returns:
            Gradients that know their step; `push` takes them as they are.

        Raises:
            ParameterServerError: As `pull` does.
            VariableMismatchError: There are no such variables.
            ValueError: The loss is no scalar and there is no cotangent, or that has
                another shape.
            TypeError: It is called within jit, grad or vmap.
        """
        snapshot = self.pull_body(rows=rows)
        template = self._template(snapshot) if like is None else like
        compute = differentiate(loss, template, has_aux=has_aux, variables=variables)
        result, body = compute(snapshot.params, batch, rng, cotangent, snapshot.rows)
        value, aux = result if has_aux else (result, None)
        origin = Origin(
            snapshot.generation, snapshot.step, None if value.shape else float(value)
        )
        return Gradients(body, template, origin, result, aux)

    def push(
        self,
        gradients: Any,
        snapshot: Snapshot[Any] | Gradients | None = None,
        *,
        step_read: int | None = None,
        value: float | None = None,
    ) -> Verdict:
        """Offer gradients, of all variables or of some.

        Args:
            gradients: `Gradients`, which need nothing else; or a pytree like the
                params, a dict of names to arrays, a `Body`, or any iterable of
                (gradient, name). None there is left out, and so are float0 leaves,
                which integers have. A variable without a gradient keeps its value and
                its slots. Of a table there are `Rows`.
            snapshot: What they were computed from, or the `Gradients` that they were
                made of.
            step_read: Its step, in place of the snapshot, for callers who keep the
                number themselves; the generation is then that of the last pull, or
                else of the joining.
            value: The loss there, which some rules need; None: that of `Gradients`.

        Returns:
            Whether they were applied, and how stale they were.

        Raises:
            GenerationError: The server has another history now: pull again.
            VariableMismatchError: They are not like the variables.
            NonFiniteError: They hold NaN or an infinity.
            ValueError: There is none, or not just one of snapshot and step_read where
                they are no `Gradients`.
            TypeError: It is called within jit, grad or vmap.
        """
        arrays = by_name(gradients)
        origin = origin_of(gradients, snapshot, step_read, value, self._generation())
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
            gradients: See `push`; no `Gradients`, whose snapshot is their own.
            snapshot: What they were computed from; the new one has its form.
            value: See `push`.

        Raises:
            ParameterServerError: As `push` and `pull` do.
            ValueError: They are `Gradients`, or there is none.
        """
        if isinstance(gradients, Gradients):
            raise ValueError(
                "exchange: expected gradients of the snapshot, got Gradients, which "
                "have their own: push them"
            )
        arrays = by_name(gradients)
        origin = Origin(snapshot.generation, snapshot.step, value)
        verdict, new = self._pushes.exchange(arrays, origin)
        if isinstance(new, Wait):
            new = self._connection.pull(snapshot, wait=new)
        if new is None:
            return verdict, snapshot
        self._remember(new)
        return verdict, _in_form(new, snapshot.params, self._tables())

    def minimize(
        self,
        loss: Callable[..., Any],
        batch: Any,
        *,
        like: Any = None,
        variables: Any = None,
        cotangent: Any = None,
        rng: Any = None,
        has_aux: bool = False,
        rows: Mapping[str, npt.ArrayLike] | None = None,
        on_drop: OnDrop = "skip",
        max_retries: int = 3,
    ) -> tuple[Verdict, Any]:
        """Compute gradients, and push them.

        Args:
            loss: See `compute_gradients`.
            batch: See there.
            like: See there.
            variables: See there.
            cotangent: See there.
            rng: See there.
            has_aux: See there.
            rows: See there.
            on_drop: "skip" returns the verdict of a dropped push; "retry" pulls and
                computes the same batch again, at most `max_retries` times, also where
                the server has begun another history. A function takes the verdict of
                each drop and says which: True to try again.
            max_retries: See there.

        Returns:
            The last verdict, and what `loss` returned for it.

        Raises:
            ParameterServerError: As `compute_gradients` and `push` do.
            ValueError: `on_drop` or `max_retries` is none of those.
        """
        drops = Drops(on_drop, max_retries)
        if on_drop == "requeue":
            raise ValueError('on_drop: "requeue" is for training, not for one batch')
        for tries in itertools.count():
            gradients = self.compute_gradients(
                loss,
                batch,
                like=like,
                variables=variables,
                cotangent=cotangent,
                rng=rng,
                has_aux=has_aux,
                rows=rows,
            )
            try:
                verdict = self.push(gradients)
            except GenerationError:
                if drops.recovers(tries):
                    continue
                raise
            if verdict.applied or not drops.retries(verdict, tries):
                break
        return verdict, gradients.result

    def accumulate(self, count: int) -> Accumulator:
        """Add up gradients, to push the mean of every so many.

        Args:
            count: How many make a push, 1 or more.

        Raises:
            ValueError: It is less.
        """
        return Accumulator(self._pushes, self._generation, count)

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

    def _template(self, snapshot: Snapshot[Body]) -> dict[str, ArraySpec]:
        """Return params by name, with the tables that there are rows of."""
        layout = self._connection.layout
        assert layout is not None  # It came with the snapshot, or before.
        there = snapshot.params.layout.places.keys() | snapshot.rows.keys()
        return {spec.name: spec for spec in layout if spec.name in there}

    def _tables(self) -> Set[str]:
        """Return the names of the tables that this client knows of."""
        layout = self._connection.layout
        return {spec.name for spec in layout.tables} if layout else set()

    def _generation(self) -> str:
        """Return the newest history that this client knows of."""
        return (self._known or self._connection).generation


def _whole(connection: Connection, layout: Layout, like: Any) -> Snapshot[Any]:
    """Return all variables, tables too, of one step."""
    kept = {f"{VARIABLES}{spec.name}": spec.name for spec in layout}
    found = connection.inspect(tuple(kept), layout.nbytes)
    arrays = {name: found.arrays[array] for array, name in kept.items()}
    params = trees.unflatten(like, arrays)
    return Snapshot(params, found.step, found.generation)


def _in_form(
    snapshot: Snapshot[Body], like: Any, tables: Set[str] = frozenset()
) -> Snapshot[Any]:
    if isinstance(like, Body):
        return snapshot
    body = snapshot.params
    params = dict(body) if like is None else trees.unflatten(like, body, but=tables)
    return Snapshot(params, snapshot.step, snapshot.generation, snapshot.rows)
