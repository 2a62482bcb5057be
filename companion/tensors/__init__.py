r"""Tensors as products of small parts: unfoldings, truncated SVDs, and the formats that are made of them.

- :func:`unfold`, :func:`fold`, :func:`mode_product`: a tensor as a matrix, and back
- :func:`truncate` and its two rules, :func:`truncated_svd` and :func:`pivoted_qr_svd`: where a matrix is cut off
- :func:`hosvd`, :func:`hooi`, :func:`tucker_to_tensor`: a core and one matrix per mode
- :func:`tt_svd`, :func:`tt_to_tensor`: a chain of cores
- :func:`tensor_ring`, :func:`ring_to_tensor`: a chain whose ends are joined
- :func:`cp`, :func:`cp_to_tensor`: a sum of products of vectors

Every function takes torch tensors or NumPy arrays and gives back what it was given, on the same device and of the same
dtype. The functions that compose a tensor can be differentiated. Modes are counted from zero; where a tensor holds the
weights of tasks, the last mode is that of the tasks. Only :func:`hooi` and :func:`cp` load tensorly.
"""

from companion.tensors.cp import cp, cp_to_tensor
from companion.tensors.tensor_ring import ring_to_tensor, tensor_ring
from companion.tensors.tensor_train import tt_svd, tt_to_tensor
from companion.tensors.truncation import pivoted_qr_svd, truncate, truncated_svd
from companion.tensors.tucker import hooi, hosvd, tucker_to_tensor
from companion.tensors.unfolding import fold, mode_product, unfold

__all__ = [
    "cp",
    "cp_to_tensor",
    "fold",
    "hooi",
    "hosvd",
    "mode_product",
    "pivoted_qr_svd",
    "ring_to_tensor",
    "tensor_ring",
    "truncate",
    "truncated_svd",
    "tt_svd",
    "tt_to_tensor",
    "tucker_to_tensor",
    "unfold",
]
