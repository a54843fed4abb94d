"""A distributed pipeline that reproduces "Deep Residual Learning for Image Recognition" (He et al., 2015)."""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent, warnings too, until someone sets up logging
