"""Simulation of the real engine and SDK: one seed makes a world, and everything that happens in it."""
