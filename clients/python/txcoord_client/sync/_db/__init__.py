"""The barrier over what services keep their data in: SQLAlchemy, drivers' own connections and pools, Redis."""
