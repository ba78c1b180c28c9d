"""Torch operators of the modularity loss, in the namespace ``modcut``. Importing this package registers them.

======================  =====================================================================
``share_rows``          leak of every target neuron, differentiable in the weights
``share_rows_grad``     its closed-form gradient, without an autograd graph
``share_shrink_``       the proximal step of the same quantity, in place
``block_sums``          sums over labelled sources of every row: what the other forms of the loss are functions of
``reference``           the first three in plain torch, one formula a line: the ground truth
======================  =====================================================================
"""

from modcut.ops import reference
from modcut.ops.share import share_rows, share_rows_grad, share_shrink_
from modcut.ops.sums import block_sums

__all__ = ["block_sums", "reference", "share_rows", "share_rows_grad", "share_shrink_"]
