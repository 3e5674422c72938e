"""The bank's fees: a gRPC server with threads, and SQLAlchemy.

python -m examples.between_services.fees_grpc PORT
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from txcoord_client.sync import Coordinator

engine = create_engine(os.environ["DATABASE_URL"])
sessions = sessionmaker(engine)


def credit(request: bytes, context: grpc.ServicerContext) -> bytes:
    order = json.loads(request)
    with sessions.begin() as db:
        done = db.execute(text("UPDATE account SET balance = balance + :cents WHERE id = :account"), order)
        if done.rowcount != 1:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such account")
    return b"{}"


# ---- with these lines it takes part in its caller's transaction ----

coord = Coordinator(os.environ["TXCOORD_ADDRESS"])
coord.instrument(engine, resource="fees")
interceptors = [coord.server_interceptor()]


def main(port: str) -> None:
    server: Any = grpc.server(ThreadPoolExecutor(8), interceptors=interceptors)
    handlers = {"Credit": grpc.unary_unary_rpc_method_handler(credit)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Fees", handlers),))
    status = health.HealthServicer()
    status.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    server.stop(5).wait()
    coord.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
