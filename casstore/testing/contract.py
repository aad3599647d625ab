"""What every backend must do: subclass `BackendContract` with a fixture ``backend`` that gives an empty one."""

from __future__ import annotations

import itertools
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor

import pytest

from casstore.backend import Backend
from casstore.errors import AlreadyExistsError, InvalidInputError, NotFoundError

BAD_KEYS = (
    *("", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "./a", "a/.", "a\0b", "a b", "a\n", "ä"),
    *("a\\b", "tmp", "tmp/a", "x" * 256, "/".join(["x" * 100] * 11), "\ud800"),
)
BAD_PREFIXES = ("/", "/a", "a//", "../", "a/../b", "./", "a\0", "ä", "a b", "\ud800")
KEYS = (
    *("format", "log/00000000000000000001", "log/00000000000000000002", "log/FLOOR", "log/floor/1", "logs", "log-x/1"),
    *("packs/ab/0", "packs/ab/1", "packs/ab.x", "packs/ab-x", "packs/ab0/0", "packs/cd/0", "packs/a/0", "packs.x/0"),
    *("a.b/c", "a/b/c", "a-b/c", "a0", "A/b", "~z", "t/tmp/x", "tmp2", "..a", ".a/...b", "x" * 255 + "/y"),
)
"""keys whose order is not that of a walk through directories"""
PREFIXES = (
    *("", "l", "log", "log/", "log/0", "log/f", "logs", "logs/", "packs", "packs/", "packs/a", "packs/ab", "packs/ab/"),
    *("packs/ab/0", "packs/ab/0/", "a", "a/", "z", "no/where", "tmp", "tmp/", "t", ".", ".a/", "log/floor/1x"),
)


