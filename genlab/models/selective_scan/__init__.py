"""Selective scan of Mamba: ``interface.py`` chooses between mamba-ssm, ``cpu.py`` (Numba) and ``torch_scan.py``."""

from genlab.models.selective_scan.interface import Backend, selective_scan

__all__ = ["Backend", "selective_scan"]
