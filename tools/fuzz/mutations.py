"""Damages image files: at random bytes, or at the numbers and checksums of their format.

The fuzzer and the tests of decoding call `mutate`. The same corpus, seed and index always give the same file.
"""

import random
import zlib
from collections.abc import Callable, Sequence

from tools.fuzz.fields import PNG_SIGNATURE, ByteOrder, Field, number_fields, png_chunk, png_chunks

_ORDERS: tuple[ByteOrder, ByteOrder] = ("little", "big")
_EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255)

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def mutate(corpus: Sequence[bytes], seed: int, index: int) -> bytes:
    """Returns file `index` of the sequence that `seed` names: a file of `corpus` after one, two or four mutations."""
    chance = random.Random(f"{seed}/{index}")
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 4))):
        chance.choice(MUTATIONS)(data, chance, corpus)
    return bytes(data)


def _flip_bytes(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Flips bits or changes bytes. Half of the damage goes to the first 64 bytes."""
    for _ in range(chance.choice((1, 3, 16))):
        if data:
            place = chance.randrange(len(data) if chance.random() < 0.5 else min(len(data), 64))
            data[place] ^= chance.randrange(1, 256) if chance.random() < 0.5 else 1 << chance.randrange(8)


def _truncate(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    if data:
        del data[chance.randrange(len(data)) :]


def _delete_span(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    begin, end = _random_span(data, chance)
    del data[begin:end]


def _repeat_span(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    begin, end = _random_span(data, chance)
    data[begin:begin] = data[begin:end] * chance.choice((1, 2, 20))


def _overwrite_span(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    begin, end = _random_span(data, chance)
    data[begin:end] = bytes([chance.choice((0, 255))]) * (end - begin)


def _splice(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Joins the head of this file and the tail of another. Half of the time the other has the same format."""
    other = chance.choice(corpus)
    if chance.random() < 0.5:
        other = chance.choice([one for one in corpus if one[:3] == data[:3]] or [other])
    data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other)) :]


def _corrupt_field(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Writes another number into one of the fields that the format defines."""
    fields = [field for field in number_fields(data) if field.offset + field.size <= len(data)]
    if fields:
        _write_number(data, chance.choice(fields), chance)


def _corrupt_any_number(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Writes another number over 2, 4 or 8 bytes at any position."""
    size = chance.choice((2, 4, 8))
    if len(data) >= size:
        _write_number(data, Field(chance.randrange(len(data) - size + 1), size, chance.choice(_ORDERS)), chance)


def _edit_png(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Damages the content of a PNG chunk and corrects its checksum, or drops, doubles or moves a chunk."""
    chunks = list(png_chunks(data))
    if not data.startswith(PNG_SIGNATURE) or not chunks:
        return _flip_bytes(data, chance, corpus)
    begin, length = chance.choice(chunks)
    kind, content = bytes(data[begin + 4 : begin + 8]), bytearray(data[begin + 8 : begin + 8 + length])
    end = begin + length + 12
    action = chance.choice(("content", "pixels", "drop", "double", "move"))
    if action == "content":
        _flip_bytes(content, chance, corpus)
        data[begin:end] = png_chunk(kind, bytes(content))
    elif action == "pixels":
        try:
            rows = bytearray(zlib.decompress(content))
        except zlib.error:
            return None
        chance.choice((_flip_bytes, _truncate, _repeat_span))(rows, chance, corpus)
        data[begin:end] = png_chunk(kind, zlib.compress(rows))
    elif action == "drop":
        del data[begin:end]
    else:
        to = begin if action == "double" else chance.choice(chunks)[0]
        data[to:to] = data[begin:end]
    return None


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bytes,
    _truncate,
    _delete_span,
    _repeat_span,
    _overwrite_span,
    _splice,
    _corrupt_field,
    _corrupt_field,
    _corrupt_any_number,
    _edit_png,
)


def _write_number(data: bytearray, field: Field, chance: random.Random) -> None:
    most = 256**field.size
    place = slice(field.offset, field.offset + field.size)
    now = int.from_bytes(data[place], field.order)
    near = now + chance.choice((-2, -1, 1, 2))
    value = chance.choice((chance.choice(_EDGES), most - 1, most // 2, most // 2 - 1, near, now * 2, now * 256))
    data[place] = (value % most).to_bytes(field.size, field.order)


def _random_span(data: bytearray, chance: random.Random) -> tuple[int, int]:
    begin = chance.randrange(len(data) + 1)
    return begin, min(begin + chance.choice((1, 4, 16, 200)), len(data))
