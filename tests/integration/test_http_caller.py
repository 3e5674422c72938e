"""The caller over real HTTP: any endpoint. What all callers do is in ``test_callers``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.support.callers import TX, Endpoint, Reply, Seen, answers, confirms, over_the_web, request
from txcoord.adapters.calling.any_ import AnyCaller
from txcoord.core.action import Action, Answer, AnswerKind, Op
from txcoord.ports import NotAnswered, Probed
from txcoord_client.protocol import over_http

PLAIN = Action("/try", commit_operation="/confirm", abort_operation="/cancel", headers={"X-Own": "a=b"})


@pytest.fixture
async def caller() -> AsyncIterator[AnyCaller]:
    caller = AnyCaller(node="n1")
    yield caller
    await caller.close()


def says(status: int, body: bytes = b"", **headers: str) -> Endpoint:
    async def endpoint(_: Seen) -> Reply:
        return status, {name.replace("_", "-"): value for name, value in headers.items()}, body

    return endpoint


async def test_any_endpoint(caller: AnyCaller) -> None:
    seen: list[Seen] = []

    async def confirm(asked: Seen) -> Reply:
        seen.append(asked)
        return 201, {"content-type": "text/csv; header=absent"}, b"a,b"

    async with over_the_web({"/base/confirm": confirm}) as target:
        asked = replace(request("1", Op.CONFIRM, PLAIN, result=b"held"), deadline_us=17)
        found = await answers(caller, f"{target}/base/", asked)
    assert found == {"1": Answer(AnswerKind.DONE, b"a,b", "text/csv; header=absent")}
    assert caller.messages == 2
    [had] = seen
    assert had.body == b"p"
    assert {k: v for k, v in had.headers.items() if k.startswith("txcoord-")} == {
        "txcoord-namespace": "shop",
        "txcoord-tx-id": TX.tx_id,
        "txcoord-gid": "order-1",
        "txcoord-branch": "1",
        "txcoord-op": "confirm",
        "txcoord-attempt": "3",
        "txcoord-call-deadline-us": "17",
        "txcoord-result-bin": "aGVsZA==",
    }
    assert had.headers.items() >= {"tenant": "7", "x-own": "a=b", "content-type": "application/json"}.items()
    assert had.headers["host"].startswith("127.0.0.1")
    assert not {"zwei", "te", "bad key"} & had.headers.keys()


async def test_what_an_answer_means(caller: AnyCaller) -> None:
    plain = says(409, b"nothing left")
    problem = says(
        409, b'{"reason": "OUT_OF_STOCK", "detail": "none  left"}', content_type="application/problem+json"
    )
    replies = {
        "plain": plain,
        "problem": problem,
        "odd": says(409, b'["x"]', content_type="application/json"),
        "bare": says(409),
        "pending": says(425, retry_after="1.5"),
        "soon": says(425),
        "date": says(425, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
        "busy": says(503, b"later", retry_after="2"),
        "accepted": says(202, b"ok"),
        "none": says(204),
        "moved": says(307, location="http://elsewhere/"),
        "broken": says(500, b"x" * 5_000),
        "large": says(200, b"x" * 300_000),
    }  # fmt: skip
    async with over_the_web({f"/{name}": endpoint for name, endpoint in replies.items()}) as target:
        asked = [request(name, Op.TRY, Action(f"/{name}", headers={})) for name in replies]
        found = await answers(caller, target, *asked)
    refused, pending, failed = AnswerKind.REFUSED, AnswerKind.PENDING, AnswerKind.FAILED
    assert {name: answer for name, answer in found.items() if answer.kind is not failed} == {
        "plain": Answer(refused, reason="BRANCH_REFUSED: nothing left"),
        "problem": Answer(refused, reason="OUT_OF_STOCK: none left"),
        "odd": Answer(refused, reason='BRANCH_REFUSED: ["x"]'),
        "bare": Answer(refused, reason="BRANCH_REFUSED"),
        "pending": Answer(pending, reason="PENDING", retry_after_us=1_500_000),
        "soon": Answer(pending, reason="PENDING"),
        "date": Answer(pending, reason="PENDING"),
        "accepted": Answer(AnswerKind.DONE, b"ok"),
        "none": Answer(AnswerKind.DONE),
    }
    assert found["busy"] == Answer(failed, reason="HTTP_503: later", retry_after_us=2_000_000)
    assert found["moved"].reason == "HTTP_307: it points to 'http://elsewhere/', and is not followed"
    assert found["broken"].reason.startswith("HTTP_500: xxx")
    assert len(found["broken"].reason) < 400
    assert found["large"].reason.startswith("TOO_LARGE")


async def test_a_large_result_does_not_travel_in_a_header(caller: AnyCaller) -> None:
    seen: list[Seen] = []

    async def confirm(asked: Seen) -> Reply:
        seen.append(asked)
        return 200, {}, b""

    async with over_the_web({"/confirm": confirm}) as target:
        found = await answers(caller, target, request("1", Op.CONFIRM, PLAIN, result=b"x" * 4097))
    assert found["1"].kind is AnswerKind.DONE
    assert seen[0].headers["txcoord-result-too-large"] == "4097"
    assert "txcoord-result-bin" not in seen[0].headers


async def test_who_does_not_answer(caller: AnyCaller) -> None:
    async def hangs(_: Seen) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async with over_the_web({"/try": hangs, "/sdk" + over_http.PATH: says(200, b"hello")}) as target:
        found = await answers(caller, target, request("1", Op.TRY, PLAIN), timeout_s=0.3)
        assert found["1"].reason == "TIMED_OUT: no answer within 0.3 s"
        found = await answers(caller, f"{target}/sdk", request("1", Op.CONFIRM))
        assert found["1"].reason.startswith("NO_PARTICIPANT: it answered with ''")
    for asked in (request("1", Op.TRY, PLAIN), request("1", Op.CONFIRM)):
        found = await answers(caller, target, asked)
        assert found["1"].reason.startswith("UNAVAILABLE: Cannot connect")
        found = await answers(caller, "http://nobody.invalid", asked)
        assert found["1"].reason.startswith("UNAVAILABLE: nobody.invalid cannot be looked up")


async def _raw(reply: bytes, times: list[int]) -> asyncio.Server:
    """Speaks no HTTP, or badly."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        times.append(1)
        writer.write(reply)
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "BAD_REPLY: "),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nxx", "UNAVAILABLE: the reply broke off"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", "BAD_REPLY: "),
        (b"", "UNAVAILABLE: Server disconnected"),
    ],
    ids=["other protocol", "cut off", "large header", "nothing"],
)
async def test_garbage(caller: AnyCaller, reply: bytes, reason: str) -> None:
    times: list[int] = []
    async with await _raw(reply, times) as server:
        target = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        found = await answers(caller, target, request("1", Op.TRY, PLAIN))
        assert found["1"].reason.startswith(reason), found
        assert len(times) == 1
        await answers(caller, target, request("1", Op.CONFIRM, PLAIN))
    # What ends without a word may have been a connection that it had let go of: it is asked once more, but not within
    # one attempt of a first call.
    assert len(times) == (2 if reply else 3)


