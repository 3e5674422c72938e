"""What a global transaction is and how it moves: pure rules, no I/O, no clock, only the standard library."""
