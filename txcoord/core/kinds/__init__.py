"""What each phase means, kind by kind. The state tables are in :mod:`txcoord.core.lifecycle`."""

from __future__ import annotations

from collections.abc import Mapping

from ..model import Kind
from . import callback, message, notify, saga, tcc, xa
from .rules import KindRules

RULES: Mapping[Kind, KindRules] = {
    Kind.XA: xa.RULES,
    Kind.TCC: tcc.RULES,
    Kind.SAGA: saga.RULES,
    Kind.MESSAGE: message.RULES,
    Kind.NOTIFY: notify.RULES,
    Kind.CALLBACK: callback.RULES,
}

__all__ = ["RULES", "KindRules"]
