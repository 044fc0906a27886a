"""JSON made wrong: values of other types, numbers beyond everything, keys lost and doubled, nests without bottom."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any, Final

from tests.fuzz.mutate import TEXTS, WORDS, mutate

_DEPTH: Final = 5000


def wrong(document: Any, random: Random) -> Any:
    """A copy of `document` with one to four of its values replaced, taken away, or moved."""
    made = copy.deepcopy(document)
    for _ in range(1 + min(int(random.expovariate(0.8)), 3)):
        places = list(_places(made))
        if not places:
            return _value(random)
        # Parents are few and leaves are many: each depth has its chance.
        depth = random.choice(sorted({one[2] for one in places}))
        holder, key, _ = random.choice([one for one in places if one[2] == depth])
        deed = random.random()
        if deed < 0.15:
            del holder[key]
        elif deed < 0.3:
            other, there, _ = random.choice(places)
            holder[key] = copy.deepcopy(other[there]) if _still(other, there) else _value(random)
        elif deed < 0.4 and isinstance(holder, dict):
            holder[random.choice([text.decode("latin-1") for text in TEXTS])] = holder.pop(key)
        else:
            holder[key] = _value(random, holder[key])
    return made


def deep(random: Random) -> bytes:
    """A document that is nothing but depth."""
    return random.choice((b'{"a":', b"[")) * random.choice((100, _DEPTH, 200_000))


def spoiled(raw: bytes, random: Random) -> bytes:
    """The text of a document made wrong: other values, other bytes, or depth alone."""
    kind = random.random()
    if kind < 0.04:
        return deep(random)
    if kind < 0.25:
        return mutate(raw, random)
    return json.dumps(wrong(json.loads(raw), random)).encode("utf-8", "surrogatepass")


def _still(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(value: Any, depth: int = 0) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key, depth
        yield from _places(inner, depth + 1)


def _value(random: Random, old: Any = None) -> Any:
    if isinstance(old, int) and random.random() < 0.4:
        return old + random.choice((-1, 1, -8, 8, 1 << 32, -(1 << 63)))
    if isinstance(old, str) and random.random() < 0.4:
        return old + random.choice(TEXTS).decode("utf-8", "surrogateescape" if random.random() < 0.2 else "replace")
    return random.choice((
        None, True, False, "", "x", [], {}, [[]], {"a": {}}, -1, 1e308, float("nan"), float("inf"), 0.5, 10**400,
        -(10**30), "\ud800", "a" * 100_000, [0] * 1000, *WORDS,
    ))  # fmt: skip
