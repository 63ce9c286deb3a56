"""`psserver checkpoint`, on the files of a data directory."""

import errno
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file

from psserver.checkpoint import Checkpoint
from psserver.durability.checkpoints import FOLDER, Checkpoints
from psserver.durability.disk import RealDisk
from pswire.body import Arrays

Make = Callable[..., Checkpoint]
Run = Callable[..., Result]

_OF_NUMPY = [np.dtype(name) for name in ("float16", "float64", "bool", "int8")]


@pytest.fixture
def data_dir(tmp_path: Path, make_checkpoint: Make) -> str:
    """Keep two checkpoints of step 7 and one of step 9."""
    checkpoints = Checkpoints(RealDisk(), tmp_path / "data" / FOLDER, lambda: 0.0)
    for seed, step in enumerate((7, 7, 9)):
        checkpoints.save(make_checkpoint(seed, step, dtypes=_OF_NUMPY))
    return str(tmp_path / "data")


@pytest.fixture
def fail_to_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Have the disk refuse to give what is in a folder, with an error's number."""
    read = RealDisk.read

    def fail(folder: str, number: int) -> None:
        def refuse(disk: RealDisk, path: Path, start: int, nbytes: int) -> bytes:
            if path.parent.name == folder:
                raise OSError(number, "by plan")
            return read(disk, path, start, nbytes)

        monkeypatch.setattr(RealDisk, "read", refuse)

    return fail


def assert_same(got: Arrays, expected: Arrays) -> None:
    """Check that all arrays are the same, bit for bit."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()


def test_ls_tells_each_and_what_is_wrong(run: Run, data_dir: str) -> None:
    """Oldest first, after a look at every byte; nothing is changed by it."""
    spoilt = Path(data_dir, FOLDER, "00000002-step-7", "arrays.safetensors")
    data = spoilt.read_bytes()
    spoilt.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    result = run("checkpoint", "ls", data_dir)
    rows = json.loads(run("checkpoint", "ls", data_dir, "--json").output)

    head, _, first, second, third, problem = result.output.splitlines()
    assert head.split() == [
        *("name", "step", "saved", "nbytes", "generation", "rule", "state"),
    ]
    nbytes = sum(f.stat().st_size for f in spoilt.parents[1].glob("*1-step-7/*"))
    assert first.split() == [
        *("00000001-step-7", "7", "1970-01-01T00:00:00Z", str(nbytes)),
        *("generation-0", "adam(learning_rate=1e-3)", "good"),
    ]
    assert second.split() == ["00000002-step-7", "corrupt"]
    assert (third.split()[1], third.split()[-1]) == ("9", "good")
    assert problem.startswith(f"{spoilt}: ")
    assert result.exit_code == 1
    assert [row["state"] for row in rows] == ["good", "corrupt", "good"]
    assert [row["problem"] for row in rows] == [None, problem, None]
    assert [row["nbytes"] for row in rows] == [nbytes, None, rows[2]["nbytes"]]
    assert len([*spoilt.parents[1].iterdir()]) == 3


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ([], "00000003-step-9"),
        (["7"], "00000002-step-7"),
        (["00000001-step-7"], "00000001-step-7"),
    ],
)
def test_show_tells_what_one_holds(
    which: list[str], name: str, run: Run, data_dir: str, make_checkpoint: Make
) -> None:
    """By its name, by its step, or the newest; for people and for scripts."""
    seed, step = int(name[7]) - 1, int(name[-1])
    kept = make_checkpoint(seed, step, dtypes=_OF_NUMPY)

    lines = run("checkpoint", "show", data_dir, *which).output.splitlines()
    shown = json.loads(run("checkpoint", "show", data_dir, *which, "--json").output)

    total = kept.counters.total
    limit = "off" if seed == 0 else f"{kept.max_staleness} steps"
    policy = ", policy polynomial:0.5" if seed == 1 else ""
    assert (lines[0], shown["name"]) == (f"{name} of lab", name)
    assert lines[1] == (
        f"step {step}, rule adam(learning_rate=1e-3), limit {limit}{policy}, "
        f"generation generation-{seed}"
    )
    assert lines[2].startswith("saved 1970-01-01T00:00:00Z by asyncps ")
    assert lines[3].startswith(f"pushes: {total.applied} applied, {total.dropped} dro")
    words = [line.split() for line in lines]
    assert ["variables/float64/(3,", "2)", "float64", "(3,", "2)"] in words
    assert ["ann", *map(str, counts(kept, "ann"))] in words
    assert (shown["step"], shown["max_staleness"]) == (step, kept.max_staleness)
    assert shown["server"] == "lab"
    assert shown["sessions"]["s2"]["last_seq"] == 2**64 - 1
    assert len(shown["arrays"]) == len(kept.variables) + len(kept.slots.arrays)


def counts(kept: Checkpoint, worker: str) -> list[int]:
    """Return what became of a worker's pushes."""
    tally = kept.counters.rows[worker].tally
    rejected = sum(tally.rejected.values())
    return [tally.applied, tally.dropped, tally.duplicate, rejected]


