"""For tests, the demo and the bench: throw-away servers and processes."""

import os

# Child processes are started while gRPC's threads run; its fork handlers can crash the child before it execs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
