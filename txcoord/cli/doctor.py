"""`txcoord doctor`: what is wrong with the whole, in plain words, and what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import access, console, findings, settings
from .client import Address, Namespace

if TYPE_CHECKING:
    from ..adapters.xa.checks import Finding
    from ..config import Settings
    from ..wiring.diagnosis import Diagnosis

_TIMEOUT_S = 5.0


def doctor(
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    coordinator: Annotated[
        bool, typer.Option(help="Look at the coordinator that runs, too; else only at what it needs.")
    ] = True,
    config: settings.ConfigFile = None,
    json: settings.Json = False,
) -> None:
    """Look at everything: settings, log, resources, clocks, the coordinator. Say what is wrong and what mends it.

    It changes nothing. Exit code 7 when something is wrong; warnings do not count.
    """
    from .serve import configure_logs, run_loop

    loaded = settings.load(config)
    configure_logs(loaded.model_copy(update={"log_level": "ERROR"}))
    found: list[Diagnosis] = []

    async def run() -> None:
        from ..wiring.doctor import examine

        found.extend(await examine(loaded))

    run_loop(run)
    if coordinator:
        found.append(_coordinator(loaded, address, namespace, log_id=found[1].identity))
    findings.show(found, json=json)
    wrong = sum(f.severity == "error" for one in found for f in one.findings)
    risks = sum(f.severity == "warning" for one in found for f in one.findings)
    if not json:
        console.say(f"\n{console.plural(wrong, 'problem')}, {console.plural(risks, 'warning')}")
    if wrong:
        raise typer.Exit(console.PROBLEMS)


def _coordinator(loaded: Settings, address: str, namespace: str, log_id: str) -> Diagnosis:
    """Ask the coordinator that runs."""
    import grpc

    from txcoord_client._pb import coordinator_pb2 as pb
    from txcoord_client._pb import coordinator_pb2_grpc as rpc
    from txcoord_client.protocol import reasons

    from ..adapters.xa.checks import error
    from ..wiring.diagnosis import Diagnosis

    found = Diagnosis("coordinator", address)
    with access.open_channel(address) as channel:
        stub: Any = rpc.CoordinatorServiceStub(channel)
        try:
            hello = stub.Hello(
                pb.HelloRequest(namespace=namespace), timeout=_TIMEOUT_S, metadata=access.metadata(address)
            )
        except grpc.RpcError as trouble:
            answer: Any = trouble
            if told := access.tls_trouble(address):
                means = "this command, and clients with the same authority, cannot use it"
                remedy = "# give the authority that has signed it: --ca-file, TXCOORD_CA_FILE"
                found.findings.append(error(reasons.BAD_CREDENTIALS, told, means, remedy))
                return found
            found.findings.append(
                error(
                    reasons.UNAVAILABLE,
                    f"no coordinator answers at {address}: {answer.code().name}",
                    "no transaction can begin; what is prepared waits, and keeps its locks",
                    "txcoord serve",
                    "# or say where it is: --address, TXCOORD_ADDRESS; leave it out with --no-coordinator",
                )
            )
            return found
    found.version, found.identity = hello.version, hello.log_id
    found.findings = _compare(loaded, hello, log_id)
    return found


def _compare(loaded: Settings, hello: Any, log_id: str) -> list[Finding]:
    """Does it run what the settings say?"""
    from txcoord_client.protocol import reasons

    from .. import __version__
    from ..adapters.xa.checks import error, ok, warning

    out = [ok("coordinator", f"node {hello.node} answers, version {hello.version}")]
    if hello.version != __version__:
        out.append(
            warning(
                reasons.COORDINATOR_DIFFERS,
                f"it is version {hello.version}, this command is {__version__}",
                "what this command says may not be true of it",
                "# run the same version, then restart the coordinator",
            )
        )
    if log_id and hello.log_id != log_id:
        out.append(
            error(
                reasons.COORDINATOR_DIFFERS,
                f"it works on the log {hello.log_id}, the settings lead to {log_id}",
                "the coordinator was started with other settings, or --address leads to another one",
                "txcoord config show    # here, and where the coordinator runs",
            )
        )
    problems = {r.name: r.problem for r in hello.resources}
    if problems.keys() != loaded.resources.keys():
        out.append(
            warning(
                reasons.COORDINATOR_DIFFERS,
                f"it has the resources {', '.join(sorted(problems)) or 'none'}; "
                f"the settings have {', '.join(sorted(loaded.resources)) or 'none'}",
                "resources are read when it starts",
                "# restart the coordinator with these settings",
            )
        )
    for name, problem in problems.items():
        if problem:
            reason, _, text = problem.partition(": ")
            out.append(
                error(
                    reason,
                    f"it does not use resource {name!r}: {text}",
                    "",
                    f"txcoord resource check {name}",
                )
            )
    return out