def test_a_text_from_a_file_steers_no_terminal(
    run: Run, tmp_path: Path, make_checkpoint: Make
) -> None:
    """A checkpoint may be somebody else's."""
    kept = replace(make_checkpoint(), rule="\x1b[31m")
    Checkpoints(RealDisk(), tmp_path / FOLDER).save(kept)

    for command in ("ls", "show"):
        result = run("checkpoint", command, str(tmp_path))
        output = result.output
        assert result.exit_code == 0
        assert r"\x1b[31m" in output
        assert output.replace("\n", "").isprintable()


@pytest.mark.parametrize("step", [None, 7])
def test_variables_are_exported_under_their_own_names(
    step: int | None, run: Run, data_dir: str, tmp_path: Path, make_checkpoint: Make
) -> None:
    """Bit for bit, as .safetensors and as .npz; only the owner reads them."""
    seed, chosen = (2, ()) if step is None else (1, ("--step", str(step)))
    expected = make_checkpoint(seed, dtypes=_OF_NUMPY).variables

    for name in ("a.safetensors", "a.npz"):
        output = tmp_path / name
        result = run("checkpoint", "export", data_dir, "-o", str(output), *chosen)
        assert result.output == f"{output}: 12 variables of step {step or 9}\n"
        assert output.stat().st_mode & 0o777 == 0o600
    assert_same(load_file(tmp_path / "a.safetensors"), expected)
    with np.load(tmp_path / "a.npz") as got:
        assert_same(dict(got), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("a.npz", "a.safetensors", "data"),
    ]


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_an_export_that_fails_leaves_nothing(
    name: str, run: Run, data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the file nor a part of it."""

    def fail(disk: RealDisk, old: Path, new: Path) -> None:
        assert old.stat().st_size > 0
        raise OSError("by plan")

    monkeypatch.setattr(RealDisk, "rename", fail)

    result = run("checkpoint", "export", data_dir, "-o", str(tmp_path / name))

    assert (result.exit_code, result.output) == (
        1,
        f"Error: output: expected {tmp_path / name} to be written, got by plan\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_npz_has_names_of_any_letters(
    run: Run, tmp_path: Path, make_checkpoint: Make
) -> None:
    """Also those that numpy's own function takes for something else."""
    names = ["file", "allow_pickle", "self", "a/b", "../x", "ü 🐌"]
    save_named(tmp_path, dict.fromkeys(names, np.ones(2)), make_checkpoint)

    run("checkpoint", "export", str(tmp_path), "-o", str(tmp_path / "a.npz"))

    with np.load(tmp_path / "a.npz") as got:
        assert [*got] == names


def save_named(folder: Path, variables: Arrays, make_checkpoint: Make) -> None:
    """Keep a checkpoint of some variables."""
    named: Any = variables
    kept = replace(make_checkpoint(), variables=named)
    Checkpoints(RealDisk(), folder / FOLDER).save(kept)


def test_an_orbax_checkpoint_is_restored_by_orbax(
    run: Run, tmp_path: Path, make_checkpoint: Make
) -> None:
    """As a flat tree of the variables' names; bfloat16 too."""
    orbax: Any = pytest.importorskip("orbax.checkpoint")
    variables = make_checkpoint(seed=4).variables
    kept = {name: array for name, array in variables.items() if array.size}
    save_named(tmp_path, kept, make_checkpoint)
    output = tmp_path / "exported"

    options = ("-o", str(output), "--format", "orbax")
    result = run("checkpoint", "export", str(tmp_path), *options)

    assert result.exit_code == 0, result.output
    with orbax.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(output), kept)


@pytest.mark.parametrize(
    ("dtype", "arguments", "text"),
    [
        ("bool", ["-o", "x.pt"], "output: expected a name that ends with .npz or"),
        ("bool", ["-o", "x"], "output: expected a name that ends with .npz or"),
        ("bool", ["-o", "there.npz"], "output: expected a new name, got there.npz, w"),
        (
            "bool",
            ["-o", "no/x.npz"],
            "output: expected no/x.npz to be written, got No such file or ",
        ),
        ("bool", ["-o", "x.npz", "--step", "8"], "Error: step: expected 7, got 8"),
        ("bfloat16", ["-o", "x.npz"], "got bfloat16; .safetensors has it"),
        ("bool", ["-o", "x", "--format", "orbax"], "with elements for orbax, got (0,"),
    ],
)
def test_what_cannot_be_exported_is_a_clear_error(
    dtype: str,
    arguments: list[str],
    text: str,
    run: Run,
    tmp_path: Path,
    make_checkpoint: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is overwritten, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    Path("there.npz").write_text("mine")
    kept = make_checkpoint(step=7, dtypes=[np.dtype(dtype)])
    Checkpoints(RealDisk(), Path(FOLDER)).save(kept)

    result = run("checkpoint", "export", ".", *arguments)

    assert result.exit_code == 1
    assert text in result.output
    assert Path("there.npz").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER, "there.npz"]


