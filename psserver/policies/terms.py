"""By what pushes are judged: a hard limit, and a policy for what that admits."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType

from psserver.policies.adaptive import Adaptive
from psserver.policies.admission import Admission
from psserver.policies.backup import Backup
from psserver.policies.compensation import DelayCompensation
from psserver.policies.groups import Groups
from psserver.policies.policy import DROP, Policy
from psserver.policies.ssp import Ssp
from psserver.policies.weights import Exponential, Hinge, Inverse, Polynomial

DEFAULT_LIMIT = 8
POLICIES: Mapping[str, type[Policy]] = {
    kind.name: kind
    for kind in (
        *(Policy, Inverse, Polynomial, Hinge, Exponential, Adaptive, Groups),
        *(Ssp, Admission, DelayCompensation, Backup),
    )
}
"""By their names."""
SETTINGS = ("max_staleness", "staleness_policy")
"""What can be changed while a server runs."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What judges every push.

    Attributes:
        limit: The largest staleness applied, in steps, inclusive, whatever the policy;
            0 admits only gradients of the current step, a negative limit nothing, None
            everything.
        policy: What becomes of the rest.

    Raises:
        ValueError: The limit is no whole number of 64 bits, or none that the policy
            works with.

    References:
        TensorFlow 1's `contrib.opt.DropStaleGradientOptimizer` counts staleness the
        same way and also admits the limit itself.
    """

    limit: int | None
    policy: Policy = DROP

    def __post_init__(self) -> None:
        if self.limit is not None and (
            type(self.limit) is not int or not -(2**63) <= self.limit < 2**63
        ):
            raise ValueError(
                "max_staleness: expected None or a whole number of steps of 64 bits, "
                f"got {self.limit!r}"
            )
        self.policy.require_limit(self.limit)

    def require_tables(self, names: Collection[str]) -> None:
        """Check that variables can be tables by these terms.

        Args:
            names: Of those that are.

        Raises:
            ValueError: There are some, which the policy does not take.
        """
        if names and not self.policy.takes_tables:
            raise ValueError(
                f"staleness_policy: expected one that takes tables, as {min(names)} is "
                f"one, got {self.policy.name}"
            )

    def factor(self, staleness: int, recent: Sequence[int]) -> float | None:
        """Say what becomes of a push.

        Args:
            staleness: The push's, in steps.
            recent: That of the last judged pushes, in steps.

        Returns:
            What its update is multiplied by; None: it is dropped.
        """
        limit = self.limit_now(recent)
        if limit is not None and staleness > limit:
            return None
        return self.policy.factor(staleness)

    def limit_now(self, recent: Sequence[int]) -> int | None:
        """Return the largest staleness that is applied now, in steps; None: any.

        Args:
            recent: The staleness of the last judged pushes, in steps.
        """
        limits = (self.limit, self.policy.limit(recent))
        return min((limit for limit in limits if limit is not None), default=None)

    def changed(self, settings: Mapping[str, str]) -> "Terms":
        """Return what they become by some of `SETTINGS`, as text.

        Raises:
            ValueError: A setting is unknown, or not what it has to be; the message
                begins with it.
        """
        known = ", ".join(SETTINGS)
        if not settings:
            raise ValueError(f"settings: expected some of {known}, got none")
        for name in settings:
            if name not in SETTINGS:
                raise ValueError(f"{name}: expected one of {known}")
        text = settings.get("max_staleness")
        limit = ... if text is None else _limit("max_staleness", text)
        spec = settings.get("staleness_policy", self.policy.spec)
        return read_terms(spec, limit, otherwise=self.limit)


def read_terms(
    spec: str,
    limit: int | EllipsisType | None = ...,
    *,
    otherwise: int | None = DEFAULT_LIMIT,
) -> Terms:
    """Read a SPEC: NAME[:ARGUMENTS], where `drop` may have the limit for an argument.

    Args:
        spec: It.
        limit: The limit that was asked for besides, in steps; None: none is wanted;
            `...`: nobody has asked for any.
        otherwise: What the limit is if the SPEC does not say either.

    Raises:
        ValueError: The SPEC is none, or there are two limits.
    """
    name, colon, text = spec.partition(":")
    if name not in POLICIES:
        forms = ", ".join(kind.form() for kind in POLICIES.values())
        raise ValueError(f"staleness_policy: expected one of {forms}, got {spec!r}")
    if name == Policy.name and colon:
        told = _limit("staleness_policy", text)
        if limit not in (..., told):
            raise ValueError(
                f"staleness_policy: expected drop beside max_staleness, got {spec!r}, "
                "which is another limit"
            )
        return Terms(told)
    try:
        policy = POLICIES[name].read(text.split(",") if colon else ())
    except ValueError as error:
        raise ValueError(f"staleness_policy: {name}: {error}") from None
    return Terms(otherwise if limit is ... else limit, policy)


def _limit(name: str, text: str) -> int | None:
    try:
        return None if text == "off" else int(text)
    except ValueError:
        raise ValueError(
            f"{name}: expected a whole number of steps or off, got {text!r}"
        ) from None
