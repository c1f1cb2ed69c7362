"""The configuration as the door sees it: composed from files and command line, and checked, without importing torch.

>>> composed = compose(["demamba"], [("model.lr", "1e-4")])
>>> problems = check(composed, "fit")
"""

from genlab.config.checking import check, explain
from genlab.config.composing import Composed, compose
from genlab.config.experiments import find_config, shipped_experiments, shipped_root
from genlab.config.interpolation import interpolate
from genlab.config.reading import Problem

__all__ = ["Composed", "Problem", "check", "compose", "explain", "find_config", "interpolate", "shipped_experiments", "shipped_root"]
