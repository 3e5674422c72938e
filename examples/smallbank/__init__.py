"""SmallBank over two databases that know nothing of each other, while processes are killed.

`scripts/demo` shows it once; `scripts/campaign` runs it long. After Alomari et al., "The Cost of
Serializability on Platforms That Use Snapshot Isolation" (ICDE 2008), which made the benchmark.
"""

import os

# Child processes are started while gRPC's threads run; its fork handlers can crash the child before it execs.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
