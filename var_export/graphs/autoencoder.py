"""Traced encoder and decoder: convolutions in the compute type, normalisation and the quantiser in float32."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional

from var_export.graphs.precision import Precision
from var_export.graphs.quantize import EncodeTokens, Quantizer
from var_export.model.autoencoder import AttnBlock, Norm, from_pixels, to_pixels
from var_export.model.vqvae import VQVAE


class TypedNorm(nn.Module):
    """Group normalisation computed in float32, returned in the compute type."""

    def __init__(self, reference: Norm, precision: Precision) -> None:
        super().__init__()
        self.norm, self.precision = reference, precision

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) of any float type -> the same shape in the compute type."""
        norm = self.norm
        y = functional.group_norm(self.precision.high(x), norm.num_groups, norm.weight, norm.bias, norm.eps)
        return self.precision.low(y)


class TypedAttention(nn.Module):
    """`AttnBlock` with its products in the compute type, scaled before they are formed, and softmax in float32."""

    def __init__(self, reference: AttnBlock, precision: Precision) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj_out = reference.norm, reference.qkv, reference.proj_out
        self.precision = precision

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) in the compute type -> the same; attention is over the h * w cells."""
        B, C, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(B, 3, C, h * w).unbind(1)
        weights = self.precision.high((q * C**-0.5).transpose(1, 2) @ k).softmax(dim=2)  # (B, query, key)
        y: Tensor = self.proj_out((v @ self.precision.low(weights).transpose(1, 2)).reshape(B, C, h, w))
        return x + y


def typed(module: nn.Module, precision: Precision) -> nn.Module:
    """A copy of `module` whose convolutions carry the compute type and whose norms compute in float32.

    Shares its weights with the original where the types agree.
    """
    memo = {id(p): p for p in module.parameters()}
    clone = copy.deepcopy(module, memo)
    _retype(clone, precision)
    return clone


def _retype(module: nn.Module, precision: Precision) -> None:
    for name, child in module.named_children():
        if isinstance(child, Norm):
            setattr(module, name, TypedNorm(child, precision))
        elif isinstance(child, nn.Conv2d):
            child.weight = nn.Parameter(precision.low(child.weight), requires_grad=False)
            if child.bias is not None:
                child.bias = nn.Parameter(precision.low(child.bias), requires_grad=False)
        else:
            _retype(child, precision)
            if isinstance(child, AttnBlock):
                setattr(module, name, TypedAttention(child, precision))


class Decode(nn.Module):
    """The `decode` graph: f_hat -> pixels."""

    def __init__(self, reference: VQVAE, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.layers = typed(nn.Sequential(reference.post_quant_conv, reference.decoder), precision)

    def forward(self, f_hat: Tensor) -> Tensor:
        """f_hat float32 (B, Z, S, S) -> image uint8 (B, h, w, 3)."""
        return to_pixels(self.precision.high(self.layers(self.precision.low(f_hat))))


class Encode(nn.Module):
    """The `encode` graph: pixels -> tokens."""

    def __init__(self, reference: VQVAE, quantizer: Quantizer, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.layers = typed(nn.Sequential(reference.encoder, reference.quant_conv), precision)
        self.tokens = EncodeTokens(quantizer)

    def forward(self, image: Tensor) -> Tensor:
        """Image uint8 (B, h, w, 3) -> tokens int64 (B, sum L)."""
        features = self.precision.high(self.layers(self.precision.low(from_pixels(image))))
        tokens: Tensor = self.tokens(features)
        return tokens
