"""An order that five services carry out together, each with its own framework and database: all of it, or nothing."""
