"""Messages name what files hold, in short, and steer no terminal."""

import pickle

import pytest

from lorank.errors import DataError, LorankWarning, as_seen, in_short, listed, one_line, shown

EVIL = "\x1b[31mred\u202e\x9b2J\r\n# heading\0"


def test_what_cannot_be_seen_is_written_as_python_writes_it() -> None:
    assert as_seen("Größe λ") == "Größe λ"
    assert as_seen("a\x1b[31m\u202e\nb") == r"a\x1b[31m\u202e\nb"
    assert as_seen("a\n\x07b", "\n") == "a\n\\x07b"
    assert in_short("x" * 100) == "x" * 80 + "..."


@pytest.mark.parametrize(
    ("value", "said"),
    [("a", "'a'"), (7, "7"), (None, "None"), (EVIL[:5], r"'\x1b[31m'")],
)
def test_values_are_shown_in_short(value: object, said: str) -> None:
    assert shown(value) == said


def test_a_number_of_thousands_of_digits() -> None:
    assert shown(10**5000) == "a number of about 5,001 digits"


def test_a_value_of_any_size_and_depth_is_shown_at_once() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, ["x" * 10**7] * 1000, {str(k): k for k in range(10**5)}, {"a": {"b": 10**9000}}):
        assert len(shown(value)) <= 83


def test_names_are_listed_up_to_some() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "a, b"
    assert listed(range(100_000), 3) == "0, 1, 2 and 99,997 more"


@pytest.mark.parametrize("kind", [DataError, LorankWarning])
def test_a_message_steers_no_terminal_and_has_an_end(kind: type[Exception]) -> None:
    error = kind(f"column {EVIL}" + "x" * 100_000 + "\nline" * 500)
    assert "\x1b" not in str(error)
    assert "\u202e" not in str(error)
    assert len(str(error).splitlines()) == 101
    assert max(map(len, str(error).splitlines())) < 2_100
    assert str(error) == as_seen(str(error), "\n")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_another_package_said_is_one_line() -> None:
    assert one_line(ValueError(f"a\n  b {EVIL}")) == r"a b \x1b[31mred\u202e\x9b2J # heading\x00"
