"""The readable loops with the products of native code in bfloat16: of factors that are rounded, and nothing else."""

import torch


class RoundedProduct(torch.autograd.Function):
    """x W' + b, forward (unless the inputs are narrow) and backward, of factors that are rounded to bfloat16."""

    @staticmethod
    def forward(ctx, x, weight, bias, narrow=False):
        ctx.save_for_backward(x, weight)
        product = x @ weight.mT if narrow else rounded(x) @ rounded(weight).mT
        return product if bias is None else product + bias

    @staticmethod
    def backward(ctx, gradient):
        x, weight = (rounded(value) for value in ctx.saved_tensors)
        gradient = rounded(gradient)
        rows = gradient.flatten(0, -2)
        return gradient @ weight, rows.mT @ x.flatten(0, -2), rows.sum(0) if ctx.needs_input_grad[2] else None, None


def rounded(value):
    return value.bfloat16().to(value.dtype)


def rounded_recurrent(h, weight, rec):
    if rec is None or rec.ndim == 2:
        return RoundedProduct.apply(h if rec is None else h * rec, weight, None)
    blocks = weight.unflatten(0, (-1, h.shape[-1]))
    copies = (h * rec).expand(len(blocks), *h.shape)
    return torch.cat([RoundedProduct.apply(*pair, None) for pair in zip(copies, blocks, strict=True)], -1)


def relative(value, expected):
    return ((value - expected).norm() / expected.norm()).item()
