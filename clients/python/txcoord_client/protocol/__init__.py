"""The part of the protocol that needs no I/O: identifiers, the xid, the marker table, and what database
replies mean. Shared by the SDK and the coordinator, so that both say the same thing to a database.

Only the standard library is imported here.
"""
