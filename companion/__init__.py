"""Multi-task learning, from linear models to deep tensor factorisation.

The package behind the executable book; every chapter imports what it shows from here.

- :mod:`companion.tasks`: the data of T tasks, ragged, as all models take it
- :mod:`companion.linear`: linear models as scikit-learn estimators
- :mod:`companion.networks`: any network turned into one of many tasks (DMTRL), hard sharing
- :mod:`companion.training`: the training loop, with checkpoints, on one process or several
- :mod:`companion.layers`, :mod:`companion.factorized`, :mod:`companion.tensors`: layers of all tasks, the formats of
  their weights, and the decompositions under these
- :mod:`companion.sharing`: what tasks share, read off codes or weights
- :mod:`companion.losses`, :mod:`companion.penalties`, :mod:`companion.solvers`: the mathematics under the estimators
- :mod:`companion.metrics`: errors per task, gains with paired standard errors
- :mod:`companion.datasets`: real data with checked downloads, synthetic data with its truth
- :mod:`companion.records`, :mod:`companion.experiments`: measured results that anybody can run again
- :mod:`companion.plotting`, :mod:`companion.book`: the figures and widgets that chapters share
"""

from companion.tasks import Tasks

__version__ = "0.1.0"

__all__ = ["Tasks", "__version__"]
