"""Torch operators of the modularity loss, in the namespace ``modcut``. Importing this package registers them.

======================  =====================================================================
``share_rows``          leak of every target neuron, differentiable in the weights
``share_rows_grad``     its closed-form gradient, without an autograd graph
``share_shrink_``       the proximal step of the same quantity, in place
``reference``           the same three in plain torch, one formula a line: the ground truth
======================  =====================================================================
"""

from modcut.ops import reference
from modcut.ops.share import share_rows, share_rows_grad, share_shrink_

__all__ = ["reference", "share_rows", "share_rows_grad", "share_shrink_"]
