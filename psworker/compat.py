"""The methods of TensorFlow 1's optimizers, by their arguments' names."""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

from pswire.values import Snapshot, Verdict
from psworker.client import Client


class AggregationMethod(IntEnum):
    """How the gradients of one variable were to be added up.

    In JAX they are one sum in the compiled function, and the compiler chooses its form:
    each of these means the same.
    """

    ADD_N = 0
    DEFAULT = 0
    EXPERIMENTAL_TREE = 1
    EXPERIMENTAL_ACCUMULATE_N = 2


class Optimizer:
    """What a script calls that was written for `tf.train.Optimizer`.

    The rule and the limit are the server's. A loss is a function of (params, batch).

    Attributes:
        GATE_NONE: In TensorFlow, each gradient was used as soon as it was there. In JAX
            a compiled function returns all at once, so this means GATE_GRAPH.
        GATE_OP: All gradients of one operation were there before any was used;
            likewise.
        GATE_GRAPH: All gradients are there before any is used, as always in JAX.

    References:
        TensorFlow 1's `tf.train.Optimizer`. As its `DropStaleGradientOptimizer` did,
        this keeps the step that gradients were read at until they are applied.
    """

    GATE_NONE = 0
    GATE_OP = 1
    GATE_GRAPH = 2

    def __init__(self, client: Client, *, like: Any = None) -> None:
        """Call a server.

        Args:
            client: Its worker.
            like: See `Client.pull`.
        """
        self._client = client
        self._like = like
        self._read: Snapshot[None] | None = None
        self._value: float | None = None

    def compute_gradients(
        self,
        loss: Callable[..., Any],
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Any = None,
        *,
        batch: Any = None,
    ) -> list[tuple[Any, str]]:
        """Pull, and differentiate.

        Args:
            loss: `loss(params, batch)`, the same function every time.
            var_list: The `variables` of `Client.compute_gradients`.
            gate_gradients: GATE_NONE, GATE_OP or GATE_GRAPH, which all mean the last.
            aggregation_method: One of `AggregationMethod`, which all mean the same.
            colocate_gradients_with_ops: Either is as JAX does: a gradient is computed
                where its operation's inputs are.
            grad_loss: The `cotangent` there.
            batch: What the script fed to its placeholders.

        Returns:
            Pairs of (gradient, name).

        Raises:
            ValueError: One is none of those.
            ParameterServerError: As from `Client.compute_gradients`.
        """
        _require(
            gate_gradients in (self.GATE_NONE, self.GATE_OP, self.GATE_GRAPH),
            f"gate_gradients: expected GATE_NONE, GATE_OP or GATE_GRAPH, got "
            f"{gate_gradients!r}; in JAX all gradients are there before any is used",
        )
        _require(
            aggregation_method in (None, *AggregationMethod),
            f"aggregation_method: expected one of AggregationMethod, got "
            f"{aggregation_method!r}; in JAX the compiler adds gradients up",
        )
        _require(
            isinstance(colocate_gradients_with_ops, bool),
            f"colocate_gradients_with_ops: expected a bool, got "
            f"{colocate_gradients_with_ops!r}; in JAX a gradient is computed where its "
            "operation's inputs are",
        )
        gradients = self._client.compute_gradients(
            loss, batch, like=self._like, variables=var_list, cotangent=grad_loss
        )
        read = Snapshot(None, gradients.step_read, gradients.generation)
        # Those that are not applied yet are older, if of the same history.
        if self._read is None or self._read.generation != read.generation:
            self._read = read
        self._value = gradients.value
        return list(gradients)

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, str]],
        global_step: None = None,
        name: str | None = None,
    ) -> Verdict:
        """Push; as old as the oldest gradients computed since the last time.

        Args:
            grads_and_vars: Pairs of (gradient, name); those of None are left out.
            global_step: None: the server counts the steps.
            name: What TensorFlow called the operation; there is none here.

        Raises:
            ValueError: A step was given, nothing was computed before, or there is
                nothing to push.
            ParameterServerError: As from `Client.push`.
        """
        _require(
            global_step is None,
            f"global_step: expected None, as the server counts the steps, got "
            f"{global_step!r}",
        )
        if self._read is None:
            raise ValueError(
                "apply_gradients: expected compute_gradients before it, got none"
            )
        verdict = self._client.push(grads_and_vars, self._read, value=self._value)
        self._read = None
        return verdict

    def minimize(
        self,
        loss: Callable[..., Any],
        global_step: None = None,
        var_list: Any = None,
        gate_gradients: int = GATE_OP,
        aggregation_method: int | None = None,
        colocate_gradients_with_ops: bool = False,
        name: str | None = None,
        grad_loss: Any = None,
        *,
        batch: Any = None,
    ) -> Verdict:
        """Compute gradients, and apply them; see there."""
        gradients = self.compute_gradients(
            loss,
            var_list,
            gate_gradients,
            aggregation_method,
            colocate_gradients_with_ops,
            grad_loss,
            batch=batch,
        )
        return self.apply_gradients(gradients, global_step, name)


def _require(is_known: bool, otherwise: str) -> None:
    if not is_known:
        raise ValueError(otherwise)
