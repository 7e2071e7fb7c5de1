"""Grids of experiments: a suite in TOML, cells that are stored once, tables and plots of them."""

from cgd.bench.plots import draw
from cgd.bench.runner import run_suite
from cgd.bench.suite import Grid, Suite, read_suite
from cgd.bench.tables import RENDERERS, read_cells, render, write_cells

__all__ = [
    "RENDERERS",
    "Grid",
    "Suite",
    "draw",
    "read_cells",
    "read_suite",
    "render",
    "run_suite",
    "write_cells",
]
