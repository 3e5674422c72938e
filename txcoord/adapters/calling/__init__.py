"""Calling participants: over gRPC, with the SDK there or without."""