def test_orbax_that_is_not_installed_is_a_clear_error(
    run: Run, data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said what brings it."""
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)

    options = ("-o", str(tmp_path / "x"), "--format", "orbax")
    result = run("checkpoint", "export", data_dir, *options)

    assert result.exit_code == 1
    assert 'pip install "asyncps[orbax]" brings' in result.output


@pytest.mark.parametrize("command", [("ls", "--json"), ("show",)], ids=["ls", "show"])
@pytest.mark.parametrize(
    ("where", "hint"),
    [
        ("other", ""),
        ("data/log", ", which is a part of one: {}/data"),
        ("data/checkpoints", ", which is a part of one: {}/data"),
        ("data/checkpoints/00000001-step-7", ", which is a part of one: {}/data"),
    ],
    ids=lambda text: Path(text).name,
)
def test_a_folder_without_checkpoints_is_a_clear_error(
    command: tuple[str, ...],
    where: str,
    hint: str,
    run: Run,
    data_dir: str,
    tmp_path: Path,
) -> None:
    """An empty list would pass for that of a backup; a part of one is told."""
    (tmp_path / where).mkdir(exist_ok=True)

    result = run("checkpoint", command[0], str(tmp_path / where), *command[1:])

    assert (result.exit_code, result.output) == (
        1,
        f"Error: data_dir: expected a folder with checkpoints, got {tmp_path / where}"
        f"{hint.format(tmp_path)}\n",
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_checkpoint_that_cannot_be_read_is_not_called_corrupt(
    number: int, run: Run, data_dir: str, fail_to_read: Callable[[str, int], None]
) -> None:
    """It may be good: that a list is no proof of a backup, the exit code tells."""
    fail_to_read("00000001-step-7", number)

    result = run("checkpoint", "ls", data_dir, "--json")

    rows = json.loads(result.output)
    assert result.exit_code == 1
    assert [row["state"] for row in rows] == ["unreadable", "good", "good"]
    assert rows[0]["problem"] == f"[Errno {number}] by plan"


def test_a_checkpoint_that_lacks_a_file_is_corrupt(run: Run, data_dir: str) -> None:
    """Nothing is kept from us: it is not there."""
    Path(data_dir, FOLDER, "00000001-step-7", "manifest.json").unlink()

    result = run("checkpoint", "ls", data_dir, "--json")

    states = [row["state"] for row in json.loads(result.output)]
    assert (result.exit_code, states) == (1, ["corrupt", "good", "good"])


@pytest.mark.parametrize(
    ("corrupt", "hint"),
    [
        ("3", "; 00000002-step-7, which is before it, is good\n"),
        ("32", "; 00000001-step-7, which is before it, is good\n"),
        ("321", "expected to end with the sha256 of all before, got another\n"),
    ],
)
@pytest.mark.parametrize("command", ["show", "export"])
def test_where_the_newest_is_corrupt_one_before_it_that_is_good_is_named(
    command: str, corrupt: str, hint: str, run: Run, data_dir: str, tmp_path: Path
) -> None:
    """It is not used by itself: who asks for the newest may not want an older one."""
    for number in corrupt:
        (manifest,) = Path(data_dir, FOLDER).glob(f"*{number}-step-?/manifest.json")
        manifest.write_bytes(manifest.read_bytes()[1:])
    options = ("-o", str(tmp_path / "a.npz")) if command == "export" else ()

    result = run("checkpoint", command, data_dir, *options)

    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {data_dir}/{FOLDER}/00000003-step-9/mani")
    assert result.output.endswith(hint)
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("command", ["show", "export"])
def test_what_the_system_refuses_is_said_under_the_option_s_name(
    command: str, run: Run, data_dir: str, fail_to_read: Callable[[str, int], None]
) -> None:
    """As every other error is."""
    fail_to_read("00000003-step-9", errno.EACCES)
    options = ("-o", "a.npz") if command == "export" else ()

    result = run("checkpoint", command, data_dir, *options)

    assert (result.exit_code, result.output) == (
        1,
        f"Error: data_dir: expected files that can be used, got [Errno "
        f"{errno.EACCES}] by plan; 00000002-step-7, which is before it, is good\n",
    )
