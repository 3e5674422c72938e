"""Calling participants: over gRPC or HTTP, with the SDK there or without."""
