"""The engine refuses the files that torchadder.quant.file refuses, and reads those that it reads."""

import random

import pytest
from tests.engine.random_programs import Maker
from tests.quant.test_file import UNSOUND, changed, path, program  # noqa: F401  fixtures

from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.quant.file import read, write


@pytest.mark.parametrize(("edit", "words"), UNSOUND)
def test_what_is_not_sound_is_refused(path, edit, words):  # noqa: F811
    changed(path, edit)
    with pytest.raises(UserError, match="is no sound program: ") as error:
        Engine(path)
    assert "\n" not in str(error.value)


def test_files_that_are_none(path, tmp_path):  # noqa: F811
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for bad in (
        b"",
        b"\0" * 100,
        content[:-1],
        content + b"\0",
        b"\xff" * 8 + content,
        content[:100],
        content[:8] + b"[" * length + content[8 + length :],
        content.replace(b'"tadder"', b'"tadler"', 1),
        content.replace(b'"dtype"', b'"dtyqe"', 1),
        content.replace(b'"U8"', b'"F8"', 1),
        content.replace(b'"data_offsets":[', b'"data_offsets":[1', 1),
    ):
        (tmp_path / "bad.tadder").write_bytes(bad)
        for reader in (Engine, read):
            with pytest.raises(UserError):
                reader(tmp_path / "bad.tadder")


@pytest.mark.parametrize("seed", range(40))
def test_both_readers_agree_about_any_head(seed, tmp_path):
    """Numbers of the head are exchanged at random."""
    generator = random.Random(seed)
    values = [
        -1,
        0,
        1,
        2,
        3,
        17,
        255,
        256,
        1 << 14,
        1 << 40,
        0.5,
        1e3,
        None,
        "conv",
        "binary",
        [],
        {},
        [0],
        [1, 1],
        True,
    ]
    file = tmp_path / "net.tadder"

    def edit(head, tensors):
        for _ in range(generator.randint(0, 2)):
            places = [head, head.get("input"), *(head["steps"] if isinstance(head["steps"], list) else [])]
            place = generator.choice([place for place in places if isinstance(place, dict) and place])
            name = generator.choice([*place])
            if isinstance(place[name], list) and place[name] and generator.random() < 0.7:
                place[name][generator.randrange(len(place[name]))] = generator.choice(values)
            else:
                place[name] = generator.choice(values)

    def accepted(reader):
        try:
            reader(file)
        except UserError:
            return False
        return True

    for number in range(10):
        write(Maker(seed * 10 + number, sizes=(1, 6), channels=(1, 6)).program(), file)
        changed(file, edit)
        assert accepted(Engine) == accepted(read)
