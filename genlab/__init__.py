"""GenLab: train, evaluate and compare published methods on generative media and its detection.

Importing this package is cheap on purpose: ``python -m genlab --help`` must answer before torch could be imported.
"""

__version__ = "0.1.0"
