"""The times of a simulated world: as in production, but shorter, so that a seed has little to wait for."""

from __future__ import annotations

from txcoord.core.action import Retry
from txcoord.core.backoff import Backoff
from txcoord.engine.gate import GateSettings

LEASE_US = 3_000_000
HOLD_US = 1_000_000
BACKOFF = Backoff(first_us=200_000, cap_us=2_000_000)
RETRY = Retry(1_500_000, 200_000, 2.0, 2_000_000, give_up_us=86_400_000_000)
GATE = GateSettings(enough=2, probe_us=300_000, longest_us=2_000_000, drain_per_s=20)
HAND_OFF_US = 50_000
OVERDUE_US = 300_000
SWEEP_S = 1.5
TAKEOVER_S = 1.5
SCAN_S = 2.5
WIDTH = 4
TOLERANCE_US = 2_000_000
GRACE_US = 1_000_000
FAULTS_S = 10.0
"""Faults happen until then."""
QUIET_S = 3 * 2.0 + 3.0 + 3 * SCAN_S + 4.0 + 21.0
"""How long after that everything must have come to rest: three times the longest retry interval, after the lease and
the farthest deadline are over and the scanner has passed a few times."""
EPOCH_US = 1_700_000_000_000_000
