"""Folds batch norms into the layers before them: the same function with fewer passes over memory."""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

# Not by torch.fx, which would find the pairs itself: while it traces, it replaces nn.Module.__call__ for
# the whole process, under the feet of the threads that serve.


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Folds batch norms in place, and returns the network.

    A batch norm can be folded into a convolution or linear layer whose output nothing else reads. Such
    pairs are neighbours in an `nn.Sequential`; any other module names its own in `FOLDABLE`, a tuple of
    (layer, batch norm) attribute names. All other batch norms stay: above all one that stands *before* a
    zero-padded convolution, whose padding it would have to change. Outputs are equal but for rounding; a
    folded network loads no checkpoint any more.

    Raises:
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError("batch norms can be folded in eval mode only: call network.eval() first")
    for module in list(network.modules()):
        for layer, norm in _pairs(module):
            fused = _fuse(module.get_submodule(layer), module.get_submodule(norm))
            if fused is not None:
                module.set_submodule(layer, fused)
                module.set_submodule(norm, nn.Identity())
    return network


def _pairs(module: nn.Module) -> Iterable[tuple[str, str]]:
    """Names of children that may be a layer and its batch norm."""
    if isinstance(module, nn.Sequential):
        return pairwise(name for name, _ in module.named_children())
    pairs: tuple[tuple[str, str], ...] = getattr(module, "FOLDABLE", ())
    return pairs


@torch.no_grad()
def _fuse(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Both in one layer, or None where they are no pair that can be folded."""
    if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
        return fuse_conv_bn_eval(layer, norm)
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        return fuse_linear_bn_eval(layer, norm)
    return None