async def test_connections_are_kept(caller: AnyCaller) -> None:
    async with over_the_web() as target:
        for _ in range(5):
            await answers(caller, target, *confirms(3))
        assert caller._http is not None
        assert caller._http._session is not None
        connector = caller._http._session.connector
        assert connector is not None
        assert sum(len(kept) for kept in connector._conns.values()) == 1  # type: ignore[attr-defined]


# ---- what became of a local transaction ----

MINE = f'"txId": "{TX.tx_id}", "branch": "0"'
SILENT: dict[str, tuple[int, str, str, str]] = {
    "no such thing": (404, "text/plain", "", "HTTP_404: "),
    "moved": (302, "text/html", "", "HTTP_302: "),
    "a page": (200, "text/html", "<p>committed</p>", "BAD_REPLY: "),
    "no JSON": (200, "application/json", "committed", "BAD_REPLY: "),
    "an empty one": (200, "application/json", "{}", "NO_ANSWER: "),
    "another one's": (
        200,
        "application/json",
        '{"answers": [{"txId": "7", "branch": "0", "verdict": "QUERY_BACK_VERDICT_ABORTED"}]}',
        "NO_ANSWER: ",
    ),
    "no verdict": (
        200,
        "application/json",
        f'{{"answers": [{{{MINE}, "message": "a lock"}}]}}',
        "NO_VERDICT: a lock",
    ),
    "another verdict": (
        200,
        "application/json",
        f'{{"answers": [{{{MINE}, "verdict": 77}}]}}',
        "NO_VERDICT: ",
    ),
    "too much": (200, "application/json", " " * 70_000 + "{}", "BAD_REPLY: "),
}


async def test_what_is_an_answer_to_what_became_of_it(caller: AnyCaller) -> None:
    said = (200, "application/json", "")
    asked: list[Seen] = []

    async def endpoint(seen: Seen) -> Reply:
        asked.append(seen)
        return said[0], {"content-type": said[1], "location": "/elsewhere"}, said[2].encode()

    async with over_the_web({"/base/txcoord/v1/query-back": endpoint}) as target:
        for name, (status, kind, text, reason) in SILENT.items():
            said = (status, kind, text)
            with pytest.raises(NotAnswered) as silent:
                await caller.query_back(f"{target}/base", "shop", TX, 5.0)
            assert silent.value.reason.startswith(reason), name
        for verdict, means in (
            ("COMMITTED", Probed.COMMITTED),
            ("ABORTED", Probed.NEVER),
            ("OPEN", Probed.OPEN),
            ("EXPIRED", Probed.TOO_LATE),
        ):
            text = f'{{"later": 1, "answers": [{{{MINE}, "verdict": "QUERY_BACK_VERDICT_{verdict}"}}]}}'
            said = (200, "application/json; charset=utf-8", text)
            assert await caller.query_back(f"{target}/base", "shop", TX, 5.0) is means
    question = json.loads(asked[-1].body)
    assert question["namespace"] == "shop"
    assert question["items"][0].items() >= {"txId": TX.tx_id, "branch": "0", "participant": "shop"}.items()
    for nobody in (target, "shop"):
        with pytest.raises(NotAnswered, match="UNAVAILABLE: "):
            await caller.query_back(nobody, "", TX, 5.0)
