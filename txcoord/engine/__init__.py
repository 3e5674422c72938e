"""What carries transactions out: commands, phase two, recovery. Everything it touches comes through ports."""
