"""XA branches: connections of the caller's drivers that belong to a branch until it is prepared."""
