"""Image files that lie: a real one damaged blindly, or where its format keeps lengths, counts and checksums.

For `fuzz_images` and for the tests of decoding. The same corpus, seed and index always give the same file.
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

ByteOrder = Literal["little", "big"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORDERS: tuple[ByteOrder, ByteOrder] = ("little", "big")
_EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255)

Mutation = Callable[[bytearray, random.Random, Sequence[bytes]], None]


@dataclass(frozen=True)
class Field:
    """A number in a file: where it is, how many bytes it has, and in which order."""

    offset: int
    size: int
    order: ByteOrder


def mutate(corpus: Sequence[bytes], seed: int, index: int) -> bytes:
    """File `index` of the sequence that `seed` names: one of `corpus` after one to four mutations."""
    chance = random.Random(f"{seed}/{index}")
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 4))):
        chance.choice(MUTATIONS)(data, chance, corpus)
    return bytes(data)


def number_fields(data: bytes | bytearray) -> list[Field]:
    """The lengths, sizes, counts and offsets by which the format of `data` says where the rest of it is."""
    if data.startswith(b"\xff\xd8"):
        return list(_jpeg_fields(data))
    if data.startswith(_PNG_SIGNATURE):
        return [field for begin, length in png_chunks(data) for field in _png_fields(data, begin, length)]
    if data.startswith(b"RIFF"):
        return list(_riff_fields(data))
    if data.startswith(b"BM"):
        return [Field(offset, 4, "little") for offset in (2, 10, 14, 18, 22, 30, 34, 46, 50)] + [Field(28, 2, "little")]
    if data.startswith((b"II", b"MM")):
        return list(_tiff_fields(data))
    return list(_gif_fields(data))


def _flip(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Half of the damage goes to the header."""
    for _ in range(chance.choice((1, 3, 16))):
        if data:
            place = chance.randrange(len(data) if chance.random() < 0.5 else min(len(data), 64))
            data[place] ^= chance.randrange(1, 256) if chance.random() < 0.5 else 1 << chance.randrange(8)


