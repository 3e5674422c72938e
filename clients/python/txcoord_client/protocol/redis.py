"""The barrier in Redis: the marker, the result and what the service changes, in one script.

The markers of a branch are one hash, a field for each op. A value is one letter and, for what was done, the result:
``D`` done, ``T`` tombstone, ``B`` begun: a script that fails in its middle leaves this, since Redis undoes nothing.
"""

from __future__ import annotations

from .identifiers import checked_branch, checked_tx_id

DONE, TOMBSTONE, BEGUN = "D", "T", "B"


def key(tx_id: str, branch: str) -> str:
    """Of a branch's markers. In braces: what a cluster would distribute by."""
    return f"txcoord:{{{checked_tx_id(tx_id)}:{checked_branch(branch)}}}"


# ARGV: op, the op before it (a try or action: its own), undoing (1) or not, the latest time in µs (0: any), seconds
# that the markers are kept at least (0: for ever), until when absence proves anything (µs).
_ENTER = """
local m, op, first, undoing = KEYS[1], ARGV[1], ARGV[2], ARGV[3] == '1'
local limit, seconds, known = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
-- Absence proves something until `known`, which goes by the initiator's clock: that may be ahead of this one.
local stay = math.max(seconds, math.ceil((known - now) / 1000000) + 86400)
local had = redis.call('HGET', m, op)
if had then return {'had', had} end
local before = false
if op ~= first then
    before = redis.call('HGET', m, first)
    if before and string.sub(before, 1, 1) == 'B' then return {'had', before} end
end
if not before then
    if op ~= first and not undoing then return {'absent', ''} end
    if known > 0 and now > known then return {'forgotten', ''} end
    if undoing then
        redis.call('HSET', m, op, 'D', first, 'T')
        if seconds > 0 then redis.call('EXPIRE', m, stay) end
        return {'empty', ''}
    end
    if limit > 0 and now > limit then return {'late', ''} end
end
"""

LOOK = f"{_ENTER} return {{'first', before and string.sub(before, 2) or ''}}"
"""What the barrier says of a call. KEYS: :func:`key`."""


def act(script: str) -> str:
    """The same, and the service's work with it. KEYS: :func:`key`, and the script's; ARGV: as above, the result, and
    the script's."""
    return f"""{_ENTER}
redis.call('HSET', m, op, 'B')
local function work(KEYS, ARGV)
{script}
end
local said = work({{unpack(KEYS, 2)}}, {{unpack(ARGV, 8)}})
if type(said) == 'table' and said.refused then
    redis.call('HDEL', m, op)
    return {{'refused', tostring(said.refused)}}
end
redis.call('HSET', m, op, 'D' .. ARGV[7])
if op == 'try' then redis.call('PERSIST', m) elseif seconds > 0 then redis.call('EXPIRE', m, stay) end
return {{'done', ''}}
"""
