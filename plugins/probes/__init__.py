"""Probes that ship: they watch a run and change nothing."""