def _cut_short(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    if data:
        del data[chance.randrange(len(data)) :]


def _cut_out(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    begin, end = _span(data, chance)
    del data[begin:end]


def _repeat(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    begin, end = _span(data, chance)
    data[begin:begin] = data[begin:end] * chance.choice((1, 2, 20))


def _blank(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    begin, end = _span(data, chance)
    data[begin:end] = bytes([chance.choice((0, 255))]) * (end - begin)


def _splice(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """The head of this file and the tail of another, half of the time of one of the same format."""
    other = chance.choice(corpus)
    if chance.random() < 0.5:
        other = chance.choice([one for one in corpus if one[:3] == data[:3]] or [other])
    data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other)) :]


def _lie(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Another number in one of the format's own fields."""
    fields = [field for field in number_fields(data) if field.offset + field.size <= len(data)]
    if fields:
        _write_number(data, chance.choice(fields), chance)


def _lie_anywhere(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    size = chance.choice((2, 4, 8))
    if len(data) >= size:
        _write_number(data, Field(chance.randrange(len(data) - size + 1), size, chance.choice(_ORDERS)), chance)


def _edit_png(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    """Damage within a chunk whose checksum is then made right, or a chunk that is dropped, doubled or out of place."""
    chunks = list(png_chunks(data))
    if not data.startswith(_PNG_SIGNATURE) or not chunks:
        return _flip(data, chance, corpus)
    begin, length = chance.choice(chunks)
    kind, content = bytes(data[begin + 4 : begin + 8]), bytearray(data[begin + 8 : begin + 8 + length])
    end = begin + length + 12
    action = chance.choice(("content", "pixels", "drop", "double", "move"))
    if action == "content":
        _flip(content, chance, corpus)
        data[begin:end] = png_chunk(kind, bytes(content))
    elif action == "pixels":
        try:
            rows = bytearray(zlib.decompress(content))
        except zlib.error:
            return None
        chance.choice((_flip, _cut_short, _repeat))(rows, chance, corpus)
        data[begin:end] = png_chunk(kind, zlib.compress(rows))
    elif action == "drop":
        del data[begin:end]
    else:
        to = begin if action == "double" else chance.choice(chunks)[0]
        data[to:to] = data[begin:end]
    return None


MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _cut_short,
    _cut_out,
    _repeat,
    _blank,
    _splice,
    _lie,
    _lie,
    _lie_anywhere,
    _edit_png,
)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_chunks(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Where each whole chunk begins, and the length of its content."""
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + length + 12 > len(data):
            return
        yield place, length
        place += length + 12


def _png_fields(data: bytes | bytearray, begin: int, length: int) -> Iterator[Field]:
    yield Field(begin, 4, "big")
    if data[begin + 4 : begin + 8] in (b"IHDR", b"fcTL", b"acTL"):
        yield from (Field(begin + 8 + offset, 4, "big") for offset in range(0, length - 3, 4))


def _jpeg_fields(data: bytes | bytearray) -> Iterator[Field]:
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        yield Field(place + 2, 2, "big")
        if 0xC0 <= marker <= 0xCF:  # a frame's precision, height, width and components
            yield from (Field(place + 4, 1, "big"), Field(place + 5, 2, "big"), Field(place + 7, 2, "big"))
            yield from (Field(place + 9 + offset, 1, "big") for offset in range(10))
        if marker == 0xDA:
            return
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _riff_fields(data: bytes | bytearray) -> Iterator[Field]:
    yield Field(4, 4, "little")
    place = 12
    while place + 8 <= len(data):
        yield Field(place + 4, 4, "little")
        yield from (Field(place + 8 + offset, 4, "little") for offset in (0, 3, 4, 6, 7))
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2


def _tiff_fields(data: bytes | bytearray) -> Iterator[Field]:
    order: ByteOrder = "little" if data[:2] == b"II" else "big"
    # Ordinary, or BigTIFF with numbers twice as wide.
    size, entry, first, count_size = (4, 12, 4, 2) if b"*" in data[2:4] else (8, 20, 8, 8)
    directory = int.from_bytes(data[first : first + size], order)
    yield Field(first, size, order)
    count = int.from_bytes(data[directory : directory + count_size], order)
    yield Field(directory, count_size, order)
    for index in range(min(count, 64)):
        begin = directory + count_size + index * entry
        # tag, type, count, value or where the values are
        yield from (Field(begin, 2, order), Field(begin + 2, 2, order))
        yield from (Field(begin + 4, size, order), Field(begin + 4 + size, size, order))


def _gif_fields(data: bytes | bytearray) -> Iterator[Field]:
    yield from (Field(6, 2, "little"), Field(8, 2, "little"), Field(10, 1, "little"))
    for begin in (place for place in range(13, len(data)) if data[place] in (0x2C, 0x21)):
        # The byte may be another's; a lie there is a flip.
        yield from (Field(begin + offset, 2, "little") for offset in (1, 3, 5, 7))
        yield from (Field(begin + 9, 1, "little"), Field(begin + 10, 1, "little"))


def _write_number(data: bytearray, field: Field, chance: random.Random) -> None:
    most = 256**field.size
    place = slice(field.offset, field.offset + field.size)
    now = int.from_bytes(data[place], field.order)
    near = now + chance.choice((-2, -1, 1, 2))
    value = chance.choice((chance.choice(_EDGES), most - 1, most // 2, most // 2 - 1, near, now * 2, now * 256))
    data[place] = (value % most).to_bytes(field.size, field.order)


def _span(data: bytearray, chance: random.Random) -> tuple[int, int]:
    begin = chance.randrange(len(data) + 1)
    return begin, min(begin + chance.choice((1, 4, 16, 200)), len(data))
