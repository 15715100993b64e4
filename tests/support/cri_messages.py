# SPDX-License-Identifier: Apache-2.0
"""CRI messages by their description: the fields that there are, and messages in which one of them is set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# protobuf has two implementations of descriptors, whose types have no name in common.
AnyDescriptor = Any
AnyField = Any
Path = tuple[str, ...]
"""Where a field is: the names of the fields that lead to it."""

NUMBER = 7
"""What a number is set to; small enough for every type."""


def fields(descriptor: AnyDescriptor, *prefix: str) -> Iterator[tuple[Path, AnyField]]:
    """Every field that holds a value, not a message; of a repeated message, those of an element; a map is one."""
    for field in descriptor.fields:
        path = (*prefix, field.name)
        if field.message_type is not None and not is_map(field):
            yield from fields(field.message_type, *path)
        else:
            yield path, field


def is_map(field: AnyField) -> bool:
    """Whether a field is a map."""
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def reach(message: Message, path: Path) -> Any:
    """The message that holds the field at `path`; what leads to it is made, of a repeated message one element."""
    holder: Any = message
    for name in path[:-1]:
        field = holder.DESCRIPTOR.fields_by_name[name]
        if field.is_repeated:
            elements = getattr(holder, name)
            holder = elements[0] if elements else elements.add()
        else:
            holder = getattr(holder, name)
            holder.SetInParent()
    return holder


def set_field(message: Message, path: Path, value: Any) -> None:
    """Set one field; of a repeated one, add an element."""
    holder, name = reach(message, path), path[-1]
    field = holder.DESCRIPTOR.fields_by_name[name]
    if is_map(field):
        getattr(holder, name).update(value)
    elif field.is_repeated:
        getattr(holder, name).append(value)
    else:
        setattr(holder, name, value)


def some_value(field: AnyField) -> Any:
    """A value that a field does not have by default, and that the CRI knows."""
    if is_map(field):
        return {"key": f"value of {field.name}"}
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_BYTES:
        return f"value of {field.name}".encode()
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"value of {field.name}"
    return NUMBER


def fill(message: Message) -> None:
    """Set every field of a message, at every depth."""
    for path, field in fields(message.DESCRIPTOR):
        set_field(message, path, some_value(field))


def unset(message: Message, *prefix: str) -> Iterator[Path]:
    """The fields of a message, at any depth, that have their defaults; of a repeated message, in any element."""
    present = {field.name for field, _ in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        path = (*prefix, field.name)
        if field.name not in present:
            yield path
        elif field.message_type is not None and not is_map(field):
            inner = getattr(message, field.name)
            for each in inner if field.is_repeated else [inner]:
                yield from unset(each, *path)
