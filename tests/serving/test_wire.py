"""The codec: roundtrips, openpi's bytes, and everything that it refuses."""

from __future__ import annotations

import pickle
import sys

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from statevla_client.wire import MAX_OBJECTS, WireError, pack, unpack

DTYPES = ["|b1", "|u1", "<i2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8", ">f4"]


@given(hnp.arrays(st.sampled_from(DTYPES).map(np.dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
def test_arrays_come_back_bit_for_bit(array: np.ndarray) -> None:
    back = unpack(pack({"x": array}))["x"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@given(
    st.dictionaries(
        st.text(max_size=8), st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(), max_size=9
    )
)
def test_plain_values_come_back(message: dict) -> None:
    assert unpack(pack(message)) == message


def test_scalars_and_nesting() -> None:
    message = {"a": np.float32(0.5), "b": [1, [2.5, "x"]], "c": {"d": np.arange(3), "e": np.bool_(True)}}
    back = unpack(pack(message))
    assert type(back["a"]) is np.float32
    assert back["a"] == np.float32(0.5)
    assert back["b"] == [1, [2.5, "x"]]
    assert back["c"]["d"].tolist() == [0, 1, 2]
    assert back["c"]["e"] == np.bool_(True)


def test_bytes_are_openpis() -> None:
    """What openpi's client packs for an array, spelled out."""
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    theirs = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "|u1", b"shape": (2, 3)}
    assert pack({"observation/image": array}) == msgpack.packb({"observation/image": theirs})


@pytest.mark.parametrize(
    "value", [np.array([{}], object), np.array([1j]), np.zeros(2, "i4,f4"), np.array(["a"]), {1, 2}]
)
def test_what_is_not_sent(value: object) -> None:
    with pytest.raises(WireError):
        pack({"x": value})


def array_claim(**changes: object) -> bytes:
    claim = {b"__ndarray__": True, b"data": bytes(12), b"dtype": "<f4", b"shape": [3]}
    claim.update({key.encode(): value for key, value in changes.items()})
    return msgpack.packb({"x": claim})


CLAIMS = {
    "object dtype": {"dtype": "|O"},
    "void dtype": {"dtype": "|V12"},
    "structured dtype": {"dtype": "<f4,<f4"},
    "complex dtype": {"dtype": "<c8"},
    "long double": {"dtype": "<f16"},
    "text dtype": {"dtype": "<U3"},
    "dates": {"dtype": "<M8[s]"},
    "dtype as bytes": {"dtype": b"<f4"},
    "dtype by name": {"dtype": "float32"},
    "too few bytes": {"data": bytes(8)},
    "too many bytes": {"data": bytes(16)},
    "data as text": {"data": "aaaaaaaaaaaa"},
    "negative shape": {"shape": [-1, -3]},
    "negative side": {"shape": [-3]},
    "float side": {"shape": [3.0]},
    "true side": {"shape": [3, True]},
    "shape as number": {"shape": 3},
    "nine dims": {"shape": [3] + [1] * 8},
    "overflow to zero": {"shape": [2**62, 2**62, 0], "data": b""},
    "huge": {"shape": [2**31, 2**31]},
    "a thousand billion rows": {"shape": [10**12, 3]},
    "more keys": {"order": "C"},
}


@pytest.mark.parametrize("changes", CLAIMS.values(), ids=CLAIMS)
def test_arrays_that_lie_are_refused(changes: dict) -> None:
    assert unpack(array_claim())["x"].tolist() == [0, 0, 0], "positive control"
    with pytest.raises(WireError):
        unpack(array_claim(**changes))


def test_pickles_are_never_read() -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (sys.exit, (13,))

    for data in (pickle.dumps(Trap()), array_claim(dtype="|O", data=pickle.dumps(Trap()))):
        with pytest.raises(WireError):
            unpack(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        "text",
        msgpack.packb([1, 2]),
        msgpack.packb(7),
        msgpack.packb({1: 2}),
        msgpack.packb({b"a": 2}),
        msgpack.packb({"a": 1}) + b"x",
        msgpack.packb({"a": "x" * 5000}),
        msgpack.packb({str(i): i for i in range(65)}),
        msgpack.packb({"a": list(range(257))}),
        msgpack.packb({"a": msgpack.ExtType(5, b"abc")}),
        msgpack.packb({"a": msgpack.Timestamp(1)}),
        b"\x81\xa1a" + b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\x81\xa1a\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x05",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xa2\xff\xfe",
    ],
)
def test_what_is_no_request(data: bytes | str) -> None:
    with pytest.raises(WireError) as caught:
        unpack(data)
    assert "\n" not in str(caught.value)


def test_small_bytes_cannot_claim_many_objects() -> None:
    inner = b"\xdc\x01\x00" + b"\x90" * 256
    data = b"\x81\xa1a\xdc\x01\x00" + inner * 256
    with pytest.raises(WireError, match=f"at most {MAX_OBJECTS} values"):
        unpack(data)


def test_every_cut_of_a_message_is_refused() -> None:
    whole = pack({"a": np.arange(4), "b": "text"})
    for length in range(len(whole)):
        with pytest.raises(WireError):
            unpack(whole[:length])


def test_too_long() -> None:
    with pytest.raises(WireError, match="at most 100 bytes, got 247"):
        unpack(pack({"a": np.zeros(200, np.uint8)}), max_bytes=100)
