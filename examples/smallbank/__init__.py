"""SmallBank over two databases that know nothing of each other, while processes are killed.

`scripts/demo` shows it once; `scripts/campaign` runs it long. After Alomari et al., "The Cost of
Serializability on Platforms That Use Snapshot Isolation" (ICDE 2008), which made the benchmark.
"""
