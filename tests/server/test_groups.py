"""The policy of limits for groups of variables."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psserver.policies.groups import Groups
from psserver.policies.terms import Terms, read_terms

_NAMES = ("emb/in", "emb/out", "head/w", "head/b", "k=1")
_SPEC = "groups:emb/out=0,emb/*=8,head/?=2"


@pytest.mark.parametrize(
    ("staleness", "left_out"),
    [
        (0, ()),
        (1, ("emb/out",)),
        (2, ("emb/out",)),
        (3, ("emb/out", "head/w", "head/b")),
        (8, ("emb/out", "head/w", "head/b")),
        (9, ("emb/in", "emb/out", "head/w", "head/b")),
        (2**62, ("emb/in", "emb/out", "head/w", "head/b")),
    ],
)
def test_a_variable_is_left_out_beyond_the_limit_of_its_first_group(
    staleness: int, left_out: tuple[str, ...]
) -> None:
    """The limit is inclusive; a variable of no group is never left out."""
    policy = read_terms(_SPEC, None).policy

    assert policy.left_out(staleness, _NAMES) == frozenset(left_out)


@given(
    limits=st.dictionaries(st.sampled_from(["a*", "*b", "?", "ab"]), st.integers(0, 9)),
    staleness=st.integers(0, 10),
)
def test_a_group_s_limit_is_that_of_a_policy_of_it_alone(
    limits: dict[str, int], staleness: int
) -> None:
    """Beside the plain limit, as if each variable had a server of its own."""
    groups = Groups(tuple(limits.items())) if limits else None
    firsts = {
        "ab": ("a*", "*b", "ab"),
        "a": ("a*", "?"),
        "b": ("*b", "?"),
        "c": ("?",),
        "cd": (),
    }
    left_out = groups.left_out(staleness, firsts) if groups else frozenset()

    for name, patterns in firsts.items():
        mine = [limit for pattern, limit in limits.items() if pattern in patterns]
        judged = Terms(mine[0] if mine else None)
        assert (name in left_out) == (judged.factor(staleness, ()) is None)


def test_brackets_are_letters_as_names_have_them() -> None:
    """A list's second array is no other; blanks beside a pattern are left out."""
    policy = read_terms("groups:a[0]=1, b[*=1,c[!d]=1", None).policy

    names = ["a[0]", "a0", "b[1]", "b1", "c[!d]", "ce", "c["]
    assert policy.left_out(2, names) == {"a[0]", "b[1]", "c[!d]"}
    assert policy.spec == "groups:a[0]=1,b[*=1,c[!d]=1"


def test_a_pattern_is_idle_if_no_variable_is_of_its_group() -> None:
    """None has such a name, or an earlier group has them all."""
    policy = read_terms("groups:emb/*=8,hed/*=2,emb/in=1,head/?=2", None).policy

    assert policy.idle(_NAMES) == ["hed/*", "emb/in"]
    assert read_terms("inverse").policy.idle(_NAMES) == []


def test_a_negative_limit_freezes_a_group() -> None:
    """As the plain one stops everything."""
    policy = read_terms("groups:emb/*=-1", None).policy

    assert policy.left_out(0, _NAMES) == {"emb/in", "emb/out"}


def test_a_pattern_may_have_an_equals_sign_and_case_matters() -> None:
    """The last one parts it from the limit."""
    policy = read_terms("groups:k=1=0,EMB/*=0", None).policy

    assert policy.left_out(1, _NAMES) == {"k=1"}


@pytest.mark.parametrize("spec", [_SPEC, "groups:k=1=0", "groups:*=-3"])
def test_the_spec_is_read_again_as_it_was(spec: str) -> None:
    """Status and checkpoints show it so; the hard limit stays beside it."""
    judged = read_terms(spec, 5)

    assert (judged.policy.spec, judged.limit) == (spec, 5)
    assert read_terms(judged.policy.spec, 5) == judged


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("groups", "expected groups:PATTERN=LIMIT,..., 1 to 64 groups, got 0"),
        (
            "groups:" + ",".join(f"w{number}=1" for number in range(65)),
            "expected groups:PATTERN=LIMIT,..., 1 to 64 groups, got 65",
        ),
        ("groups:\x1b[2J=1", r"pattern: expected at most 1024 printable letters, got"),
        (f"groups:{'w' * 1025}=1", "pattern: expected at most 1024 printable letters"),
        ("groups:", ": expected PATTERN=LIMIT, the limit in whole steps, got ''"),
        ("groups:w", "expected PATTERN=LIMIT, the limit in whole steps, got 'w'"),
        ("groups:w=1.5", "w: expected PATTERN=LIMIT, the limit .*, got 'w=1.5'"),
        ("groups:w=off", "w: expected PATTERN=LIMIT, the limit .*, got 'w=off'"),
        ("groups:=3", "pattern: expected each once, and none empty, got ''"),
        ("groups:w=3,w=3", "pattern: expected each once, and none empty, got 'w'"),
    ],
)
def test_what_are_no_groups_is_refused(spec: str, message: str) -> None:
    """With what was expected."""
    with pytest.raises(ValueError, match=f"^staleness_policy: groups: .*{message}"):
        read_terms(spec)


def test_the_forms_of_policies_have_groups() -> None:
    """So a mistyped name is answered with what there is."""
    with pytest.raises(ValueError, match=re.escape("groups:PATTERN=LIMIT,...")):
        read_terms("group:w=1")
