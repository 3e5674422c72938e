"""Generated from proto/txcoord/v1 by scripts/proto: do not edit."""
