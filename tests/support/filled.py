# SPDX-License-Identifier: Apache-2.0
"""Values in which every field says something: what is lost or mixed up on the way shows."""

from __future__ import annotations

from itertools import count
from typing import Any, TypeVar

from msgspec import inspect

T = TypeVar("T")

ENTRIES = 2
"""How many a collection has."""


def filled(kind: type[T]) -> T:
    """A struct or dataclass whose fields, at every depth, differ from their defaults and from each other.

    Only flags and enums repeat themselves: they have too few values.
    """
    made = _Filler().value(inspect.type_info(kind))
    assert isinstance(made, kind)
    return made


class _Filler:
    def __init__(self) -> None:
        self._numbers = count(1)

    def value(self, wanted: inspect.Type, default: object = None) -> Any:
        match wanted:
            case inspect.StructType() | inspect.DataclassType():
                return wanted.cls(**{field.name: self.value(field.type, field.default) for field in wanted.fields})
            case inspect.UnionType():
                return self.value(next(each for each in wanted.types if not isinstance(each, inspect.NoneType)))
            case inspect.VarTupleType():
                return tuple(self.value(wanted.item_type) for _ in range(ENTRIES))
            case inspect.TupleType():
                return tuple(self.value(each) for each in wanted.item_types)
            case inspect.DictType():
                return {self.value(wanted.key_type): self.value(wanted.value_type) for _ in range(ENTRIES)}
        return self._single(wanted, default)

    def _single(self, wanted: inspect.Type, default: object) -> Any:
        number = next(self._numbers)
        match wanted:
            case inspect.BoolType():
                return default is not True
            case inspect.IntType():
                return number
            case inspect.FloatType():
                return number + 0.5
            case inspect.StrType():
                return f"text {number}"
            case inspect.EnumType():
                return next(member for member in reversed(wanted.cls) if member is not default)
        raise NotImplementedError(wanted)
