"""Grids of experiments: a suite in TOML, cells that are stored once, tables from stored cells."""

from cgd.bench.runner import run_suite
from cgd.bench.suite import Suite, read_suite
from cgd.bench.tables import render, write_cells

__all__ = ["Suite", "read_suite", "render", "run_suite", "write_cells"]
