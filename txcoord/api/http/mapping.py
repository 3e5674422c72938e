"""Between JSON and the wire's messages: the canonical JSON mapping of protobuf, read strictly.

Beside the mapping, a ``payload`` or ``result`` (bytes, so base64) has a twin ``payloadJson`` or ``resultJson``: the
same as plain JSON. One of the two is given; both are answered, where the bytes are JSON.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import re
from collections.abc import Sized
from decimal import Decimal
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from txcoord_client.protocol import reasons

from ...core.errors import Refused
from ..grpc.mapping import bad

M = TypeVar("M", bound=Message)
# Descriptors are of another class in each of protobuf's backends, and are typed by none of them.

TWINS = frozenset({"payload", "result"})
"""Fields of bytes that mostly hold JSON."""
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64),
}
_WHOLE = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}", re.ASCII)
_DEEPEST = 64
_MOST_ITEMS = 10_000
"""Of one array or map: no message has a use for more, and each of them takes time of everybody else."""


def refused(path: str, text: str) -> Refused:
    """A refusal that names the field."""
    path = path[:200]
    return bad(reasons.BAD_REQUEST, f"{path}: {text}" if path else text, **({"field": path} if path else {}))


# ---- text -> JSON ----


def loads(text: bytes) -> Any:
    """JSON as its sender meant it: a key twice, or a number that would be rounded, is refused. Raises Refused."""
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_exact,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise refused("", "the body is not UTF-8") from None
    except RecursionError:
        raise refused("", "the body's JSON is nested too deeply") from None
    except ValueError as error:
        raise refused("", f"the body is no JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise ValueError(f"the key {name[:80]!r} is there twice in one object")
        out[name] = value
    return out


def _exact(text: str) -> float:
    value = float(text)
    if Decimal(text) != Decimal(repr(value)):
        raise ValueError(f"the number {text[:40]} would be rounded to {value!r}: send it as text")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


# ---- JSON -> message ----


def read(value: Any, message: M) -> M:
    """Fill the message. Raises Refused, with the path of the field that is wrong."""
    try:
        canonical = _message(value, message.DESCRIPTOR, "", 0)
        json_format.ParseDict(canonical, message)
    except json_format.ParseError as error:
        raise refused("", str(error).split("\n", 1)[0]) from None
    return message


def _message(value: Any, kind: Any, path: str, depth: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise refused(path, f"an object is expected, not {_name(value)}")
    if depth > _DEEPEST:
        raise refused(path, "nested too deeply")
    out: dict[str, Any] = {}
    for key, item in value.items():
        at = f"{path}.{key}" if path else key
        field = _field(kind, key)
        if field is None:
            twin = _field(kind, key.removesuffix("Json")) if key.endswith("Json") else None
            if twin is None or twin.name not in TWINS:
                raise refused(at, "there is no such field" + _nearest(key, kind))
            field, item = twin, base64.b64encode(_dumped(item, at)).decode()
        if item is None:
            continue  # The mapping's way to say "not set".
        if field.json_name in out:
            raise refused(at, "it is given twice")
        out[field.json_name] = _value(item, field, at, depth)
    return out


def _value(item: Any, field: Any, at: str, depth: int) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(item, dict):
            raise refused(at, f"an object is expected, not {_name(item)}")
        _not_too_many(item, at)
        inner = field.message_type.fields_by_name["value"]
        return {_text(k, at): _single(v, inner, f"{at}.{k}", depth) for k, v in item.items()}
    if _repeated(field):
        if not isinstance(item, list):
            raise refused(at, f"an array is expected, not {_name(item)}")
        _not_too_many(item, at)
        return [_single(one, field, f"{at}[{number}]", depth) for number, one in enumerate(item)]
    return _single(item, field, at, depth)


def _not_too_many(items: Sized, at: str) -> None:
    if len(items) > _MOST_ITEMS:
        raise bad(reasons.TOO_LARGE, f"{at}: {len(items)} items; at most {_MOST_ITEMS}")


def _single(item: Any, field: Any, at: str, depth: int) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return _message(item, field.message_type, at, depth + 1)
    if kind in _BITS:
        return _whole(item, *_BITS[kind], at)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(item, bool):
            raise refused(at, f"true or false is expected, not {_name(item)}")
    elif kind == FieldDescriptor.CPPTYPE_ENUM:
        known = field.enum_type.values_by_name
        numbers = field.enum_type.values_by_number
        named = isinstance(item, str) and item in known
        if not named and (isinstance(item, bool) or not isinstance(item, int) or item not in numbers):
            raise refused(at, f"one of {', '.join(known)} is expected, not {_name(item)}")
    elif kind == FieldDescriptor.CPPTYPE_STRING:
        text = _text(item, at)
        return _base64(text, at) if field.type == FieldDescriptor.TYPE_BYTES else text
    elif isinstance(item, bool) or not isinstance(item, int | float):
        raise refused(at, f"a number is expected, not {_name(item)}")
    return item


def _whole(item: Any, least: int, beyond: int, at: str) -> int:
    if isinstance(item, str) and _WHOLE.fullmatch(item):
        item = int(item)
    if isinstance(item, float) and item.is_integer():
        item = int(item)
    if isinstance(item, bool) or not isinstance(item, int) or not least <= item < beyond:
        raise refused(at, f"a whole number from {least} to {beyond - 1} is expected, not {_name(item)}")
    return item


def _text(item: Any, at: str) -> str:
    if not isinstance(item, str):
        raise refused(at, f"a text is expected, not {_name(item)}")
    try:
        item.encode()
    except UnicodeEncodeError:
        raise refused(at, "half a surrogate pair is no text") from None
    return item


def _base64(text: str, at: str) -> str:
    """Checked, since the mapping itself skips what is no base64: a payload in plain text would become garbage."""
    bare = text.rstrip("=").replace("-", "+").replace("_", "/")
    padded = bare + "=" * (-len(bare) % 4)
    try:
        if not _BASE64.fullmatch(text):
            raise binascii.Error
        base64.b64decode(padded, validate=True)
    except binascii.Error:
        raise refused(
            at, f"bytes are written in base64; for JSON there is {at.rpartition('.')[2]}Json"
        ) from None
    return padded


def _dumped(value: Any, at: str) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise refused(at, "half a surrogate pair is no text") from None


def _field(kind: Any, key: str) -> Any:
    return kind.fields_by_camelcase_name.get(key) or kind.fields_by_name.get(key)


def _repeated(field: Any) -> bool:
    try:
        return bool(field.is_repeated)
    except AttributeError:  # protobuf < 6.31
        return bool(field.label == FieldDescriptor.LABEL_REPEATED)


def _nearest(key: str, kind: Any) -> str:
    known = [f.json_name for f in kind.fields] + [
        f"{f.json_name}Json" for f in kind.fields if f.name in TWINS
    ]
    near = difflib.get_close_matches(key[:40], known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _name(value: Any) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case None:
            return "null"
    return json.dumps(value[:80] if isinstance(value, str) else value)[:80]


# ---- message -> JSON ----


def write(message: Message) -> dict[str, Any]:
    """The message in the canonical mapping, with the twins of what is JSON."""
    out: dict[str, Any] = json_format.MessageToDict(message)
    _add_twins(message, out)
    return out


def _add_twins(message: Any, out: dict[str, Any]) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry:
                continue
            inner = out[field.json_name]
            if _repeated(field):
                for one, its in zip(value, inner, strict=True):
                    _add_twins(one, its)
            else:
                _add_twins(value, inner)
        elif field.name in TWINS:
            # Of bytes that would not be the same again there are only the bytes.
            try:
                out[f"{field.json_name}Json"] = loads(value)
            except Refused:
                continue


def dumps(value: Any) -> bytes:
    """JSON as it is sent."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
