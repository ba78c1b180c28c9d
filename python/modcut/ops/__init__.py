"""Torch operators of the modularity loss, in the namespace ``modcut``. Importing this package registers them.

======================  =====================================================================
``share_rows``          leak of every target neuron, differentiable in the weights
``share_rows_grad``     its closed-form gradient, without an autograd graph
``share_shrink_``       the proximal step of the same quantity, in place
``share_pass``          value and gradient in one pass over the weights, by the fused kernels where they fit
``share_proximal_``     the proximal step of all matrices, likewise
``block_sums``          sums over labelled sources of every row: what the other forms of the loss are functions of
``reference``           the share operators in plain torch, one formula a line: the ground truth
``dispatch``            which kernel runs where
======================  =====================================================================
"""

from modcut.ops import dispatch, reference
from modcut.ops.fused import share_pass, share_proximal_
from modcut.ops.share import share_rows, share_rows_grad, share_shrink_
from modcut.ops.sums import block_sums

__all__ = [
    "block_sums",
    "dispatch",
    "reference",
    "share_pass",
    "share_proximal_",
    "share_rows",
    "share_rows_grad",
    "share_shrink_",
]
