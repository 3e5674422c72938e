"""Write txcoord/api/http/openapi.json from the routes and from proto/, comments included. See scripts/diagrams.

python scripts/lib/openapi.py [--check]
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from txcoord.api.http.front import ROUTES, Route
from txcoord.api.http.mapping import TWINS
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "txcoord" / "api" / "http" / "openapi.json"
_KINDS = FieldDescriptor

STOCK: Mapping[str, Any] = {
    "id": "1",
    "kind": "KIND_TCC",
    "action": {
        "target": "http://stock.example:8000",
        "operation": "/reserve",
        "commitOperation": "/confirm",
        "abortOperation": "/cancel",
        "payloadJson": {"sku": "book", "n": 1},
    },
}
SHIP: Mapping[str, Any] = {
    "spec": {"name": "ship", "labels": {"customer": "7"}},
    "wait": "WAIT_LEVEL_ACCEPTED",
    "branches": [
        {
            "id": "1",
            "kind": "KIND_SAGA",
            "name": "pack",
            "action": {
                "target": "http://warehouse.example:8000",
                "operation": "/pack",
                "abortOperation": "/unpack",
                "payloadJson": {"order": 7},
            },
        },
        {
            "id": "2",
            "kind": "KIND_SAGA",
            "name": "send",
            "after": ["1"],
            "action": {
                "target": "http://courier.example:8000",
                "operation": "/send",
                "noUndo": True,
                "payloadJson": {"order": 7},
            },
        },
    ],
}

TOLD: Mapping[str, Any] = {
    "gid": "order-9",
    "check": {"target": "http://shop.example:8000", "participant": "shop"},
    "branches": [
        {
            "id": "1",
            "kind": "KIND_MESSAGE",
            "delivery": {
                "target": "http://warehouse.example:8000",
                "operation": "/pack",
                "payloadJson": {"order": 7},
            },
        }
    ],
}
# Of each route: its operationId, the rpc whose comment describes it, its answer, the statuses of success, an example.
OPERATIONS: Mapping[str, tuple[str, str, type[Any], tuple[int, ...], Mapping[str, Any] | None]] = {
    "POST /v1/transactions": (
        "begin",
        "Begin",
        pb.BeginResponse,
        (201,),
        {"gid": "order-7", "spec": {"name": "checkout", "labels": {"customer": "7"}}},
    ),
    "GET /v1/transactions": ("list", "List", pb.ListResponse, (200,), None),
    "POST /v1/plans": ("submit", "Submit", pb.SubmitResponse, (200, 202), SHIP),
    "POST /v1/messages": ("prepareMessage", "PrepareMessage", pb.PrepareMessageResponse, (201,), TOLD),
    "POST /v1/messages/{id}/submit": (
        "submitMessage",
        "SubmitMessage",
        pb.SubmitMessageResponse,
        (200, 202),
        {},
    ),
    "GET /v1/transactions/{id}": ("get", "Get", pb.GetResponse, (200,), None),
    "GET /v1/transactions/{id}/wait": ("waitOfOne", "", pb.SubmitResponse, (200, 202), None),
    "POST /v1/transactions/{id}/branches": (
        "enlist",
        "Enlist",
        pb.EnlistResponse,
        (200, 202),
        {"branches": [STOCK]},
    ),
    "POST /v1/transactions/{id}/votes": (
        "vote",
        "Vote",
        pb.VoteResponse,
        (200,),
        {"votes": [{"branch": "1", "vote": "VOTE_PREPARED", "resultJson": {"hold": 99}}]},
    ),
    "POST /v1/transactions/{id}/commit": ("commit", "Commit", pb.CommitResponse, (200, 202), {}),
    "POST /v1/transactions/{id}/rollback": (
        "rollback",
        "Rollback",
        pb.RollbackResponse,
        (200, 202),
        {"reason": "CHANGED_MIND"},
    ),
    "POST /v1/transactions/{id}/reports": ("report", "Report", pb.ReportResponse, (200,), None),
    "POST /v1/wait": (
        "wait",
        "Wait",
        pb.WaitResponse,
        (200,),
        {"items": [{"gid": "order-7", "level": "WAIT_LEVEL_DECIDED"}], "waitUs": "1000000"},
    ),
    "GET /v1/hello": ("hello", "Hello", pb.HelloResponse, (200,), None),
}
_LEADS_TO = {
    "prepareMessage": ("submitMessage", "rollback", "get", "waitOfOne"),
    "begin": ("enlist", "vote", "commit", "rollback", "get", "waitOfOne"),
    "submit": ("waitOfOne", "get", "rollback"),
}
_WAIT_OF_ONE = (
    "Waits until one transaction has got there. 202 when it has not in time: its outcome is how it stands then, "
    "with pending set."
)
_NAMED = (
    "The path names the transaction. What the body can say of it (txId, gid, deadlineUs, begun) may be left out: it "
    "is looked up. With a tx id in the path and deadlineUs in the body nothing is looked up."
)


# ---- comments of proto/ ----


def comments() -> dict[str, str]:
    """What proto/ says of each message, field, enum, value and rpc: ``Name`` or ``Name.field``."""
    out: dict[str, str] = {}
    for name in ("common", "coordinator"):
        above: list[str] = []
        inside = ""
        for line in (
            (ROOT / "proto" / "txcoord" / "v1" / f"{name}.proto").read_text(encoding="utf-8").splitlines()
        ):
            text = line.strip()
            if text.startswith("//"):
                above.append(text[2:].strip())
                continue
            if found := re.match(r"(?:message|enum|service) (\w+)", text):
                inside = found[1]
                out[inside] = " ".join(above)
            elif found := re.match(r"rpc (\w+)\(", text):
                out[f"rpc {found[1]}"] = " ".join(above)
            elif found := re.match(r"(?:repeated |optional )?[\w.<>, ]*?(\w+) = \d+;\s*(?://\s*(.*))?", text):
                out[f"{inside}.{found[1]}"] = " ".join([*above, *([found[2]] if found[2] else [])])
            above = []
    return out


# ---- schemas ----


class Schemas:
    """The messages that were asked for, and all that are in them."""

    def __init__(self) -> None:
        self.texts = comments()
        self.done: dict[str, Any] = {}

    def of(self, kind: Descriptor) -> dict[str, str]:
        """A reference to a message."""
        if kind.name not in self.done:
            self.done[kind.name] = out = {"type": "object", "additionalProperties": False, "properties": {}}
            self._describe(out, self.texts.get(kind.name, ""))
            for field in kind.fields:
                out["properties"].update(self._fields(kind, field))
        return {"$ref": f"#/components/schemas/{kind.name}"}

    def _fields(self, kind: Descriptor, field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
        text = self.texts.get(f"{kind.name}.{field.name}", "")
        yield field.json_name, self._described(self._field(field), text)
        if field.name in TWINS:
            yield (
                f"{field.json_name}Json",
                {"description": f"{field.json_name} as plain JSON. One of the two is given."},
            )

    def _field(self, field: FieldDescriptor) -> dict[str, Any]:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return {
                "type": "object",
                "additionalProperties": self._single(field.message_type.fields_by_name["value"]),
            }
        return {"type": "array", "items": self._single(field)} if field.is_repeated else self._single(field)

    def _single(self, field: FieldDescriptor) -> dict[str, Any]:
        if field.message_type is not None:
            return self.of(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        match field.type:
            case _KINDS.TYPE_BYTES:
                return {"type": "string", "contentEncoding": "base64"}
            case _KINDS.TYPE_STRING:
                return {"type": "string"}
            case _KINDS.TYPE_BOOL:
                return {"type": "boolean"}
            case _KINDS.TYPE_DOUBLE:
                return {"type": "number"}
            case _KINDS.TYPE_INT64 | _KINDS.TYPE_UINT64:
                return {"type": "string", "pattern": "^-?[0-9]{1,20}$"}
            case _KINDS.TYPE_UINT32:
                return {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
            case _KINDS.TYPE_INT32:
                return {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
        raise SystemExit(f"{field.full_name}: its type has no schema here")

    def _enum(self, kind: EnumDescriptor) -> dict[str, str]:
        if kind.name not in self.done:
            values = [v.name for v in kind.values]
            told = [f"{v}: {t}" for v in values if (t := self.texts.get(f"{kind.name}.{v}"))]
            text = " ".join([self.texts.get(kind.name, ""), *told])
            self.done[kind.name] = self._described({"type": "string", "enum": values}, text)
        return {"$ref": f"#/components/schemas/{kind.name}"}

    @staticmethod
    def _describe(out: dict[str, Any], text: str) -> None:
        if text:
            out["description"] = text

    def _described(self, out: dict[str, Any], text: str) -> dict[str, Any]:
        self._describe(out, text)
        return out


PROBLEM: Mapping[str, Any] = {
    "type": "object",
    "description": "RFC 9457, with what a refusal over gRPC says.",
    "required": ["type", "title", "status", "detail", "reason", "code", "definite"],
    "properties": {
        "type": {"type": "string", "description": "urn:txcoord:reason: and the reason."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "For people; may change."},
        "reason": {
            "type": "string",
            "description": "Stable code to program against, such as UNKNOWN_RESOURCE.",
        },
        "code": {"type": "string", "description": "Name of a google.rpc.Code, such as NOT_FOUND."},
        "definite": {
            "type": "boolean",
            "description": "The outcome of this operation is known: it had no effect, or see outcome.",
        },
        "retryAfterUs": {
            "type": "string",
            "description": "Duration. Try again, same request, not before it.",
        },
        "facts": {"type": "object", "additionalProperties": {"type": "string"}},
        "outcome": {"$ref": "#/components/schemas/Outcome"},
    },
}

_QUERY: Mapping[str, Any] = {
    "namespace": {"schema": {"type": "string"}, "description": "Whose transactions; default: default."},
    "timeout": {
        "schema": {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(ms|s|m)?$"},
        "description": "How long to wait, such as 10, 10s, 500ms; default 30s, at most 60s. Wins over Prefer.",
    },
    "level": {
        "schema": {"type": "string", "enum": ["accepted", "decided", "committed", "delivered"]},
        "description": "What is waited for; default committed (or aborted).",
    },
    "history": {"schema": {"type": "boolean"}, "description": "With its history."},
    "payloads": {"schema": {"type": "boolean"}, "description": "With the payloads of its branches."},
    "filter": {
        "schema": {"type": "string"},
        "description": "Such as: state = COMMITTING AND parked AND age > 10m",
    },
    "pageSize": {"schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}},
    "pageToken": {"schema": {"type": "string"}, "description": "nextPageToken of the page before."},
    "orderBy": {"schema": {"type": "string", "enum": ["created desc"]}},
}


def operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    """One operation."""
    name, rpc, answer, statuses, example = OPERATIONS[f"{route.method} {route.path}"]
    text = schemas.texts[f"rpc {rpc}"] if rpc else _WAIT_OF_ONE
    out: dict[str, Any] = {
        "operationId": name,
        "summary": text.partition(". ")[0].rstrip("."),
        "description": text,
    }
    parameters: list[dict[str, Any]] = []
    if "{id}" in route.path:
        parameters.append({"$ref": "#/components/parameters/id"})
    queries = ["namespace", *route.query, *(["timeout"] if route.waits else [])]
    parameters += [{"name": query, "in": "query", **_QUERY[query]} for query in queries]
    if name in ("begin", "submit", "prepareMessage"):
        parameters.append({"$ref": "#/components/parameters/idempotencyKey"})
    if route.waits:
        parameters.append({"$ref": "#/components/parameters/prefer"})
    out["parameters"] = parameters
    if route.method == "POST":
        kind = route.request().DESCRIPTOR
        media: dict[str, Any] = {"schema": schemas.of(kind)}
        if example is not None:
            media["example"] = example
        out["requestBody"] = {"required": False, "content": {"application/json": media}}
        if "{id}" in route.path:
            out["description"] += " " + _NAMED
    body = {"application/json": {"schema": schemas.of(answer.DESCRIPTOR)}}
    said = {200: "It is so.", 201: "It is durable.", 202: "Taken; what was waited for is not reached yet."}
    out["responses"] = {str(number): {"description": said[number], "content": body} for number in statuses}
    for response in out["responses"].values() if name in _LEADS_TO else ():
        response["links"] = {
            to: {"operationId": to, "parameters": {"id": "$response.body#/outcome/txId"}}
            for to in _LEADS_TO[name]
        }
    out["responses"]["default"] = {"$ref": "#/components/responses/problem"}
    return out


def _plain(name: str, text: str, statuses: Mapping[int, str]) -> dict[str, Any]:
    body = {"application/json": {"schema": {"type": "object"}}}
    answers = {str(n): {"description": said, "content": body} for n, said in statuses.items()}
    return {"get": {"operationId": name, "summary": text, "responses": answers}}


def document() -> dict[str, Any]:
    """The whole."""
    schemas = Schemas()
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route, schemas)
    paths["/livez"] = _plain("livez", "The process lives", {200: "It does."})
    paths["/readyz"] = _plain(
        "readyz", "It can work", {200: "It can.", 503: "The log is away, or the node is leaving."}
    )
    paths["/openapi.json"] = _plain("openapi", "This document", {200: "It."})
    schemas.of(c.Outcome.DESCRIPTOR)
    schemas.done["Problem"] = PROBLEM
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "txcoord",
            "version": "v1",
            "summary": "The coordinator of distributed transactions, as services see it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Bodies are the messages of txcoord.v1 in protobuf's canonical JSON mapping: names in "
            "lowerCamelCase, 64-bit numbers as text, bytes in base64; what is not there has its zero value. Unknown "
            "fields are refused.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.done.items())),
            "parameters": {
                "id": {
                    "name": "id",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,48}$"},
                    "description": "gid or tx id.",
                },
                "idempotencyKey": {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "schema": {"type": "string"},
                    "description": "It is the gid, if the body has none: 1 to 48 of [A-Za-z0-9_-], quoted or not.",
                },
                "prefer": {
                    "name": "Prefer",
                    "in": "header",
                    "schema": {"type": "string"},
                    "description": "RFC 7240: wait=10 (seconds); respond-async: answer once it is durable.",
                },
            },
            "responses": {
                "problem": {
                    "description": "Refused.",
                    "content": {
                        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                    },
                }
            },
        },
    }


def main() -> None:
    """Write it, or only compare."""
    text = json.dumps(document(), indent=1, ensure_ascii=False) + "\n"
    if "--check" in sys.argv:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{TARGET.relative_to(ROOT)} is not current: run scripts/diagrams")
        return
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
