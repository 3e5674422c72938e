"""txcoord: a distributed transaction coordinator."""

__version__ = "0.1.0.dev0"