class BackendContract:
    """The promises of `casstore.backend.Backend`, one test each."""

    @pytest.fixture
    def backend(self) -> Backend:
        """An empty backend."""
        raise NotImplementedError

    @pytest.fixture
    def filled(self, backend: Backend) -> Backend:
        """A backend with an object of its own content under each of `KEYS`."""
        for key in KEYS:
            backend.create(key, key.encode())
        return backend

    def test_read_what_was_created(self, backend: Backend) -> None:  # noqa: D102
        backend.create("packs/ab/cd", b"hello")
        assert backend.read("packs/ab/cd") == b"hello"

    def test_reads_bytes(self, backend: Backend) -> None:  # noqa: D102
        backend.create("a", bytearray(b"hello"))
        assert type(backend.read("a")) is bytes

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (b"", b""),
            ([], b""),
            ([b"", b""], b""),
            (bytearray(b"ab"), b"ab"),
            (memoryview(b"abcdef")[1:3], b"bc"),
            (memoryview(b"abcdef")[::2], b"ace"),
            (memoryview(array("I", [1, 2])), bytes(array("I", [1, 2]))),
            ([b"a", b"", bytearray(b"b"), memoryview(b"cd")], b"abcd"),
            ((b"a", memoryview(b"abcdef")[::-1]), b"afedcba"),
            ([b"%d," % number for number in range(3000)], b"".join(b"%d," % number for number in range(3000))),
            ([b"x" * (9 << 20), b"y", b"z" * (8 << 20)], b"x" * (9 << 20) + b"y" + b"z" * (8 << 20)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_data_of_any_shape(self, backend: Backend, data: object, expected: bytes) -> None:  # noqa: D102
        backend.create("a", data)  # type: ignore[arg-type]
        assert backend.read("a") == expected
        assert backend.stat("a").size == len(expected)

    def test_content_is_a_copy(self, backend: Backend) -> None:  # noqa: D102
        data = bytearray(b"before")
        backend.create("a", data)
        data[:] = b"after!"
        assert backend.read("a") == b"before"

    def test_create_never_replaces(self, backend: Backend) -> None:  # noqa: D102
        backend.create("log/1", b"first")
        with pytest.raises(AlreadyExistsError):
            backend.create("log/1", b"second")
        with pytest.raises(AlreadyExistsError):
            backend.create("log/1", b"first")
        assert backend.read("log/1") == b"first"
        assert [info.key for info in backend.list("")] == ["log/1"]

    def test_one_creator_wins(self, backend: Backend) -> None:  # noqa: D102
        start = threading.Barrier(4)

        def contend(number: int) -> list[str]:
            won = []
            for slot in range(25):
                start.wait()
                try:
                    backend.create(f"log/{slot:02}", [b"%d" % number] * 1000)
                except AlreadyExistsError:
                    continue
                won.append(f"log/{slot:02}")
            return won

        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(contend, range(4)))
        assert sorted(itertools.chain(*won)) == [f"log/{slot:02}" for slot in range(25)]
        for number, keys in enumerate(won):
            for key in keys:
                assert backend.read(key) == b"%d" % number * 1000

    def test_nobody_sees_a_part(self, backend: Backend) -> None:  # noqa: D102
        done = threading.Event()
        content = bytes(1 << 20)

        def write() -> None:
            try:
                for number in range(20):
                    backend.create(f"packs/{number:02}", [content, b"end"])
            finally:
                done.set()

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            while not done.is_set():
                for info in backend.list(""):
                    assert info.size == len(content) + 3
                    assert backend.read(info.key, offset=len(content)) == b"end"
            writer.result()

    @pytest.mark.parametrize("offset", [0, 1, 9, 10, 11, 1 << 40])
    @pytest.mark.parametrize("length", [None, 0, 1, 9, 10, 11, 1 << 40])
    def test_read_a_range(self, backend: Backend, offset: int, length: int | None) -> None:  # noqa: D102
        backend.create("a", b"0123456789")
        expected = b"0123456789"[offset : None if length is None else offset + length]
        assert backend.read("a", offset=offset, length=length) == expected

    @pytest.mark.parametrize(("offset", "length"), [(-1, None), (0, -1), (-1, 1)])
    def test_no_negative_range(self, backend: Backend, offset: int, length: int | None) -> None:  # noqa: D102
        backend.create("a", b"0123456789")
        with pytest.raises(InvalidInputError):
            backend.read("a", offset=offset, length=length)

    @pytest.mark.parametrize("key", ["a", "b/c", "packs", "packs/ab", "format/x", "packs/ab/1/x"])
    def test_not_found(self, backend: Backend, key: str) -> None:  # noqa: D102
        with pytest.raises(NotFoundError):
            backend.read(key)
        backend.create("format", b"")
        backend.create("packs/ab/1", b"")
        with pytest.raises(NotFoundError):
            backend.read(key)
        with pytest.raises(NotFoundError):
            backend.stat(key)

    def test_stat(self, backend: Backend) -> None:  # noqa: D102
        backend.create("a", b"123")
        backend.create("b", b"")
        first, second = backend.stat("a"), backend.stat("b")
        assert (first.key, first.size, second.size) == ("a", 3, 0)
        assert 0 < first.modified <= second.modified

    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_list(self, filled: Backend, prefix: str) -> None:  # noqa: D102
        expected = sorted(key for key in KEYS if key.startswith(prefix))
        found = list(filled.list(prefix))
        assert [info.key for info in found] == expected
        assert found == [filled.stat(key) for key in expected]

    @pytest.mark.parametrize("prefix", ["", "log", "log/", "packs/", "packs/ab"])
    def test_list_after(self, filled: Backend, prefix: str) -> None:  # noqa: D102
        marks = {*KEYS, *(f"{key}0" for key in KEYS), "", "log/", "packs/ab/", "packs/ab", "packs/ab0", "~~", "packs"}
        for after in sorted(marks):
            expected = sorted(key for key in KEYS if key.startswith(prefix) and key > after)
            assert [info.key for info in filled.list(prefix, after=after)] == expected, after

    def test_list_while_deleting(self, filled: Backend) -> None:  # noqa: D102
        listing = filled.list("")
        seen = [next(listing).key]
        for key in KEYS:
            if key not in seen:
                filled.delete(key)
        seen += [info.key for info in listing]
        assert set(seen) <= set(KEYS)
        assert seen == sorted(seen)
        assert [info.key for info in filled.list("")] == seen[:1]

    def test_delete(self, filled: Backend) -> None:  # noqa: D102
        filled.delete("log/FLOOR")
        with pytest.raises(NotFoundError):
            filled.read("log/FLOOR")
        assert [info.key for info in filled.list("")] == sorted(set(KEYS) - {"log/FLOOR"})
        filled.create("log/FLOOR", b"again")
        assert filled.read("log/FLOOR") == b"again"

    @pytest.mark.parametrize("key", ["nothing", "no/where", "format/x", "packs/ab"])
    def test_delete_what_is_not_there(self, backend: Backend, key: str) -> None:  # noqa: D102
        backend.delete(key)
        backend.create("format", b"")
        backend.create("packs/ab/0", b"")
        backend.delete(key)
        backend.delete(key)
        assert [info.key for info in backend.list("")] == ["format", "packs/ab/0"]

    @pytest.mark.parametrize("prefix", ["", "l", "log", "log/", "packs", "packs/ab/", "nothing", "no/where/"])
    def test_barrier(self, filled: Backend, prefix: str) -> None:  # noqa: D102
        filled.barrier(prefix)
        assert len(list(filled.list(""))) == len(KEYS)

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_bad_keys(self, backend: Backend, key: str) -> None:  # noqa: D102
        with pytest.raises(InvalidInputError):
            backend.create(key, b"")
        with pytest.raises(InvalidInputError):
            backend.read(key)
        with pytest.raises(InvalidInputError):
            backend.stat(key)
        with pytest.raises(InvalidInputError):
            backend.delete(key)

    @pytest.mark.parametrize("prefix", BAD_PREFIXES)
    def test_bad_prefixes(self, backend: Backend, prefix: str) -> None:  # noqa: D102
        with pytest.raises(InvalidInputError):
            list(backend.list(prefix))
        with pytest.raises(InvalidInputError):
            backend.barrier(prefix)
