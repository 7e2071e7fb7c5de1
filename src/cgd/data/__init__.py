"""Untrusted labelled images: what they are, where they come from, how they become tensors."""

from cgd.data.dataset import ImageData, Skipped, from_arrays
from cgd.data.sources import load
from cgd.data.writing import write_folder, write_parquet

__all__ = ["ImageData", "Skipped", "from_arrays", "load", "write_folder", "write_parquet"]
