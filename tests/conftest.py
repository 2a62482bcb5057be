"""Settings that have to be in place before SciPy is imported."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # without it scikit-learn skips its check of array-API inputs
